"""How far a group is in one partition, in; the text that stands beside a committed offset, out, and back.

The text says which records above the offset are settled, so that a crash repeats few, and which ones a worker that
ended uncleanly may have died of. What does not fit, is damaged, or belongs to another offset says nothing: then more
is repeated, never less.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

__all__ = ["MOST_BYTES", "Mark", "Progress", "Suspicion"]

MOST_BYTES = 4096
"""Kafka's ``offset.metadata.max.bytes`` by default."""

_FORMAT = "p1:"
_MOST_RAW = (MOST_BYTES - len(_FORMAT)) // 4 * 3 - 4
_ROOM = 30  # for the numbers that follow
_IN_HAND = 1
_MOST_OF_ONE = 15
_LARGEST = 1 << 63


class Mark(NamedTuple):
    """What a group commits for a partition: the offset to read next, and a text beside it."""

    offset: int
    metadata: str = ""


class Suspicion(NamedTuple):
    """What is known of a record that was in hand when a worker ended uncleanly.

    ``ends`` counts the unclean ends while nothing ran beside it, ``spared`` the workers in which others began beside
    it, as it had been waited for or had run for so long. Both stop at 15.
    """

    ends: int = 0
    spared: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of a partition. Offsets all; what is below ``offset`` is settled.

    ``open`` has what was delivered below ``end`` and is not settled: runs, first and last, ascending. ``in_hand`` says
    that a worker has the partition: whoever else reads that knows that it ended uncleanly. Below ``watched_until``
    records are begun only after ``begun`` names them; ``suspects`` were begun so when a worker ended uncleanly. Beside
    the one at ``alone`` nothing runs in its worker's process.
    """

    offset: int
    end: int
    open: tuple[tuple[int, int], ...] = ()
    in_hand: bool = False
    watched_until: int = 0
    begun: frozenset[int] = frozenset()
    suspects: Mapping[int, Suspicion] = field(default_factory=dict)
    alone: int | None = None

    def suspects_now(self) -> dict[int, Suspicion]:
        """Return the suspects as whoever reads this has them: it may tell of one more unclean end.

        Where one ran alone that is the one, and others are not concerned.
        """
        suspects = dict(self.suspects)
        if self.in_hand and self.alone is not None:
            before = suspects.get(self.alone, Suspicion())
            suspects[self.alone] = before._replace(ends=before.ends + 1)
        elif self.in_hand:
            suspects.update({offset: Suspicion() for offset in self.begun if offset not in suspects})
        return suspects

    def mark(self) -> Mark:
        """Return what to commit. Where not all fits, the highest settled ones are left out."""
        if not (self.in_hand or self.open or self.suspects or self.watched_until > self.offset):
            return Mark(self.offset)
        raw = bytearray()
        suspects = sorted((offset, what) for offset, what in self.suspects.items() if offset >= self.offset)
        begun = sorted(offset for offset in self.begun if offset >= self.offset)
        _put(raw, self.offset)
        _put(raw, _IN_HAND if self.in_hand else 0)
        _put(raw, max(self.watched_until - self.offset, 0))
        _put(raw, len(suspects))
        _put_steps(raw, self.offset, (offset for offset, _ in suspects))
        raw.extend(min(what.spared, _MOST_OF_ONE) << 4 | min(what.ends, _MOST_OF_ONE) for _, what in suspects)
        _put(raw, len(begun))
        _put_steps(raw, self.offset, begun)
        _put(raw, 0 if self.alone is None or self.alone < self.offset else self.alone - self.offset + 1)
        if len(raw) > _MOST_RAW // 2:  # more suspects than a worker can have: say no more than who has it
            return Progress(self.offset, self.offset, in_hand=self.in_hand, watched_until=self.watched_until).mark()
        steps = bytearray()
        end, last, named = self.end, self.offset, 0
        for first, until in self.open:
            if len(raw) + len(steps) + _ROOM > _MOST_RAW:
                end = first
                break
            _put(steps, first - last)
            _put(steps, until - first)
            last, named = until, named + 1
        _put(raw, end - self.offset)
        _put(raw, named)
        raw += steps
        return Mark(self.offset, _FORMAT + b64encode(raw + crc32(raw).to_bytes(4, "big")).decode())

    def settled(self, offset: int) -> bool:
        """Whether the record at an offset is known to be settled."""
        if offset >= self.end:
            return False
        run = bisect_right(self.open, offset, key=itemgetter(0)) - 1
        return run < 0 or offset > self.open[run][1]

    @classmethod
    def read(cls, mark: Mark) -> Progress:
        """Return what a mark tells; a text that is none of ours tells nothing beyond the offset."""
        nothing = cls(mark.offset, mark.offset)
        if not mark.metadata.startswith(_FORMAT) or len(mark.metadata) > MOST_BYTES:
            return nothing
        try:
            framed = b64decode(mark.metadata[len(_FORMAT) :], validate=True)
        except (binascii.Error, ValueError):
            return nothing
        raw, sum_ = framed[:-4], framed[-4:]
        if crc32(raw).to_bytes(4, "big") != sum_ or b64encode(framed).decode() != mark.metadata[len(_FORMAT) :]:
            return nothing
        try:
            numbers = iter(raw)
            offset, flags, watched, count = [_take(numbers) for _ in range(4)]
            if offset != mark.offset:  # somebody has moved the group and left the text
                return nothing
            suspicious = _take_steps(numbers, offset, count)
            marks = [Suspicion(byte & 15, byte >> 4) for byte in islice(numbers, count)]
            suspects = dict(zip(suspicious, marks, strict=True))
            begun = frozenset(_take_steps(numbers, offset, _take(numbers)))
            single = _take(numbers)
            end = offset + _take(numbers)
            bounds = _take_steps(numbers, offset, 2 * _take(numbers))
            open_ = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        except (StopIteration, OverflowError, ValueError):
            return nothing
        watched_until = offset + watched if watched else 0
        alone = offset + single - 1 if single else None
        return cls(offset, end, open_, bool(flags & _IN_HAND), watched_until, begun, suspects, alone)


def _put(raw: bytearray, number: int) -> None:
    """Append a number in groups of seven bits, the lowest first."""
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)


def _put_steps(raw: bytearray, start: int, ascending: Iterable[int]) -> None:
    for number in ascending:
        _put(raw, number - start)
        start = number


def _take(raw: Iterator[int]) -> int:
    number = shift = 0
    while (byte := next(raw)) > 0x7F:
        number |= (byte & 0x7F) << shift
        shift += 7
        if number >= _LARGEST:
            raise OverflowError
    return number | byte << shift


def _take_steps(raw: Iterator[int], start: int, count: int) -> list[int]:
    found = []
    for _ in range(count):
        start += _take(raw)
        found.append(start)
    return found
