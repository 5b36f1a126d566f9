"""Dead letters in, their records out: on their group's retry topic, or, of the capture side, on their own topic.

At least once: a letter counts as redriven only after the broker has acknowledged its record. A crash between sends it
again, never loses it; two redrives at once do not send the same letter twice. Key, value and the headers that the
record was written with go back byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from pipeline.capture import Unencoded
from pipeline.deadletter import Count, Letter, Place, Selection, State
from pipeline.errors import BrokerError
from pipeline.headers import ORIGINAL_TIME, RetryState
from pipeline.record import Record
from pipeline.topics import is_topic, retry_tier

__all__ = ["Archive", "Destinations", "Outcome", "Plan", "Producer", "Redrive", "States", "discard", "plan"]

_PAGE = 500
_EXAMINED = 10_000  # a plan looks at so many letters
_GONE = "its record is no longer on the topic"
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
    """What a redrive or discard would do. ``letters`` counts those that it would take, ``limit`` applied.

    ``targets`` (topic → letters) and ``kept`` (reason → letters that stay dead) are of the oldest ``examined`` letters.
    """

    counts: list[Count]
    letters: int
    targets: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    examined: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of the letters. ``kept`` are those that stay dead, by reason."""

    redriven: int = 0
    targets: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


class Destinations:
    """Where letters go. ``groups`` maps DLQ topic → group, None: its letters name it; ``topics`` are all there are."""

    def __init__(self, groups: Mapping[str, str | None], topics: frozenset[str]) -> None:
        self._groups = groups
        self._topics = topics

    def of(self, letter: Letter) -> tuple[str, str]:
        """Return the topic that a letter goes to; where it cannot go anywhere, nothing and the reason."""
        target, reason = self._captured(letter) if letter.captured else self._handled(letter)
        if not reason and target not in self._topics:
            reason = f"topic {target} does not exist (pipeline topics apply)"
        return ("", reason) if reason else (target, "")

    def _captured(self, letter: Letter) -> tuple[str, str]:
        """Its own topic: no group has read it there."""
        story = letter.story
        if story.value_bytes:
            return (
                "",
                "its value was too large for the DLQ: it is in pipeline.refused_row, see docs/dead-letters.md",
            )
        if story.error.kind == Unencoded.__name__:
            return "", "its value was never encoded: correct the row, or the schema, and publish the row anew"
        if not is_topic(story.origin.topic):
            return "", "its row names no possible topic: correct the row, and publish it anew"
        return story.origin.topic, ""

    def _handled(self, letter: Letter) -> tuple[str, str]:
        """Its group alone, by the topic that only this group reads."""
        group = letter.story.group or self._groups.get(letter.place.topic)
        origin = letter.story.origin
        if not group:
            return "", "its group is not known (--group names it)"
        if not origin.topic or origin.partition < 0 or origin.offset < 0:
            return "", "its headers do not say where it came from"
        return retry_tier(group, 0), ""


def plan(
    selection: Selection,
    states: States,
    limit: int | None,
    *,
    archive: Archive | None = None,
    destinations: Destinations | None = None,
) -> Plan:
    """Count what is selected, by what it died of; and where the letters would go, with ``archive`` to look at them."""
    counts = states.counts(selection)
    total = sum(count.letters for count in counts)
    made = Plan(counts, total if limit is None else min(total, limit))
    if archive is None or destinations is None:
        return made
    taken, after = 0, None
    while taken < (wanted := min(made.letters, _EXAMINED)):
        with states.claim(selection, after, min(_PAGE, wanted - taken)) as places:
            found = [destinations.of(Letter.of(record)) for record in archive.fetch(places)]
        if not places:
            break
        made.targets.update(topic for topic, reason in found if not reason)
        made.kept.update(reason for _, reason in found if reason)
        if gone := len(places) - len(found):
            made.kept[_GONE] += gone
        taken += len(places)
        after = places[-1]
    return replace(made, examined=taken)


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
        self._destinations = Destinations(groups, topics)
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
                target, reason = self._destinations.of(letter)
                if reason:
                    self.outcome.kept[reason] += 1
                else:
                    self._producer.send(target, record.key, record.value, self._headers(letter), 0, letter.place)
                    waiting.add(letter.place)
                    self.outcome.targets[target] += 1
        except BrokerError as error:
            failed = error  # what was sent before is waited for all the same
        if failed is None and (gone := len(places) - len(found)):
            self.outcome.kept[_GONE] += gone
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

    def _headers(self, letter: Letter) -> list[tuple[str, str | bytes | None]]:
        """Return the headers it was written with, and the state of a record at its first attempt.

        A record of the capture side is at no attempt yet; its first time stands in a header, as it is stamped now.
        """
        story = letter.story
        if letter.captured:
            return [*letter.written, (ORIGINAL_TIME, str(story.origin.timestamp_ms))]
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
