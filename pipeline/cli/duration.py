"""A length of time as people write it in, seconds out."""

from __future__ import annotations

import re

import click

__all__ = ["seconds"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """Return the seconds of ``30m``, ``12h``, ``7d``. Raises click.BadParameter."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        raise click.BadParameter(f"{text!r} is no time: write it as 30m, 12h or 7d")
    return int(found[1]) * _UNITS[found[2]]
