"""A record of a DLQ topic in, a dead letter out: what died, where, of what, and whether it can be sent back.

Reading never fails: a header that is missing or corrupt becomes a stated flaw of the letter, so that everything on
a DLQ can be looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PureWindowsPath
from typing import Literal, NamedTuple

from pipeline.errors import ConfigError
from pipeline.headers import EVENT_ID, TYPE, DeadLetter, original
from pipeline.record import Header, Record

__all__ = ["STATES", "Count", "Letter", "Place", "Selection", "State", "Summary"]

State = Literal["open", "redriven", "discarded", "unknown"]
STATES: tuple[State, ...] = ("open", "redriven", "discarded")

_LATEST_MS = 253_402_300_799_000  # the last second of year 9999
_ID_CHARS = 200  # a longer one is cut: it is looked up by an index
_TYPE_CHARS = 300
_PLACE = re.compile(r"(?P<topic>[^\[\]@]+)\[(?P<partition>\d{1,9})\]@(?P<offset>\d{1,18})")
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line \d+, in (?P<function>\S+)')
_SPRING = "kafka_dlt-"
_OURS = "__dlq.errors."


class Place(NamedTuple):
    """Where a record stands, written ``topic[partition]@offset``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``topic[partition]@offset``. Raises ConfigError."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is no place of a record", remedy="topic[partition]@offset, as dlq list has it")
        return cls(found["topic"], int(found["partition"]), int(found["offset"]))


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept of a letter in a table: no payload, no error text, as both can hold personal data.

    ``error`` is the class of the error, ``fingerprint`` that of class and place in the code; letters that died of the
    same thing share it.
    """

    place: Place
    event_id: str | None
    type: str | None
    error: str
    fingerprint: str
    died_at: datetime
    state: State = "unknown"


@dataclass(frozen=True, slots=True)
class Count:
    """How many letters of a topic died of one thing."""

    topic: str
    type: str | None
    error: str
    fingerprint: str
    letters: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those that fit everything that is set.

    ``error`` is an error's class with or without its module, or a fingerprint. ``since`` is the first moment of
    death that counts, ``until`` the first that does not.
    """

    topics: tuple[str, ...]
    states: tuple[State, ...] = ("open",)
    places: tuple[Place, ...] = ()
    event_ids: tuple[str, ...] = ()
    type: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, letter: Summary) -> bool:
        """Tell whether a letter is meant. A letter of unknown state is never left out for its state."""
        return (
            letter.place.topic in self.topics
            and (letter.state == "unknown" or letter.state in self.states)
            and (not self.places or letter.place in self.places)
            and (not self.event_ids or letter.event_id in self.event_ids)
            and (self.type is None or letter.type == self.type)
            and (self.error is None or self._takes_error(letter))
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at < self.until)
        )

    def _takes_error(self, letter: Summary) -> bool:
        return self.error in {letter.error, letter.error.rpartition(".")[2], letter.fingerprint}


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter with its bytes. ``flaws`` says what of its headers is missing or corrupt."""

    record: Record
    story: DeadLetter
    event_id: str | None
    type: str | None
    fingerprint: str
    flaws: tuple[str, ...]

    @classmethod
    def of(cls, record: Record) -> Letter:
        """Read a record of a DLQ topic, ours, KIP-1191's or Spring's."""
        story = DeadLetter.of(record)
        return cls(
            record,
            story,
            _text(record.headers, EVENT_ID, _ID_CHARS),
            _text(record.headers, TYPE, _TYPE_CHARS),
            _fingerprint(story),
            tuple(_flaws(record, story)),
        )

    @property
    def place(self) -> Place:
        """Where it stands on the DLQ."""
        return Place(self.record.topic, self.record.partition, self.record.offset)

    @property
    def captured(self) -> bool:
        """Tell whether the capture side wrote it: no group has read its record yet."""
        return bool(self.story.lsn)

    @property
    def written(self) -> list[Header]:
        """The headers that the record was first written with."""
        spring = not any(name.startswith(_OURS) for name, _ in self.record.headers)
        return original(self.record.headers, spring=spring)

    @property
    def died_at(self) -> datetime:
        """When it died; when it reached the DLQ where the header has no sensible time."""
        died_ms = next(ms for ms in (self.story.died_ms, self.record.timestamp_ms, 0) if 0 <= ms <= _LATEST_MS)
        return datetime.fromtimestamp(died_ms / 1000, UTC)

    def summary(self) -> Summary:
        """Return what a table keeps of it."""
        error = _storable(self.story.error.kind) or "unknown"
        return Summary(self.place, self.event_id, self.type, error, self.fingerprint, self.died_at)


def _text(headers: list[Header], name: str, limit: int) -> str | None:
    """Return a header's text, the first of that name; bytes that are none are replaced, so that it can be shown."""
    value = next((value for found, value in headers if found == name), None)
    return _storable(value.decode(errors="replace"))[:limit] or None if value else None


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # PostgreSQL's text cannot hold it


def _fingerprint(story: DeadLetter) -> str:
    """Hash the error's class and the function it was raised in: lines move with every change, messages vary."""
    first = story.error.trace.partition("\ncaused the error above it:\n")[0]
    frames = list(_FRAME.finditer(first))
    where = (
        f"{PureWindowsPath(frames[-1]['file']).name}:{frames[-1]['function']}" if frames else ""
    )  # any system's path
    return sha256(f"{story.error.kind}\n{where}".encode()).hexdigest()[:12]


def _flaws(record: Record, story: DeadLetter) -> list[str]:
    found = []
    ours = {name for name, _ in record.headers if name.startswith(_OURS)}
    if not ours and not any(name.startswith(_SPRING) for name, _ in record.headers):
        return ["it has no headers of a dead letter"]
    if not story.origin.topic:
        found.append("its original topic is not known")
    if story.lsn:
        return found + ([f"its value of {story.value_bytes} bytes is not here"] if story.value_bytes else [])
    if story.origin.partition < 0 or story.origin.offset < 0:
        found.append("its original partition or offset is missing or not a number")
    if not story.group:
        found.append("its group is not known")
    counted = dict(record.headers).get(f"{_OURS}delivery.count")
    if counted is not None and not counted.isdigit():
        found.append("its number of attempts is not a number")
    if not 0 <= story.died_ms <= _LATEST_MS:
        found.append("its time of death is not a time")
    return found
