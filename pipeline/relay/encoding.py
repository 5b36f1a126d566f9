"""Batches of records with JSON values in, the same with Avro values in the registry's wire format out.

Encoded by the newest schema of the subject of topic and type, or converted as Kafka Connect's Avro converters do it. A
value that does not fit is dead; while the registry cannot tell a schema, or take one, the batch waits, nothing
overtakes it, and the relay is not ready.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from pipeline.capture import Batch, Headers, Routed, Unencoded, weight
from pipeline.codec import frame
from pipeline.errors import PoisonError, SchemaError
from pipeline.fitting import Fitting
from pipeline.relay.delivery import Health
from pipeline.subject import DEFAULT_STRATEGY, SubjectStrategy, subject_of

__all__ = ["Convert", "ConvertedSource", "EncodedSource", "Source", "Subjects"]

_FRESH_S = 30.0
_AGAIN_S = 1.0
_PAUSE_S = 0.2


class Source(Protocol):
    """The relay's source, as pipeline.relay has it."""

    def start(self) -> bool:
        """Begin, or go on; False where another is active."""

    def read(self, wait_s: float) -> Batch:
        """Return what has come."""

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Take note of what is acknowledged."""

    def close(self) -> None:
        """End."""


class Subjects(Protocol):
    """The registry."""

    def latest(self, subject: str) -> tuple[int, str]:
        """Return id and text of the newest version. Raises SchemaError, retryable, where it cannot be had."""


Convert = Callable[[str, bytes], bytes | None]
"""Takes a topic and a key or a value. Raises SchemaError where it is to wait, PoisonError where it is dead."""


class _WaitingSource(ABC):
    """A source whose records are encoded one after the other, each as soon as the registry lets it."""

    def __init__(
        self, source: Source, health: Health, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._source = source
        self._health = health
        self._clock = clock
        self._sleep = sleep
        self._waiting: Batch | None = None
        self._next = 0  # of the waiting batch: not encoded from here on
        self._ask_at = 0.0
        self.confirm = source.confirm
        self.close = source.close

    def start(self) -> bool:
        """Begin, or go on; a batch that waits is kept unless another process is active now."""
        active = self._source.start()
        if not active and self._waiting is not None:
            self._waiting = None
            self._health.ready("registry")
        return active

    def read(self, wait_s: float) -> Batch:
        """Return what has come, encoded; an empty batch while the registry is waited for."""
        if self._waiting is None:
            self._waiting, self._next = self._source.read(wait_s), 0
        elif self._clock() < self._ask_at:
            self._sleep(min(wait_s, _PAUSE_S))
            return Batch(lsn=self._waiting.lsn)
        batch = self._waiting
        try:
            while self._next < len(batch.records):
                self._encode(batch, self._next)
                self._next += 1
        except SchemaError as error:
            self._ask_at = self._clock() + _AGAIN_S
            self._health.not_ready("registry", error.what)
            return Batch(lsn=batch.lsn)
        if batch.records:
            self._health.ready("registry")
        self._waiting = None
        return batch

    @abstractmethod
    def _encode(self, batch: Batch, index: int) -> None:
        """Encode a record in its place. Raises SchemaError where it is to wait."""


class ConvertedSource(_WaitingSource):
    """A source whose keys, values or both are converted; None: they are bytes as they are to be."""

    def __init__(
        self,
        source: Source,
        key: Convert | None,
        value: Convert | None,
        health: Health,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(source, health, clock, sleep)
        self._key = key
        self._value = value

    def _encode(self, batch: Batch, index: int) -> None:
        record = batch.records[index]
        topic, key, value, headers, at_ms, partition = record
        if index in batch.dead:
            if (self._key and key is not None) or (self._value and value is not None):
                _leave(batch, index, record)
            return
        try:
            if self._key and key is not None:
                key = self._key(topic, key)
            if self._value and value is not None:
                value = self._value(topic, value)
        except PoisonError as error:
            batch.dead[index] = (Unencoded(f"{topic}: {error.what}", record), batch.lsn)
            return
        made = (topic, key, value, headers, at_ms, partition)
        batch.size += weight(made) - weight(record)
        batch.records[index] = made


class EncodedSource(_WaitingSource):
    """A source whose values are encoded. A schema is asked for anew each 30 s, and when a value does not fit."""

    def __init__(
        self,
        source: Source,
        subjects: Subjects,
        health: Health,
        *,
        strategy: SubjectStrategy = DEFAULT_STRATEGY,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(source, health, clock, sleep)
        self._subjects = subjects
        self._strategy = strategy
        self._known: dict[str, tuple[int, Fitting, float]] = {}

    def _encode(self, batch: Batch, index: int) -> None:
        topic, key, value, headers, at_ms, partition = batch.records[index]
        if value is None:
            return
        if index in batch.dead:
            _leave(batch, index, batch.records[index])
            return
        subject = subject_of(topic, _type(headers), self._strategy)
        try:
            encoded = self._encoded(subject, value)
        except PoisonError as error:
            batch.dead[index] = (Unencoded(f"{subject}: {error.what}", batch.records[index]), batch.lsn)
            return
        batch.size += len(encoded) - len(value)
        batch.records[index] = (topic, key, encoded, headers, at_ms, partition)

    def _encoded(self, subject: str, value: bytes) -> bytes:
        schema_id, fitting, asked_at = self._schema(subject, older_than_s=_FRESH_S)
        try:
            return frame(schema_id, fitting.body(value))
        except PoisonError:
            newest = self._schema(subject, older_than_s=_AGAIN_S) if self._clock() - asked_at > _AGAIN_S else None
            if newest is None or newest[0] == schema_id:
                raise
            return frame(newest[0], newest[1].body(value))

    def _schema(self, subject: str, *, older_than_s: float) -> tuple[int, Fitting, float]:
        """Return a subject's schema, asked for anew where what is known is older; else what is known goes on."""
        known = self._known.get(subject)
        now = self._clock()
        if known is not None and now - known[2] <= older_than_s:
            return known
        try:
            schema_id, text = self._subjects.latest(subject)
        except SchemaError:
            if known is None:
                raise
            schema_id, fitting, _ = known
        else:
            fitting = known[1] if known is not None and known[0] == schema_id else Fitting(text)
        self._known[subject] = found = (schema_id, fitting, now)
        return found


def _leave(batch: Batch, index: int, record: Routed) -> None:
    """Note of a row that is dead already that it was not encoded."""
    error, lsn = batch.dead[index]
    batch.dead[index] = (Unencoded(error.what, record), lsn)


def _type(headers: Headers) -> str:
    found = dict(headers).get("type")
    return found.decode(errors="replace") if isinstance(found, bytes) else found or ""
