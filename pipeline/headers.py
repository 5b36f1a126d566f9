"""What a record went through in, its headers out, and back.

Retry records carry ``__pipeline.*`` headers, dead letters ``__dlq.errors.*`` as in KIP-1191; the headers that a record
was written with are kept before them, byte for byte and in order. Spring's ``kafka_dlt-*`` are understood on reading.
Numbers are ASCII digits, as header values that people read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar

from pipeline.errors import PoisonError
from pipeline.failure import Failure
from pipeline.record import Header, Record

__all__ = [
    "EVENT_ID",
    "FORMAT_VERSION",
    "ORIGINAL_TIME",
    "TRACEPARENT",
    "TYPE",
    "DeadLetter",
    "NewerFormat",
    "Origin",
    "RetryState",
    "Try",
    "original",
    "stored_id",
]

EVENT_ID = "id"
TYPE = "type"
TRACEPARENT = "traceparent"

FORMAT_VERSION = 1
_RETRY = "__pipeline."
ORIGINAL_TIME = f"{_RETRY}origin.timestamp.ms"
"""When a record was first written, where it had to be stamped anew."""
_DLQ = "__dlq.errors."
_SPRING = "kafka_dlt-"
_SPRING_WORDS = {
    "original-topic": "topic",
    "original-consumer-group": "group",
    "exception-fqcn": "exception.class",
    "exception-message": "message",
    "exception-stacktrace": "stacktrace",
}
_SPRING_NUMBERS = {"original-partition": "partition", "original-offset": "offset", "original-timestamp": "timestamp"}
_HISTORY = 16  # the first try and the last ones
_LONGEST_NUMBER = 19
_ID_CHARS = 400  # an entry of an index has 2,700 bytes at most, and others may write ids of any length
_LARGEST_COUNT = 1_000_000  # far more than anybody tries, and no more than tables take

J = TypeVar("J", bound="list[Any] | dict[str, Any]")


def stored_id(event_id: str) -> str:
    """Return what stands for an event id in a table: its hash, where it is too long for an index or has U+0000."""
    if len(event_id) > _ID_CHARS or "\0" in event_id:
        return f"sha256:{sha256(event_id.encode()).hexdigest()}"
    return event_id


class NewerFormat(Exception):
    """The state was written by a newer worker: the record waits for one. Not an error of the record."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was first read from. ``timestamp_ms`` is the outbox insert's."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Try:
    """One failed attempt: its number, when it failed (ms since 1970), and the class of its error."""

    attempt: int
    at_ms: int
    kind: str


