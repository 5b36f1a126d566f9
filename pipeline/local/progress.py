"""What a long start is doing in, lines or a bar for a person out.

May be called from several threads. Nothing here decides anything: a silent start is the same start.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Who shows the progress of a start."""

    def say(self, text: str) -> None:
        """Tell one step, in a few words."""

    def expect(self, total_bytes: int) -> None:
        """Announce a download of so many bytes; 0: there is none any more."""

    def advance(self, done_bytes: int) -> None:
        """So many more bytes have come (negative when a broken download starts again)."""


class _Silent:
    def say(self, text: str) -> None:
        """Say nothing."""

    def expect(self, total_bytes: int) -> None:
        """Say nothing."""

    def advance(self, done_bytes: int) -> None:
        """Say nothing."""


silent: Progress = _Silent()
