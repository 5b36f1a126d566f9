"""Debezium's lists of regular expressions in, predicates on names out."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.connect.java import java_regex

__all__ = ["listed", "split"]


def split(text: str) -> list[str]:
    """Return the items of a list: commas part them, a comma behind a backslash is one."""
    return [part for found in re.split(r"(?<!\\),", text) if (part := found.strip().replace("\\,", ","))]


def listed(text: str) -> Callable[[str], bool]:
    """Return what tells whether an expression of a list matches a whole name, in any case. Raises re.error."""
    whole = re.compile("|".join(f"(?:{java_regex(part).pattern})" for part in split(text)), re.IGNORECASE)
    return lambda name: whole.fullmatch(name) is not None
