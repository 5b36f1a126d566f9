"""DLQ topics in, their letters where they can be asked for out: in a table, or in memory where there is no database.

A letter is seen at least once and entered once: its state is never overwritten. Reading ends where the topic ended
when it began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

from pipeline.deadletter import Count, Letter, Place, Selection, State, Summary
from pipeline.record import Record

__all__ = ["Archive", "Scan", "Table", "project"]

_BATCH = 1000


class Archive(Protocol):
    """What stands on topics, read without a group."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition → first offset that is still there, and the one after the last."""

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Record]:
        """Records from ``start`` to before ``end``, in order."""


class Table(Protocol):
    """Where letters are entered."""

    def next_offset(self, topic: str, partition: int) -> int:
        """The offset after the last one entered; 0 where there is none."""

    def enter(self, letters: Sequence[Summary]) -> None:
        """Enter letters as open, all or none; one that is there already stays as it is."""

    def forget(self, topic: str, partition: int) -> int:
        """Remove the letters of a partition and return how many there were."""


def project(topics: Iterable[str], archive: Archive, table: Table) -> dict[str, int]:
    """Enter what came since the last time. Return topic → letters that were forgotten because it was made anew."""
    forgotten: Counter[str] = Counter()
    for topic in topics:
        for partition, (first, end) in sorted(archive.bounds(topic).items()):
            begin = table.next_offset(topic, partition)
            if begin > end:  # offsets never go back: this is another topic of the same name
                forgotten[topic] += table.forget(topic, partition)
                begin = 0
            records = archive.read(topic, partition, max(begin, first), end)
            while batch := [Letter.of(record).summary() for record in islice(records, _BATCH)]:
                table.enter(batch)
    return dict(forgotten)


class Scan:
    """The letters of topics, in memory, as they stood when it was made. Their states are unknown and stay so."""

    def __init__(self, topics: Iterable[str], archive: Archive) -> None:
        self._letters = [
            Letter.of(record).summary()
            for topic in sorted(topics)
            for partition, (first, end) in sorted(archive.bounds(topic).items())
            for record in archive.read(topic, partition, first, end)
        ]

    def page(self, selection: Selection, after: Place | None, limit: int) -> list[Summary]:
        """Return letters, the newest of a partition first, from after ``after``."""
        found = [one for one in reversed(self._letters) if selection.takes(one) and (not after or one.place < after)]
        return found[:limit]

    def counts(self, selection: Selection) -> list[Count]:
        """Return how many letters died of what."""
        kinds = Counter(
            (one.place.topic, one.type, one.error, one.fingerprint) for one in self._letters if selection.takes(one)
        )
        return [Count(*kind, letters) for kind, letters in kinds.most_common()]

    @contextmanager
    def claim(self, selection: Selection, after: Place | None, limit: int) -> Iterator[list[Place]]:
        """Give the places of letters, the oldest of a partition first, from after ``after``."""
        found = (one.place for one in self._letters if selection.takes(one) and (not after or one.place > after))
        yield list(islice(found, limit))

    def mark(self, places: Sequence[Place], state: State) -> None:
        """Do nothing: there is nowhere to keep it."""