@dataclass(frozen=True, slots=True)
class RetryState:
    """What a record carries from attempt to attempt.

    ``attempt`` is the number of the attempt that comes next, 1 for the first. ``due_ms`` is when it may begin.
    ``generation`` counts replays that are meant to repeat effects.
    """

    origin: Origin
    attempt: int = 1
    due_ms: int = 0
    generation: int = 0
    first_failure_ms: int | None = None
    first_error: Failure | None = None
    last_error: Failure | None = None
    history: tuple[Try, ...] = ()

    @classmethod
    def first(cls, record: Record) -> RetryState:
        """Return the state of a record that is read from its own topic, whatever its headers say."""
        return cls(Origin(record.topic, record.partition, record.offset, record.timestamp_ms))

    @classmethod
    def of(cls, record: Record) -> RetryState:
        """Read the state of a record on a retry topic; one without is at its first attempt.

        Raises NewerFormat, or PoisonError where a header of ours is corrupt: a record is never tried from the
        beginning again because its count was lost.
        """
        found = {name.removeprefix(_RETRY): value for name, value in record.headers if name.startswith(_RETRY)}
        if not found:
            return cls.first(record)
        if _number(found, "version") > FORMAT_VERSION:
            raise NewerFormat(f"retry state of format {_number(found, 'version')}, this worker knows {FORMAT_VERSION}")
        attempt, generation = _number(found, "attempt"), _number(found, "generation", 0)
        if not 1 <= attempt <= _LARGEST_COUNT or generation > _LARGEST_COUNT:
            raise PoisonError(f"headers {_RETRY}attempt and generation: {attempt} and {generation} cannot be")
        last_error = _failure(found.get("last.error"))
        return cls(
            Origin(
                _word(found, "origin.topic"),
                _number(found, "origin.partition"),
                _number(found, "origin.offset"),
                _number(found, "origin.timestamp.ms"),
            ),
            attempt=attempt,
            due_ms=_number(found, "due.ms", 0),
            generation=generation,
            first_failure_ms=_number(found, "first.failure.ms") if "first.failure.ms" in found else None,
            first_error=_failure(found.get("first.error")) or last_error,
            last_error=last_error,
            history=_history(found.get("history")),
        )

    def failed(self, error: Failure, now_ms: int) -> RetryState:
        """Return the state after the attempt failed, its number not raised: that is for settlement to decide."""
        history = (*self.history, Try(self.attempt, now_ms, error.kind))
        if len(history) > _HISTORY:
            history = (history[0], *history[1 - _HISTORY :])
        return replace(
            self,
            first_failure_ms=now_ms if self.first_failure_ms is None else self.first_failure_ms,
            first_error=self.first_error or error,
            last_error=error,
            history=history,
        )

    def headers(self, record: Record, *, traces: bool = True) -> list[Header]:
        """Return the record's own headers and this state's, for a retry topic. ``traces`` False makes it small."""
        state: list[tuple[str, object]] = [
            ("version", FORMAT_VERSION),
            ("attempt", self.attempt),
            ("due.ms", self.due_ms),
            ("generation", self.generation),
            ("origin.topic", self.origin.topic),
            ("origin.partition", self.origin.partition),
            ("origin.offset", self.origin.offset),
            ("origin.timestamp.ms", self.origin.timestamp_ms),
        ]
        if self.first_failure_ms is not None:
            state.append(("first.failure.ms", self.first_failure_ms))
        if self.first_error is not None and self.first_error != self.last_error:
            state.append(("first.error", _failure_text(self.first_error, traces)))
        if self.last_error is not None:
            state.append(("last.error", _failure_text(self.last_error, traces)))
        if self.history:
            state.append(("history", _history_text(self.history)))
        return [*original(record.headers), *((_RETRY + name, _bytes(value)) for name, value in state)]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter says of itself: where from, which group, how often tried, why, and when it died.

    One of the capture side has no group and no offset, but ``lsn``, where in the WAL its row stands; ``value_bytes`` is
    the length of a value that no topic took, 0 where the value is there.
    """

    origin: Origin
    group: str = ""
    attempts: int = 0
    error: Failure = field(default_factory=lambda: Failure("", ""))
    first_error: Failure | None = None
    first_failure_ms: int | None = None
    died_ms: int = 0
    generation: int = 0
    history: tuple[Try, ...] = ()
    lsn: str = ""
    value_bytes: int = 0

    def headers(self, record: Record, *, traces: bool = True) -> list[Header]:
        """Return the record's own headers and this story's, for the DLQ. ``traces`` False makes it small."""
        story: list[tuple[str, object]] = [
            ("topic", self.origin.topic),
            ("partition", self.origin.partition),
            ("offset", self.origin.offset),
            ("timestamp", self.origin.timestamp_ms),
            ("group", self.group),
            ("delivery.count", self.attempts),
            ("exception.class", self.error.kind),
            ("message", self.error.message),
            ("time", self.died_ms),
            ("generation", self.generation),
        ]
        if traces and self.error.trace:
            story.append(("stacktrace", self.error.trace))
        if self.first_failure_ms is not None:
            story.append(("first.failure.time", self.first_failure_ms))
        if self.first_error is not None and self.first_error != self.error:
            story.append(("first.error", _failure_text(self.first_error, traces)))
        if self.history:
            story.append(("history", _history_text(self.history)))
        return [*original(record.headers), *((_DLQ + name, _bytes(value)) for name, value in story)]

    @classmethod
    def of(cls, record: Record) -> DeadLetter:
        """Read the story of a record on a DLQ, ours, KIP-1191's or Spring's.

        What is missing or unreadable is left at its default: a dead letter must always be possible to look at.
        """
        raw = dict(record.headers)
        found = {name.removeprefix(_DLQ): value for name, value in raw.items() if name.startswith(_DLQ)}
        if not found:
            found = _from_spring(raw)

        def number(name: str, default: int) -> int:
            try:
                return _number(found, name, default)
            except PoisonError:
                return default

        error = Failure(*(_lenient(found.get(name)) for name in ("exception.class", "message", "stacktrace")))
        first = number("first.failure.time", -1)
        try:
            first_error, history = _failure(found.get("first.error")), _history(found.get("history"))
        except PoisonError:
            first_error, history = None, ()
        if first_error is None and error.kind:
            first_error = error
        return cls(
            Origin(_lenient(found.get("topic")), number("partition", -1), number("offset", -1), number("timestamp", 0)),
            group=_lenient(found.get("group")),
            attempts=number("delivery.count", 0),
            error=error,
            first_error=first_error,
            first_failure_ms=None if first < 0 else first,
            died_ms=number("time", record.timestamp_ms),
            generation=number("generation", 0),
            history=history,
            lsn=_lenient(found.get("lsn")),
            value_bytes=number("value.bytes", 0),
        )


def original(headers: Iterable[Header], *, spring: bool = False) -> list[Header]:
    """Return the headers that a record was written with, without what retries and DLQs added.

    ``spring`` takes Spring's away too: for a dead letter that Spring wrote.
    """
    added = (_RETRY, _DLQ, _SPRING) if spring else (_RETRY, _DLQ)
    return [header for header in headers if not header[0].startswith(added)]


def _bytes(value: object) -> bytes:
    """Return a header's value. An error's text can hold what no UTF-8 has, such as half of a surrogate pair."""
    return str(value).encode(errors="backslashreplace")


def _number(found: Mapping[str, bytes | None], name: str, default: int | None = None) -> int:
    value = found.get(name)
    if value is None and default is not None and name not in found:
        return default
    if not value or not value.isdigit() or len(value) > _LONGEST_NUMBER:
        raise PoisonError(f"header {_RETRY}{name}: not a number")
    return int(value)


def _word(found: Mapping[str, bytes | None], name: str) -> str:
    try:
        word = (found.get(name) or b"").decode()
    except UnicodeDecodeError:
        word = ""
    if not word:
        raise PoisonError(f"header {_RETRY}{name}: empty or not text")
    return word


def _lenient(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _failure_text(failure: Failure, traces: bool) -> str:
    data = {"class": failure.kind, "message": failure.message}
    if traces and failure.trace:
        data["trace"] = failure.trace
    return json.dumps(data, ensure_ascii=False)


def _failure(value: bytes | None) -> Failure | None:
    if value is None:
        return None
    data = _json(value, dict)
    return Failure(*(str(data.get(name, "")) for name in ("class", "message", "trace")))


def _history_text(history: tuple[Try, ...]) -> str:
    return json.dumps([[one.attempt, one.at_ms, one.kind] for one in history], ensure_ascii=False)


def _history(value: bytes | None) -> tuple[Try, ...]:
    if value is None:
        return ()
    try:
        return tuple(Try(int(attempt), int(at_ms), str(kind)) for attempt, at_ms, kind in _json(value, list))
    except (TypeError, ValueError, ArithmeticError):
        raise PoisonError(f"header {_RETRY}history: not a list of attempts") from None


def _json(value: bytes, kind: type[J]) -> J:
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, kind):
        raise PoisonError(f"header of {_RETRY}: not the JSON it should be")
    return data


def _from_spring(raw: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    """Return Spring's headers under KIP-1191's names. Its numbers are big-endian integers."""
    found: dict[str, bytes | None] = {}
    for theirs, ours in _SPRING_WORDS.items():
        if (word := raw.get(_SPRING + theirs)) is not None:
            found[ours] = word
    for theirs, ours in _SPRING_NUMBERS.items():
        if (number := raw.get(_SPRING + theirs)) is not None:
            found[ours] = str(int.from_bytes(number, "big")).encode()
    return found
