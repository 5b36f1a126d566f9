"""Delivered offsets of one partition in, the offset that may be committed out.

Everything below the watermark is settled. Only what is open is kept, so one record that takes hours costs no memory
for those that pass it; holes that transaction markers and compaction leave count as settled.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Watermark"]


class Watermark:
    """Offsets of one partition between delivered and settled. One thread only."""

    __slots__ = ("_end", "_open")

    def __init__(self, start: int) -> None:
        self._end = start
        self._open: dict[int, None] = {}

    @property
    def position(self) -> int:
        """The offset to commit: all that was delivered below it is settled."""
        return next(iter(self._open), self._end)

    @property
    def end(self) -> int:
        """Nothing at or above it was delivered."""
        return self._end

    @property
    def open(self) -> tuple[tuple[int, int], ...]:
        """What was delivered and is not settled: first and last offset of each run, ascending."""
        runs: list[tuple[int, int]] = []
        first = last = -2
        for offset in self._open:
            if offset != last + 1:
                if first >= 0:
                    runs.append((first, last))
                first = offset
            last = offset
        if first >= 0:
            runs.append((first, last))
        return tuple(runs)

    def deliver(self, offsets: Iterable[int]) -> None:
        """Take delivered offsets, ascending and above all earlier ones."""
        before = len(self._open)
        self._open.update(dict.fromkeys(offsets))
        if len(self._open) > before:
            self._end = next(reversed(self._open)) + 1

    def settle(self, offsets: Iterable[int]) -> None:
        """Take settled offsets, each of them delivered before."""
        pop = self._open.pop
        for offset in offsets:
            pop(offset, None)
