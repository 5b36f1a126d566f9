"""Dead letters of the broker in memory, as ``pipeline.redrive`` asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.deadletter import Count, Letter, Place, Selection, State
from pipeline.record import Record
from pipeline.testing.broker import Broker

__all__ = ["Letters"]


class Letters:
    """States of letters, and the DLQ topics that hold them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._states: dict[Place, State] = {}

    def open(self, topics: Iterable[str]) -> list[Letter]:
        """Return the letters that were neither redriven nor discarded, oldest first."""
        found = [Letter.of(record) for topic in topics for record in self._broker.records(topic)]
        return sorted((one for one in found if one.place not in self._states), key=lambda one: one.story.died_ms)

    def counts(self, selection: Selection) -> list[Count]:
        """Count the selected letters by what they died of."""
        found = [letter.summary() for letter in self.open(selection.topics)]
        counted = Counter((s.place.topic, s.type, s.error, s.fingerprint) for s in found if selection.takes(s))
        return [Count(*what, letters) for what, letters in counted.items()]

    @contextmanager
    def claim(self, selection: Selection, after: Place | None, limit: int) -> Iterator[list[Place]]:
        """Give the places of selected letters."""
        places = sorted(one.place for one in self.open(selection.topics) if selection.takes(one.summary()))
        yield [place for place in places if after is None or place > after][:limit]

    def mark(self, places: Sequence[Place], state: State) -> None:
        """Keep their new state."""
        self._states.update(dict.fromkeys(places, state))

    def fetch(self, places: Iterable[Place]) -> Iterator[Record]:
        """Give the records at these places."""
        for topic, partition, offset in sorted(places):
            yield from self._broker.read(topic, partition, offset, 1)
