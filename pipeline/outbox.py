"""Messages in, the statements that store them as outbox rows out. Pure: drivers run the statements.

Written in the caller's transaction: the row exists exactly when that transaction commits. The payload is encoded
here, so a message that does not fit its schema fails the transaction before anything is written.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import urandom
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID, SafeUUID

from pipeline.avro import schema_of
from pipeline.codec import encode
from pipeline.errors import ConfigError, SchemaError, SourceError
from pipeline.event import Message
from pipeline.row import COLUMNS, copy_data, headers_text, key_text, placeholders, quoted
from pipeline.subject import DEFAULT_STRATEGY, SubjectStrategy, subject_of

__all__ = ["Envelope", "Outbox", "SchemaIds", "Statement", "Steps", "adrive", "drive", "uuid7", "uuids7"]

T = TypeVar("T")
_NO_REGISTRYS = 1 << 31  # and above; 0 is none either
_BATCH = 500  # rows in one INSERT: 8 parameters each, and a statement holds 65,535


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL for one row of ``%s`` parameters, and the rows. Any other ``%`` stands doubled.

    An INSERT names in ``values`` what is repeated for each row, and in ``copy`` the COPY that takes the same rows;
    both are empty where there is no such way.
    """

    sql: str
    rows: Sequence[tuple[Any, ...]]
    returns: bool = False
    values: str = ""
    copy: str = ""

    def batches(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield SQL and parameters that insert many rows at a time: the way that every driver has."""
        for start in range(0, len(self.rows), _BATCH if self.values else 1):
            rows = self.rows[start : start + (_BATCH if self.values else 1)]
            sql = self.sql + f", {self.values}" * (len(rows) - 1)
            yield sql, tuple(value for row in rows for value in row)

    def copy_data(self) -> Iterator[bytes]:
        """Yield what ``copy`` takes from its input, in pieces."""
        return copy_data(self.rows)


Steps = Generator[Statement, list[tuple[Any, ...]], T]
"""Statements to run one after another; the rows of one that ``returns`` are sent back in. Its value is the result.

One code path for every driver, sync or async: a driver only knows how to run a Statement.
"""


class Envelope(NamedTuple):
    """A message with what its row needs beside it. ``headers`` become the row's jsonb."""

    message: Message
    topic: str
    headers: Mapping[str, str] = MappingProxyType({})
    traceparent: str | None = None


def drive(steps: Steps[T], execute: Callable[[Statement], list[tuple[Any, ...]]]) -> T:
    """Run the statements one after another with a driver's ``execute``; return the result.

    What ``execute`` raises comes out of the step that asked for it.
    """
    try:
        statement = next(steps)
        while True:
            try:
                rows = execute(statement)
            except BaseException as error:  # noqa: BLE001 — it is the steps' to raise
                statement = steps.throw(error)
            else:
                statement = steps.send(rows)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


async def adrive(steps: Steps[T], execute: Callable[[Statement], Awaitable[list[tuple[Any, ...]]]]) -> T:
    """Run the statements with an async driver's ``execute``; return the result."""
    try:
        statement = next(steps)
        while True:
            try:
                rows = await execute(statement)
            except BaseException as error:  # noqa: BLE001 — as above
                statement = steps.throw(error)
            else:
                statement = steps.send(rows)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


class SchemaIds:
    """Schema ids as ``pipeline schema push`` stored them, remembered once seen. Ids never change.

    An id that no registry gives (``pipeline.testing`` has such) is not remembered: it must not meet a real database.
    """

    def __init__(self, schema: str = "pipeline", strategy: SubjectStrategy = DEFAULT_STRATEGY) -> None:
        self._sql = f"SELECT schema_id FROM {quoted(schema)}.schema_id WHERE subject = %s AND fingerprint = %s"  # noqa: S608 — quoted
        self._strategy = strategy
        self._known: dict[tuple[str, bytes], int] = {}

    def find(self, topic: str, model: type[Message]) -> Steps[int | None]:
        """Look a message class's own exact schema up, never the subject's latest. None for a JSON message."""
        if model.message_type.format == "json":
            return None
        schema = schema_of(model)
        key = (subject_of(topic, schema.name, self._strategy), schema.fingerprint)
        if key not in self._known:
            rows = yield Statement(self._sql, [key], returns=True)
            if not rows:
                raise SchemaError(
                    f"{schema.name}: this version of its schema was never pushed (subject {key[0]})",
                    remedy="pipeline schema push MODULE:APP; nothing was written",
                )
            schema_id = int(rows[0][0])
            if not 0 < schema_id < _NO_REGISTRYS:
                return schema_id
            self._known[key] = schema_id
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table that rows are written to.

    A table of your own is named by ``schema`` and ``table``; ``columns`` maps our column names to its (None: it has no
    such column), ``extra`` gives further columns a fixed value. ``payload="json"``: its payload column is json, jsonb
    or text, so that only messages with ``format="json"`` go into it.

    ``retain="none"`` deletes each row in the transaction that wrote it: it is in the WAL, and the table stays empty.
    ``slots`` names all replication slots that read it. A row is refused while one of them is not there: nobody could
    find it any more.
    """

    schema: str = "pipeline"
    table: str = "outbox"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    payload: Literal["bytes", "json"] = "bytes"
    retain: Literal["pruned", "none"] = "pruned"
    slots: tuple[str, ...] = ()
    _insert: tuple[str, str, str] = field(init=False, repr=False, compare=False)
    _remove: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_retention()
        unknown = set(self.columns) - set(COLUMNS)
        if unknown:
            raise ConfigError(
                f"Outbox: no such column: {', '.join(sorted(unknown))}", remedy=f"ours are: {', '.join(COLUMNS)}"
            )
        without = [name for name in ("id", "aggregateid", "payload") if self.columns.get(name, name) is None]
        if without:
            raise ConfigError(
                f"Outbox: a table without {' and '.join(without)} cannot be captured", remedy="name the column"
            )
        names = [
            name for name in (*(self.columns.get(name, name) for name in COLUMNS), *self.extra) if name is not None
        ]
        if len(set(names)) < len(names) or not all((self.schema, self.table, *names)):
            raise ConfigError(
                f"Outbox: {self.schema}.{self.table}: a name is empty, or stands for two columns: {', '.join(names)}",
                remedy="give each column once, in columns or in extra",
            )
        target = f"{quoted(self.schema)}.{quoted(self.table)} ({', '.join(map(quoted, names))})"
        kept = [name for name in COLUMNS if self.columns.get(name, name) is not None]
        values = placeholders(kept, len(self.extra), self.payload)
        # COPY has no row-level security and wants our types: it is for our own table
        ours = (self.schema, self.table) == ("pipeline", "outbox") and not self.columns and not self.extra
        copy = f"COPY {target} FROM STDIN (FORMAT binary)" if ours and self.payload == "bytes" else ""
        object.__setattr__(self, "_insert", (f"INSERT INTO {target} VALUES {values}", values, copy))  # noqa: S608 — quoted
        id_column = quoted(self.columns.get("id") or "id")
        remove = _REMOVE.format(
            table=f"{quoted(self.schema)}.{quoted(self.table)}", id=id_column, slots=len(self.slots)
        )
        object.__setattr__(self, "_remove", remove)

    def _check_retention(self) -> None:
        if self.retain not in {"pruned", "none"}:
            raise ConfigError(f"Outbox: retain={self.retain!r}", remedy="pruned or none")
        if not isinstance(self.slots, tuple) or not all(isinstance(slot, str) and slot for slot in self.slots):
            raise ConfigError(f"Outbox: slots={self.slots!r}", remedy='a tuple of names: slots=("pipeline_outbox",)')
        if (self.retain == "none") != bool(self.slots):
            raise ConfigError(
                f"Outbox: retain={self.retain!r} with slots={self.slots!r}: rows may go at once only where a slot is "
                "known to have them",
                remedy='Outbox(retain="none", slots=("pipeline_outbox",)), with slot.name of each connector file',
            )

    def store(
        self, envelopes: Sequence[Envelope], schema_ids: SchemaIds, new_ids: Callable[[int], list[UUID]]
    ) -> Steps[list[UUID]]:
        """Encode and insert. Returns the event ids, in order; ``new_ids`` makes as many as it is asked for.

        Raises SchemaError where a schema was never pushed or a payload does not fit it; nothing is written then.
        """
        ids = new_ids(len(envelopes))
        rows = []
        found: dict[tuple[str, type[Message]], int | None] = {}
        for event_id, envelope in zip(ids, envelopes, strict=True):
            key = (envelope.topic, type(envelope.message))
            if key not in found:
                found[key] = yield from schema_ids.find(*key)
            rows.append(self.row(event_id, envelope, found[key]))
        if rows:
            yield from self.put(rows, ids)
        return ids

    def put(self, rows: Sequence[tuple[Any, ...]], ids: Sequence[UUID]) -> Steps[None]:
        """Store rows that ``row`` made. Raises as ``leave`` does."""
        sql, values, copy = self._insert
        yield Statement(sql, rows, values=values, copy=copy)
        yield from self.leave(ids)

    def leave(self, ids: Sequence[UUID]) -> Steps[None]:
        """Delete rows that this transaction wrote, where none is retained.

        Raises SourceError, retryable, while a slot is missing, lost, or not yet made in full: it sees what commits
        after it was, and a transaction that waits for its making cannot see it here.
        """
        if self.retain != "none" or not ids:
            return
        given = json.dumps([{self.columns.get("id") or "id": str(event_id)} for event_id in ids])
        [(gone, found)] = yield Statement(self._remove, [(json.dumps(self.slots), given)], returns=True)
        if gone < len(ids):
            missing = found < len(self.slots)
            raise SourceError(
                f'{self.schema}.{self.table}: retain="none", and '
                + (f"{found} of its slots are there: {', '.join(self.slots)}" if missing else "rows are still there"),
                remedy="start the relay or Debezium first, and roll this transaction back: its rows were not sent"
                if missing
                else "no trigger may change a row's id, and row-level security has to let its writer delete it",
                retryable=missing,
            )

    def taking(self, source: str) -> tuple[str, tuple[Any, ...]]:
        """Return the INSERT that takes rows of COLUMNS, payload as bytes, from a query part, and its parameters."""
        payload = "CAST(convert_from(payload, 'UTF8') AS jsonb)" if self.payload == "json" else "payload"
        kept = [name for name in COLUMNS if self.columns.get(name, name) is not None]
        values = [payload if name == "payload" else name for name in kept] + ["%s"] * len(self.extra)
        head = self._insert[0].partition(" VALUES ")[0]
        return f"{head} SELECT {', '.join(values)} FROM {source}", tuple(self.extra.values())  # noqa: S608 — quoted

    def row(self, event_id: UUID, envelope: Envelope, schema_id: int | None) -> tuple[Any, ...]:
        """Encode one row. Raises SchemaError or ConfigError for what cannot be stored."""
        message, kind = envelope.message, envelope.message.message_type
        value = encode(message, schema_id)
        if self.payload == "json" and kind.format != "json":
            raise ConfigError(
                f"{kind.name}: {self.schema}.{self.table} holds JSON, this message is {kind.format}",
                remedy='declare it with format="json", or Outbox(payload="bytes")',
            )
        payload = value.decode() if self.payload == "json" else value
        key = str(event_id) if kind.key is None else key_text(getattr(message, kind.key), kind.name)
        headers = headers_text(envelope.headers) if envelope.headers else None
        if envelope.traceparent is not None and not _TRACEPARENT(envelope.traceparent):
            raise ConfigError(
                "traceparent: not as W3C has it",
                remedy="00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case",
            )
        ours = (
            event_id, kind.stream, key, kind.name, payload, envelope.topic, headers, envelope.traceparent
        )  # fmt: skip
        if not self.columns and not self.extra:
            return ours
        kept = [v for name, v in zip(COLUMNS, ours, strict=True) if self.columns.get(name, name) is not None]
        return (*kept, *self.extra.values())


# The slots are looked for by the transaction that has written: one that is complete then has all that it commits.
# The record is the table's own, so that ids have its column's type.
_REMOVE = """
WITH ready AS (
    SELECT count(*) AS n FROM pg_catalog.pg_replication_slots
    WHERE database = current_database() AND slot_type = 'logical' AND confirmed_flush_lsn IS NOT NULL
        AND wal_status IS DISTINCT FROM 'lost'
        AND slot_name IN (SELECT json_array_elements_text(CAST(CAST(%s AS text) AS json)))
), gone AS (
    DELETE FROM {table} AS o
    USING ready, json_populate_recordset(CAST(NULL AS {table}), CAST(CAST(%s AS text) AS json)) AS x
    WHERE o.{id} = x.{id} AND ready.n = {slots} RETURNING 1
)
SELECT CAST((SELECT count(*) FROM gone) AS integer), CAST(ready.n AS integer) FROM ready
"""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def uuid7() -> UUID:
    """Return a time-ordered UUID (RFC 9562, version 7): 48 bits of milliseconds, 74 random bits."""
    return uuids7(1)[0]


def uuids7(count: int) -> list[UUID]:
    """Return many of them, of one moment: in half the time of ``UUID(int=…)``, which checks what is known here.

    One alone has 12 bits of the moment below its millisecond (RFC 9562, method 3), so that those that are made one
    after the other have their order.
    """
    ms, rest_ns = divmod(time.time_ns(), 1_000_000)
    moment, noise = ms << 80, urandom(10 * count)
    if count == 1:
        moment |= rest_ns * 4096 // 1_000_000 << 64
        noise = bytes(2) + noise[2:]
    new, put, number = object.__new__, object.__setattr__, int.from_bytes
    ids = []
    for start in range(0, len(noise), 10):
        made = new(UUID)
        put(made, "int", (moment | number(noise[start : start + 10], "big")) & _FREE | _VERSION_7)
        put(made, "is_safe", SafeUUID.unknown)
        ids.append(made)
    return ids


_FREE = ~(0xF << 76 | 0x3 << 62)
_VERSION_7 = 0x7 << 76 | 0x2 << 62
