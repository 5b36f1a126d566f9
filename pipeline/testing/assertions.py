"""A connection with an open transaction in, the messages that were published in it out, or an AssertionError.

For tests that roll back: what is looked at is what would be sent if the transaction committed. Any connection that
``app.publish`` takes is taken here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar
from uuid import UUID

from pipeline.app import Pipeline
from pipeline.avro import schema_of
from pipeline.errors import ConfigError
from pipeline.event import Event, Job, Message
from pipeline.outbox import Statement, Steps, adrive, drive
from pipeline.testing.connection import AsyncFakeConnection, FakeConnection
from pipeline.testing.schemas import own_value
from pipeline.testing.stored import Row
from pipeline.writers import AsyncConnection, Connection, async_executor, executor

__all__ = [
    "aassert_enqueued",
    "aassert_published",
    "assert_enqueued",
    "assert_nothing_enqueued",
    "assert_nothing_published",
    "assert_published",
    "rows_of",
    "store_schemas",
]

E = TypeVar("E", bound=Event)
J = TypeVar("J", bound=Job)
M = TypeVar("M", bound=Message)
_UNPUSHED = 0  # no registry's id: a writer does not remember it


def assert_published(conn: Connection, model: type[E], /, *, times: int | None = None, **fields: Any) -> list[E]:
    """Return the events of a class that were published in the open transaction and have these ``fields``.

    Raises AssertionError where there is none, or not as many as ``times``; it says what there is instead.
    """
    return _matching(_stored(conn, model), model, times, fields)


def assert_enqueued(conn: Connection, model: type[J], /, *, times: int | None = None, **fields: Any) -> list[J]:
    """Return the jobs of a class that were enqueued in the open transaction, delayed ones too. See above."""
    return _matching(_stored(conn, model), model, times, fields)


async def aassert_published(
    conn: AsyncConnection, model: type[E], /, *, times: int | None = None, **fields: Any
) -> list[E]:
    """Do what ``assert_published`` does, on an async connection."""
    return _matching(await _astored(conn, model), model, times, fields)


async def aassert_enqueued(
    conn: AsyncConnection, model: type[J], /, *, times: int | None = None, **fields: Any
) -> list[J]:
    """Do what ``assert_enqueued`` does, on an async connection."""
    return _matching(await _astored(conn, model), model, times, fields)


def assert_nothing_published(conn: Connection, model: type[Event], /) -> None:
    """Raise AssertionError where an event of a class was published in the open transaction."""
    _nothing(_stored(conn, model), model)


def assert_nothing_enqueued(conn: Connection, model: type[Job], /) -> None:
    """Raise AssertionError where a job of a class was enqueued in the open transaction."""
    _nothing(_stored(conn, model), model)


def rows_of(app: Pipeline, conn: Connection) -> list[Row]:
    """Return all rows of an application's messages that the open transaction wrote, oldest first."""
    if isinstance(conn, FakeConnection):
        return conn.rows
    if app.outbox.retain == "none":
        raise ConfigError(
            'Outbox(retain="none") leaves no rows to look at', remedy="in this test: Outbox(), or a FakeConnection"
        )
    models = {model.message_type.name: model for model in app.messages}
    return drive(_look(models.values()), executor(conn))


def store_schemas(conn: Connection, app: Pipeline) -> None:
    """Let an application publish on a test database that ``pipeline schema push`` never saw.

    Stores an id that is none for each schema that has no row yet: for transactions that are rolled back.
    """
    rows = [
        (app.subject_of(model), schema_of(model).fingerprint, _UNPUSHED)
        for model in app.messages
        if model.message_type.format == "avro"
    ]

    def steps() -> Steps[None]:
        yield Statement(_STORE, rows)

    drive(steps(), executor(conn))


def _stored(conn: Connection, model: type[Message]) -> list[Row]:
    if isinstance(conn, FakeConnection):
        return [row for row in conn.rows if type(row.message) is model]
    return drive(_look([model]), executor(conn))


async def _astored(conn: AsyncConnection, model: type[Message]) -> list[Row]:
    if isinstance(conn, AsyncFakeConnection):
        return _stored(conn.sync, model)
    return await adrive(_look([model]), async_executor(conn))


def _look(models: Iterable[type[Message]]) -> Steps[list[Row]]:
    """Read rows in the order in which they were written, delayed ones last."""
    found = []
    for model in models:
        for sql in (_OUTBOX, _DUE) if issubclass(model, Job) else (_OUTBOX,):
            rows = yield Statement(sql, [(model.message_type.name,)], returns=True)
            found += [(row[0], _row(model, row)) for row in rows]
    return [row for _, row in sorted(found, key=lambda one: one[0])]


def _row(model: type[Message], row: tuple[Any, ...]) -> Row:
    _, event_id, topic, key, payload, headers, traceparent, due_at = row
    value = bytes(payload)
    return Row(UUID(str(event_id)), own_value(value, model), topic, key, value, headers, traceparent, due_at)


def _matching(rows: list[Row], model: type[M], times: int | None, fields: dict[str, Any]) -> list[M]:
    unknown = sorted(set(fields) - set(model.model_fields))
    if unknown:
        raise ConfigError(f"{model.__name__} has no field {unknown[0]}", remedy=f"{', '.join(model.model_fields)}")
    messages = [row.message for row in rows if isinstance(row.message, model)]
    found = [one for one in messages if all(getattr(one, name) == value for name, value in fields.items())]
    if len(found) != times if times is not None else not found:
        wanted = "none" if times is None else f"{len(found)} and not {times}"
        asked = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        there = "".join(f"\n  {row.message!r}" for row in rows) or " nothing"
        raise AssertionError(f"{wanted} of {model.__name__}({asked}) in this transaction; there is:{there}")
    return found


def _nothing(rows: list[Row], model: type[Message]) -> None:
    if rows:
        listed = "".join(f"\n  {row.message!r}" for row in rows)
        raise AssertionError(f"{len(rows)} of {model.__name__} in this transaction:{listed}")


_STORE = """
INSERT INTO pipeline.schema_id (subject, fingerprint, schema_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
"""

_OUTBOX = """
SELECT seq, id, topic, aggregateid, payload, CAST(headers AS text), traceparent, NULL
FROM pipeline.outbox WHERE type = %s AND xid = pg_current_xact_id() ORDER BY seq
"""

# Rows of savepoints carry later numbers than that of their transaction, and so do rows that others commit meanwhile.
# Of the rows that can be seen, only our own are of a transaction in progress.
_DUE = """
SELECT 9223372036854775807, id, topic, aggregateid, payload, CAST(headers AS text), traceparent, due_at
FROM pipeline.due, CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS own,
    CAST(CAST(xmin AS text) AS bigint) AS writer
WHERE type = %s AND CASE WHEN writer >= mod(own, 4294967296) THEN
    pg_xact_status(CAST(CAST(own - mod(own, 4294967296) + writer AS text) AS xid8)) = 'in progress' END
ORDER BY due_at
"""
