"""Delivered offsets of one partition in, the offset that may be committed out.

Everything below the watermark is settled. Offsets are tracked as they were delivered, not as ranges: transaction
markers and compaction leave holes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["Watermark"]


class Watermark:
    """Offsets of one partition between delivered and settled. One thread only."""

    __slots__ = ("_delivered", "_next", "_settled")

    def __init__(self, start: int) -> None:
        self._next = start
        self._delivered: deque[int] = deque()
        self._settled: set[int] = set()

    @property
    def position(self) -> int:
        """The offset to commit: all that was delivered below it is settled."""
        return self._next

    @property
    def open(self) -> int:
        """How many offsets at or above the watermark were delivered, settled ones among them."""
        return len(self._delivered)

    def deliver(self, offsets: Iterable[int]) -> None:
        """Take delivered offsets, ascending and above all earlier ones."""
        self._delivered.extend(offsets)

    def settle(self, offsets: Iterable[int]) -> bool:
        """Take settled offsets, each of them delivered before; tell whether the watermark rose."""
        settled = self._settled
        settled.update(offsets)
        delivered = self._delivered
        if not delivered or delivered[0] not in settled:
            return False
        last = -1
        while delivered and delivered[0] in settled:
            last = delivered.popleft()
            settled.remove(last)
        self._next = last + 1
        return True

    def above(self) -> tuple[int, ...]:
        """Settled offsets above the watermark, ascending: what a crash would repeat."""
        return tuple(sorted(self._settled))
