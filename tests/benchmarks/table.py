"""A benchmark's figures in; a line for whoever watches and a row of the Markdown table out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "BENCHMARK_TABLE"
"""Names the file that rows are added to, a line of JSON each."""


def told(
    what: str, figure: str, ratio: float | None = None, *, least: float | None = None, most: float | None = None
) -> None:
    """Print a figure; where there is a target, whether ``ratio`` is at least or at most that."""
    target = f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""
    met = ""
    if ratio is not None and target:
        met = "met" if (ratio >= least if least is not None else ratio <= (most or 0)) else "MISSED"
    number = "" if ratio is None else f"{ratio:.3g}"
    print(f"{what:<66} {figure:<44} {number:>6}  {f'{target} {met}' if target else ''}".rstrip(), flush=True)
    if file := os.environ.get(FILE):
        with Path(file).open("a") as rows:
            rows.write(json.dumps([what, figure, number, target, met]) + "\n")


def machine() -> str:
    """Return what the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, Python {platform.python_version()}"


def markdown(rows: Sequence[Sequence[Any]], commands: Sequence[str]) -> str:
    """Return the table. ``commands`` has each row's."""
    lines = ["| what | figure | ratio | target | | command |", "|---|---|---|---|---|---|"]
    for (what, figure, number, target, met), command in zip(rows, commands, strict=True):
        shown = f"**{met.lower()}**" if met == "MISSED" else met
        lines.append(f"| {what} | {figure} | {number} | {target} | {shown} | `{command}` |")
    return "\n".join(lines)
