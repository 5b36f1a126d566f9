"""What a look at the servers found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``fix`` is SQL, a command or a setting; empty where nothing is wrong.

    A note is nothing to mend, but to know.
    """

    area: str
    check: str
    level: Level
    found: str
    fix: str = ""
