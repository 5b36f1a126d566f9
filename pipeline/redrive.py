"""Dead letters in, their records back on their group's retry topic out.

At least once: a letter counts as redriven only after the broker has acknowledged its record. A crash between sends it
again, never loses it; two redrives at once do not send the same letter twice. Key, value and the headers that the
record was written with go back byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, cast

from pipeline.deadletter import Count, Letter, Place, Selection, State
from pipeline.errors import BrokerError
from pipeline.headers import RetryState
from pipeline.record import Record
from pipeline.topics import retry_tier

__all__ = ["Archive", "Outcome", "Plan", "Producer", "Redrive", "States", "discard", "plan"]

_PAGE = 500
_STALLED_S = 60.0


class States(Protocol):
    """What is known of letters: the table, or a scan of the topics."""

    def counts(self, selection: Selection) -> list[Count]:
        """How many letters died of what."""

    def claim(self, selection: Selection, after: Place | None, limit: int) -> AbstractContextManager[list[Place]]:
        """Letters, oldest first, that nobody else takes meanwhile."""

    def mark(self, places: Sequence[Place], state: State) -> None:
        """Keep their new state. Within a claim: when it ends."""


class Archive(Protocol):
    """The DLQ topics."""

    def fetch(self, places: Iterable[Place]) -> Iterator[Record]:
        """The records at these places, as far as they are still there."""


class Producer(Protocol):
    """Stores records on retry topics: ``pipeline.kafka.producer.AckProducer``."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        timestamp_ms: int,
        token: object,
    ) -> None:
        """Queue one record."""

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        """Token and error of what was stored or refused."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a redrive or discard would do. ``letters`` counts those that it would take, ``limit`` applied."""

    counts: list[Count]
    targets: Mapping[str, str | None]
    letters: int


@dataclass(slots=True)
class Outcome:
    """What became of the letters. ``kept`` are those that stay dead, by reason."""

    redriven: int = 0
    targets: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


def plan(selection: Selection, states: States, groups: Mapping[str, str | None], limit: int | None) -> Plan:
    """Count what is selected, by what it died of. ``groups`` maps DLQ topic → group, None: its letters name it."""
    counts = states.counts(selection)
    total = sum(count.letters for count in counts)
    targets = {
        topic: retry_tier(group, 0) if (group := groups.get(topic)) else None
        for topic in sorted({count.topic for count in counts})
    }
    return Plan(counts, targets, total if limit is None else min(total, limit))


class Redrive:
    """One run. ``topics`` names the topics there are; ``rate`` is records a second at most, None as fast as it goes."""

    def __init__(
        self,
        states: States,
        archive: Archive,
        producer: Producer,
        *,
        groups: Mapping[str, str | None],
        topics: frozenset[str],
        rate: float | None = None,
        clock: Callable[[], float],
        now_ms: Callable[[], int],
        pause: Callable[[float], None],
        progress: Callable[[int], None] = lambda _done: None,
    ) -> None:
        self._states = states
        self._archive = archive
        self._producer = producer
        self._groups = groups
        self._topics = topics
        self._rate = rate
        self._clock = clock
        self._now_ms = now_ms
        self._pause = pause
        self._progress = progress
        self.outcome = Outcome()

    def run(self, selection: Selection, limit: int | None = None) -> Outcome:
        """Send the selected letters back, oldest first, ``limit`` at most.

        Raises BrokerError where the broker does not take a record; what it took until then is marked, and counted in
        ``outcome``.
        """
        # letters are locked while they are on their way: at a low rate fewer of them
        page = _PAGE if self._rate is None else max(1, min(_PAGE, int(self._rate)))
        began, taken, after = self._clock(), 0, None
        while limit is None or taken < limit:
            wanted = page if limit is None else min(page, limit - taken)
            with self._states.claim(selection, after, wanted) as places:
                if not places:
                    break
                stored, error = self._send(places)
                # marked also when others failed: what was stored must not be sent again
                self._states.mark(stored, "redriven")
            self.outcome.redriven += len(stored)
            self._progress(len(places))
            if error is not None:
                what = f"{error.what}; {self.outcome.redriven} letters were redriven before"
                raise BrokerError(what, remedy=error.remedy, retryable=error.retryable) from error
            taken += len(places)
            after = places[-1]
            if self._rate is not None:
                self._pause(max(0.0, began + taken / self._rate - self._clock()))
        return self.outcome

    def _send(self, places: Sequence[Place]) -> tuple[list[Place], BrokerError | None]:
        """Send a page and wait for the broker. Return what it stored and the first error."""
        found: set[Place] = set()
        waiting: set[Place] = set()
        stored: list[Place] = []
        failed: BrokerError | None = None
        try:
            for record in self._archive.fetch(places):
                letter = Letter.of(record)
                found.add(letter.place)
                target = self._target(letter)
                if target is not None:
                    self._producer.send(target, record.key, record.value, self._headers(letter), 0, letter.place)
                    waiting.add(letter.place)
                    self.outcome.targets[target] += 1
        except BrokerError as error:
            failed = error  # what was sent before is waited for all the same
        if failed is None and (gone := len(places) - len(found)):
            self.outcome.kept["its record is no longer on the topic"] += gone
        heard = self._clock()
        while waiting and self._clock() < heard + _STALLED_S:
            for token, refused in self._producer.poll(0.1):
                heard = self._clock()
                place = cast(Place, token)
                waiting.discard(place)
                if refused is None:
                    stored.append(place)
                else:
                    failed = failed or refused
        if waiting and failed is None:
            failed = BrokerError(
                f"Kafka: no acknowledgement for {len(waiting)} records within {_STALLED_S:.0f} s",
                remedy="is the broker up? Redrive again: what was not acknowledged is still open",
                retryable=True,
            )
        return stored, failed

    def _target(self, letter: Letter) -> str | None:
        """Return where a letter goes; None, and a reason counted, where it cannot go anywhere."""
        group = letter.story.group or self._groups.get(letter.place.topic)
        origin = letter.story.origin
        reason = ""
        if not group:
            reason = "its group is not known (--group names it)"
        elif not origin.topic or origin.partition < 0 or origin.offset < 0:
            reason = "its headers do not say where it came from"
        elif retry_tier(group, 0) not in self._topics:
            reason = f"topic {retry_tier(group, 0)} does not exist (pipeline topics apply)"
        if reason or not group:
            self.outcome.kept[reason] += 1
            return None
        return retry_tier(group, 0)

    def _headers(self, letter: Letter) -> list[tuple[str, str | bytes | None]]:
        """Return the headers it was written with, and the state of a record at its first attempt."""
        story = letter.story
        state = RetryState(story.origin, attempt=1, due_ms=self._now_ms(), generation=story.generation)
        return list(state.headers(letter.record._replace(headers=letter.written)))


def discard(selection: Selection, states: States, limit: int | None = None) -> int:
    """Mark the selected letters as discarded and return how many. Their records stay on the topic."""
    done, after = 0, None
    while limit is None or done < limit:
        wanted = _PAGE if limit is None else min(_PAGE, limit - done)
        with states.claim(selection, after, wanted) as places:
            if not places:
                break
            states.mark(places, "discarded")
        done += len(places)
        after = places[-1]
    return done
