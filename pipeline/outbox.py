"""Messages in, the statements that store them as outbox rows out. Pure: drivers run the statements.

Written in the caller's transaction: the row exists exactly when that transaction commits. The payload is encoded
here, so a message that does not fit its schema fails the transaction before anything is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from os import urandom
from typing import Any, TypeVar
from uuid import UUID

from pipeline.avro import schema_of
from pipeline.codec import encode, subject_of
from pipeline.errors import ConfigError, SchemaError
from pipeline.event import Message

__all__ = ["Envelope", "Outbox", "SchemaIds", "Statement", "Steps", "adrive", "drive", "uuid7"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with ``%s`` placeholders, and the parameters of each execution. No quoted ``%s`` stands in the SQL."""

    sql: str
    rows: Sequence[tuple[Any, ...]]
    returns: bool = False


Steps = Generator[Statement, list[tuple[Any, ...]], T]
"""Statements to run one after another; the rows of one that ``returns`` are sent back in. Its value is the result.

One code path for every driver, sync or async: a driver only knows how to run a Statement.
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with what its row needs beside it. ``headers`` become the row's jsonb."""

    message: Message
    topic: str
    headers: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None


def drive(steps: Steps[T], execute: Callable[[Statement], list[tuple[Any, ...]]]) -> T:
    """Run the statements one after another with a driver's ``execute``; return the result."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(execute(statement))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def adrive(steps: Steps[T], execute: Callable[[Statement], Awaitable[list[tuple[Any, ...]]]]) -> T:
    """Run the statements with an async driver's ``execute``; return the result."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(await execute(statement))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


class SchemaIds:
    """Schema ids as ``pipeline schema push`` stored them, remembered once seen. Ids never change."""

    def __init__(self, schema: str = "pipeline") -> None:
        self._sql = f"SELECT schema_id FROM {_quoted(schema)}.schema_id WHERE subject = %s AND fingerprint = %s"  # noqa: S608 — quoted
        self._known: dict[tuple[str, bytes], int] = {}

    def find(self, topic: str, model: type[Message]) -> Steps[int | None]:
        """Look a message class's own exact schema up, never the subject's latest. None for a JSON message."""
        if model.message_type.format == "json":
            return None
        schema = schema_of(model)
        key = (subject_of(topic, schema.name), schema.fingerprint)
        if key not in self._known:
            rows = yield Statement(self._sql, [key], returns=True)
            if not rows:
                raise SchemaError(
                    f"{schema.name}: this version of its schema was never pushed (subject {key[0]})",
                    remedy="pipeline schema push MODULE:APP; nothing was written",
                )
            self._known[key] = int(rows[0][0])
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table that rows are written to.

    A table of your own is named by ``schema`` and ``table``; ``columns`` maps our column names to its (None: it has no
    such column), ``extra`` gives further columns a fixed value.
    """

    schema: str = "pipeline"
    table: str = "outbox"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.columns) - set(_COLUMNS)
        if unknown:
            raise ConfigError(
                f"Outbox: no such column: {', '.join(sorted(unknown))}", remedy=f"ours are: {', '.join(_COLUMNS)}"
            )

    def store(
        self, envelopes: Sequence[Envelope], schema_ids: SchemaIds, new_id: Callable[[], UUID]
    ) -> Steps[list[UUID]]:
        """Encode and insert. Returns the event ids, in order.

        Raises SchemaError where a schema was never pushed or a payload does not fit it; nothing is written then.
        """
        ids = [new_id() for _ in envelopes]
        rows = []
        for event_id, envelope in zip(ids, envelopes, strict=True):
            message = envelope.message
            schema_id = yield from schema_ids.find(envelope.topic, type(message))
            rows.append(self._row(event_id, envelope, encode(message, schema_id)))
        yield Statement(self._insert_sql(), rows)
        return ids

    def _row(self, event_id: UUID, envelope: Envelope, payload: bytes) -> tuple[Any, ...]:
        kind = envelope.message.message_type
        key = str(event_id) if kind.key is None else _key_text(getattr(envelope.message, kind.key), kind.name)
        headers = json.dumps(dict(envelope.headers), ensure_ascii=False) if envelope.headers else None
        ours = (
            event_id, kind.stream, key, kind.name, payload, envelope.topic, headers, envelope.traceparent
        )  # fmt: skip
        kept = [value for name, value in zip(_COLUMNS, ours, strict=True) if self.columns.get(name, name)]
        return (*kept, *self.extra.values())

    def _insert_sql(self) -> str:
        names = [self.columns.get(name, name) for name in _COLUMNS]
        columns = [_quoted(name) for name in (*names, *self.extra) if name]
        table = f"{_quoted(self.schema)}.{_quoted(self.table)}"
        return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"  # noqa: S608 — quoted


_COLUMNS = ("id", "aggregatetype", "aggregateid", "type", "payload", "topic", "headers", "traceparent")


def _key_text(value: object, name: str) -> str:
    """A key as text. Kafka compares bytes, so one value must always give the same text."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | UUID) and not isinstance(value, bool):
        text = str(value)
    else:
        raise SchemaError(f"{name}: its key field holds a {type(value).__name__}", remedy="str, int or UUID")
    if not text:
        raise SchemaError(f"{name}: its key field is empty", remedy="give it a value: order is kept per key")
    return text


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def uuid7() -> UUID:
    """Return a time-ordered UUID (RFC 9562, version 7): 48 bits of milliseconds, 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
