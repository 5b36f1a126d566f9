"""Text on the command line in, a moment with its zone out; and back, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import click

__all__ = ["moment", "utc"]


def moment(text: str) -> datetime:
    """Read a time as in ISO 8601, with a zone: without one it would mean another moment on another machine."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a time: for example 2026-03-01T09:30:00Z") from None
    if found.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no zone: end it with Z, or +01:00")
    return found


def utc(milliseconds: int) -> str:
    """Write milliseconds since 1970 as a time in UTC; as they are where that is no time."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"
