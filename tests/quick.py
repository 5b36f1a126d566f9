"""The local stack's servers in, the same with JVMs that start at half the cost out.

A test's server lives for seconds or minutes: what the second compiler makes of its code never pays for the compiling.
Not for benchmarks, and not for what a user starts: ``pipeline demo`` in a process of its own is as delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.local import connect, kafka, registry
from pipeline.local.java import java_command

__all__ = ["quick_java"]


def quick_java() -> None:
    """Let all JVMs that this process starts compile by their first compiler alone."""
    modules: tuple[Any, ...] = (connect, kafka, registry)
    for module in modules:
        module.java_command = _command


def _command(folder: Path, main: Sequence[str], **named: Any) -> list[str]:
    java, *words = java_command(folder, main, **named)
    return [java, "-XX:TieredStopAtLevel=1", *words]
