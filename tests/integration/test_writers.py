"""Every way to write an outbox row: in the caller's transaction, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
import wrapt
from django_connection import django_connection
from psycopg import conninfo, sql
from psycopg.rows import dict_row
from servers import Database
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pipeline import Event, Job, Outbox, Pipeline
from pipeline.avro import schema_of
from pipeline.codec import Decoder
from pipeline.errors import ConfigError, PipelineError, SchemaError, SourceError
from pipeline.job import EnqueueOptions, Unique
from pipeline.postgres.schema_ids import SchemaIdTable
from pipeline.subject import subject_of


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str
    number: int = 0


class Noted(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


class Mail(Job, queue="email", format="json"):
    to: str


class NeverPushed(Event, aggregate="order", key="order_id"):
    order_id: str


app = Pipeline("shop", topic_prefix="")
SUBJECT = subject_of("outbox.event.order", "Placed")
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Texts:
    def text(self, schema_id: int) -> str:
        assert schema_id == 41
        return schema_of(Placed).text


def push(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        SchemaIdTable(conn).put({(SUBJECT, schema_of(Placed).fingerprint): 41})
        conn.execute("CREATE TABLE business (id int PRIMARY KEY)")


def rows(database: Database, table: str = "pipeline.outbox") -> list[dict[str, Any]]:
    with psycopg.connect(database.dsn, row_factory=dict_row) as conn:
        return conn.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


@pytest.fixture
def pushed(database: Database) -> Database:
    push(database)
    return database


# ── one suite for every driver ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Way:
    """How a driver writes: ``run(dsn, work, commit)`` runs work(publish, execute) in a transaction of its own.

    ``bare`` is a connection in autocommit mode, on which nothing may be published.
    """

    run: Callable[[str, Callable[..., Any], bool], Any]
    bare: Callable[[str, Callable[..., Any]], Any]


def url(dsn: str, driver: str) -> sa.URL:
    parts = conninfo.conninfo_to_dict(dsn)
    return sa.URL.create(
        f"postgresql+{driver}", parts["user"], parts["password"], parts["host"], int(parts["port"]), parts["dbname"]
    )


@contextmanager
def plain(connect: Callable[..., Any], dsn: str) -> Iterator[Any]:
    conn = connect(dsn)
    try:
        yield conn
    finally:
        conn.close()


def by_dbapi(connect: Callable[..., Any]) -> Way:
    def run(dsn: str, work: Callable[..., Any], commit: bool) -> Any:
        with plain(connect, dsn) as conn:
            found = work(conn, lambda text: conn.cursor().execute(text))
            (conn.commit if commit else conn.rollback)()
            return found

    def bare(dsn: str, work: Callable[..., Any]) -> Any:
        with plain(connect, dsn) as conn:
            conn.autocommit = True
            return work(conn, None)

    return Way(run, bare)


def by_sqlalchemy(driver: str, what: str) -> Way:
    def opened(dsn: str, **options: Any) -> Any:
        engine = sa.create_engine(url(dsn, driver), poolclass=NullPool, **options)
        makers = {"connection": engine.connect, "session": lambda: Session(engine)}
        makers["scoped"] = lambda: scoped_session(sessionmaker(engine))
        return makers[what]()

    def run(dsn: str, work: Callable[..., Any], commit: bool) -> Any:
        conn = opened(dsn)
        try:
            found = work(conn, lambda text: conn.execute(sa.text(text)))
            (conn.commit if commit else conn.rollback)()
            return found
        finally:
            conn.close()

    def bare(dsn: str, work: Callable[..., Any]) -> Any:
        conn = opened(dsn, isolation_level="AUTOCOMMIT")
        try:
            return work(conn, None)
        finally:
            conn.close()

    return Way(run, bare)


def by_django() -> Way:
    def run(dsn: str, work: Callable[..., Any], commit: bool) -> Any:
        from django.db import transaction

        with django_connection(dsn) as conn, transaction.atomic():
            found = work(conn, lambda text: conn.cursor().execute(text))
            transaction.set_rollback(not commit)
            return found

    def bare(dsn: str, work: Callable[..., Any]) -> Any:
        with django_connection(dsn) as conn:
            return work(conn, None)

    return Way(run, bare)


WAYS = {
    "psycopg": by_dbapi(psycopg.connect),
    "psycopg2": by_dbapi(psycopg2.connect),
    "sqlalchemy-connection-psycopg": by_sqlalchemy("psycopg", "connection"),
    "sqlalchemy-session-psycopg": by_sqlalchemy("psycopg", "session"),
    "sqlalchemy-scoped-psycopg": by_sqlalchemy("psycopg", "scoped"),
    "sqlalchemy-connection-psycopg2": by_sqlalchemy("psycopg2", "connection"),
    "sqlalchemy-session-psycopg2": by_sqlalchemy("psycopg2", "session"),
    "sqlalchemy-session-pg8000": by_sqlalchemy("pg8000", "session"),
    "django": by_django(),
}


@asynccontextmanager
async def async_psycopg(dsn: str, autocommit: bool) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
    conn = await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit)
    async with conn:
        yield conn, conn.execute, conn.commit, conn.rollback


@asynccontextmanager
async def async_asyncpg(dsn: str, autocommit: bool) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
    conn = await asyncpg.connect(dsn)
    transaction = conn.transaction()
    try:
        if not autocommit:
            await transaction.start()
        yield conn, conn.execute, transaction.commit, transaction.rollback
    finally:
        await conn.close()


@asynccontextmanager
async def async_asyncpg_pool(dsn: str, autocommit: bool) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as conn:
        transaction = conn.transaction()
        if not autocommit:
            await transaction.start()
        yield conn, conn.execute, transaction.commit, transaction.rollback


def async_sqlalchemy(driver: str, what: str) -> Any:
    @asynccontextmanager
    async def opened(dsn: str, autocommit: bool) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_async_engine(url(dsn, driver), poolclass=NullPool, **options)
        made = engine.connect() if what == "connection" else AsyncSession(engine)
        async with made as conn:
            yield conn, lambda text: conn.execute(sa.text(text)), conn.commit, conn.rollback
        await engine.dispose()

    return opened


ASYNC_WAYS = {
    "psycopg": async_psycopg,
    "asyncpg": async_asyncpg,
    "asyncpg-pool": async_asyncpg_pool,
    "sqlalchemy-connection-psycopg": async_sqlalchemy("psycopg", "connection"),
    "sqlalchemy-session-psycopg": async_sqlalchemy("psycopg", "session"),
    "sqlalchemy-connection-asyncpg": async_sqlalchemy("asyncpg", "connection"),
    "sqlalchemy-session-asyncpg": async_sqlalchemy("asyncpg", "session"),
}


def by_async(opened: Any) -> Way:
    """The async ways in the clothes of the sync ones: the same suite for both."""

    async def perform(dsn: str, work: Callable[..., Any], commit: bool | None) -> Any:
        async with opened(dsn, commit is None) as (conn, execute, do_commit, do_rollback):
            found = work(conn, execute)
            found = await found if isinstance(found, Awaitable) else found
            if commit is not None:
                await (do_commit if commit else do_rollback)()
            return found

    return Way(
        lambda dsn, work, commit: asyncio.run(perform(dsn, work, commit)),
        lambda dsn, work: asyncio.run(perform(dsn, work, None)),
    )


ALL = {**{f"sync-{k}": v for k, v in WAYS.items()}, **{f"async-{k}": by_async(v) for k, v in ASYNC_WAYS.items()}}


@pytest.fixture(params=ALL)
def way(request: pytest.FixtureRequest) -> Way:
    return ALL[request.param]


@pytest.fixture
def is_async(request: pytest.FixtureRequest) -> bool:
    return "async-" in request.node.callspec.params["way"]


def writing(
    is_async: bool, *events: Event, first: str = "", outbox: Pipeline = app, **options: Any
) -> Callable[..., Any]:
    """Work that runs a statement of the business and then publishes."""

    def work(conn: Any, execute: Any) -> list[UUID]:
        if first:
            execute(first)
        return outbox.publish_many(conn, events, **options)

    async def awork(conn: Any, execute: Any) -> list[UUID]:
        if first:
            await execute(first)
        return await outbox.apublish_many(conn, events, **options)

    return awork if is_async else work


BUSINESS = "INSERT INTO business VALUES (1)"


def test_a_committed_row_holds_all_that_was_said(pushed: Database, way: Way, is_async: bool) -> None:
    event = Placed(order_id="ä\\\t\n7", number=-3)
    work = writing(is_async, event, first=BUSINESS, headers={"a": 'ö"\\\n'}, traceparent=TRACE)
    [event_id] = way.run(pushed.dsn, work, True)
    [row] = rows(pushed)
    assert Decoder(Texts()).decode(row.pop("payload"), Placed) == event
    assert row.pop("created_at")
    assert row.pop("seq")
    assert row.pop("xid")
    assert row == {
        "id": event_id, "aggregatetype": "order", "aggregateid": "ä\\\t\n7", "type": "Placed",
        "topic": "outbox.event.order", "headers": {"a": 'ö"\\\n'}, "traceparent": TRACE,
    }  # fmt: skip
    assert len(rows(pushed, "business")) == 1


def test_publishing_alone_is_committed_too(pushed: Database, way: Way, is_async: bool) -> None:
    way.run(pushed.dsn, writing(is_async, Placed(order_id="1")), True)
    assert len(rows(pushed)) == 1


def test_a_rollback_leaves_neither_row_nor_change(pushed: Database, way: Way, is_async: bool) -> None:
    way.run(pushed.dsn, writing(is_async, Placed(order_id="1"), first=BUSINESS), False)
    assert rows(pushed) == []
    assert rows(pushed, "business") == []


def test_many_rows_keep_their_order_and_their_ids(pushed: Database, way: Way, is_async: bool) -> None:
    events = [Placed(order_id=f"{n}\\\n", number=n) for n in range(1201)]
    ids = way.run(pushed.dsn, writing(is_async, *events, headers={"h": "\\\t"}), True)
    stored = sorted(rows(pushed), key=lambda row: row["seq"])
    assert [row["id"] for row in stored] == ids
    assert [Decoder(Texts()).decode(row["payload"], Placed) for row in stored] == events
    assert {row["aggregateid"] for row in stored} == {event.order_id for event in events}
    assert all(row["headers"] == {"h": "\\\t"} and row["traceparent"] is None for row in stored)


def test_nothing_to_publish_is_no_error(pushed: Database, way: Way, is_async: bool) -> None:
    assert way.run(pushed.dsn, writing(is_async), True) == []


def test_outside_a_transaction_is_refused(pushed: Database, way: Way, is_async: bool) -> None:
    with pytest.raises(ConfigError, match=r"outside a transaction[\s\S]*→ "):
        way.bare(pushed.dsn, writing(is_async, Placed(order_id="1")))
    assert rows(pushed) == []


def test_the_wrong_kind_of_call_is_refused(pushed: Database, way: Way, is_async: bool) -> None:
    with pytest.raises(ConfigError, match="is an async connection" if is_async else "is not an async connection"):
        way.run(pushed.dsn, by_other_call(is_async), True)
    assert rows(pushed) == []


def by_other_call(is_async: bool) -> Callable[..., Any]:
    if is_async:
        return lambda conn, _execute: app.publish(conn, Placed(order_id="1"))

    def work(conn: Any, _execute: Any) -> UUID:
        coroutine = app.apublish(conn, Placed(order_id="1"))
        try:
            coroutine.send(None)  # nothing is awaited before the refusal
        finally:
            coroutine.close()
        raise AssertionError("not refused")

    return work


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (NeverPushed(order_id="1"), SchemaError, "NeverPushed: this version of its schema was never pushed"),
        (
            Placed.model_construct(order_id="1", number="x"),
            SchemaError,
            "in field 'number': a str, the schema has \"long\"",
        ),
        (Placed(order_id=""), SchemaError, "its key field is empty"),
        (Placed(order_id="a\0b"), SchemaError, "NUL"),
    ],
)
def test_what_cannot_be_stored_stores_nothing(
    pushed: Database, way: Way, is_async: bool, event: Event, error: type[PipelineError], message: str
) -> None:
    with pytest.raises(error, match=message):
        way.run(pushed.dsn, writing(is_async, Placed(order_id="good"), event, first=BUSINESS), True)
    assert rows(pushed) == []
    assert rows(pushed, "business") == []


def test_a_read_only_transaction_is_said_with_its_remedy(pushed: Database, way: Way, is_async: bool) -> None:
    first = "SET TRANSACTION READ ONLY"
    with pytest.raises(SourceError, match="read-only transaction") as raised:
        way.run(pushed.dsn, writing(is_async, Placed(order_id="good"), first=first), True)
    assert "primary" in str(raised.value)


def test_a_missing_table_is_said_with_its_remedy(database: Database, way: Way, is_async: bool) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.execute("DROP SCHEMA pipeline CASCADE")
    with pytest.raises(SourceError, match=r'"pipeline\.\w+" does not exist[\s\S]*pipeline db migrate'):
        way.run(database.dsn, writing(is_async, Placed(order_id="1")), True)


def test_a_failed_transaction_is_said(pushed: Database, way: Way, is_async: bool) -> None:
    def work(conn: Any, execute: Any) -> Any:
        with pytest.raises(Exception, match="does not exist"):
            execute("SELECT * FROM nothing")
        return app.publish(conn, Placed(order_id="1"))

    async def awork(conn: Any, execute: Any) -> Any:
        with pytest.raises(Exception, match="does not exist"):
            await execute("SELECT * FROM nothing")
        return await app.apublish(conn, Placed(order_id="1"))

    with pytest.raises(SourceError, match=r"roll it back first|Can't reconnect|rollback"):
        way.run(pushed.dsn, awork if is_async else work, True)
    assert rows(pushed) == []


def test_a_table_of_ones_own(pushed: Database, way: Way, is_async: bool) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        conn.execute(
            'CREATE TABLE public."own %s table" (event_id text PRIMARY KEY, kind varchar(50), ref uuid, name text, '
            "body jsonb NOT NULL, meta json, tenant text NOT NULL, version int)"
        )
    columns = {
        "id": "event_id", "aggregatetype": "kind", "aggregateid": "ref", "type": "name", "payload": "body",
        "headers": "meta", "topic": None, "traceparent": None,
    }  # fmt: skip
    table = Outbox("public", "own %s table", columns=columns, extra={"tenant": "t1", "version": 2}, payload="json")
    keys = [UUID(int=n) for n in range(30)]
    events = [Noted(order_id=str(key)) for key in keys]
    ids = way.run(
        pushed.dsn,
        writing(is_async, *events, outbox=Pipeline("own", outbox=table, topic_prefix=""), headers={"a": "b"}),
        True,
    )
    stored = {row["event_id"]: row for row in rows(pushed, 'public."own %s table"')}
    assert list(stored) == sorted(map(str, ids))
    assert stored[str(ids[3])] == {
        "event_id": str(ids[3]), "kind": "order", "ref": keys[3], "name": "Noted", "body": {"order_id": str(keys[3])},
        "meta": {"a": "b"}, "tenant": "t1", "version": 2,
    }  # fmt: skip


def test_rolled_back_to_a_savepoint_leaves_what_was_before_and_comes_after(
    pushed: Database, way: Way, is_async: bool
) -> None:
    inner = [Placed(order_id=f"inner {n}") for n in range(30)]

    def work(conn: Any, execute: Any) -> None:
        app.publish(conn, Placed(order_id="before"))
        execute("SAVEPOINT one")
        app.publish_many(conn, inner)
        execute("ROLLBACK TO SAVEPOINT one")
        app.publish(conn, Placed(order_id="after"))

    async def awork(conn: Any, execute: Any) -> None:
        await app.apublish(conn, Placed(order_id="before"))
        await execute("SAVEPOINT one")
        await app.apublish_many(conn, inner)
        await execute("ROLLBACK TO SAVEPOINT one")
        await app.apublish(conn, Placed(order_id="after"))

    way.run(pushed.dsn, awork if is_async else work, True)
    assert sorted(row["aggregateid"] for row in rows(pushed)) == ["after", "before"]


def test_a_refusal_of_the_server_is_said_without_the_row(pushed: Database, way: Way, is_async: bool) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        conn.execute("ALTER TABLE pipeline.outbox ADD CHECK (aggregateid <> 'secret')")
    with pytest.raises(SourceError, match="violates check constraint") as caught:
        way.run(pushed.dsn, writing(is_async, Placed(order_id="secret")), True)
    assert "secret" not in str(caught.value)
    assert "SQLSTATE 23514" in str(caught.value)


def test_a_job_with_its_options_is_stored_by_every_driver(pushed: Database, way: Way, is_async: bool) -> None:
    shop = Pipeline("shop", topic_prefix="")
    shop.queue("email", priorities=True)
    at = datetime(2124, 3, 1, 12, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=2)))
    wanted: list[tuple[str, EnqueueOptions]] = [
        ("now", {"tags": ["é", "b%s"], "priority": "high", "timeout_s": 2.5, "headers": {"h": "ö"}}),
        ("later", {"delay_s": 3600.5}),
        ("whole", {"delay_s": 60}),
        ("at", {"run_at": at}),
        ("kept", {"unique": Unique(key="k", period_s=60)}),
        ("not kept", {"unique": Unique(key="k", period_s=60)}),
        ("replaced", {"delay_s": 60, "unique": Unique(key="r")}),
        ("replaces", {"unique": Unique(key="r", on_conflict="replace")}),
        ("untracked", {"delay_s": 60, "track": False}),
    ]

    def work(conn: Any, execute: Any) -> dict[str, UUID]:
        execute(BUSINESS)
        return {to: shop.enqueue(conn, Mail(to=to), **options) for to, options in wanted}

    async def awork(conn: Any, execute: Any) -> dict[str, UUID]:
        await execute(BUSINESS)
        return {to: await shop.aenqueue(conn, Mail(to=to), **options) for to, options in wanted}

    tables = ("business", "pipeline.outbox", "pipeline.due", "pipeline.job", "pipeline.job_key")
    way.run(pushed.dsn, awork if is_async else work, False)
    assert [rows(pushed, table) for table in tables] == [[]] * len(tables)

    ids = way.run(pushed.dsn, awork if is_async else work, True)
    assert ids["not kept"] == ids["kept"]
    assert {row["id"] for row in rows(pushed)} == {ids["now"], ids["kept"], ids["replaces"]}
    due = {row["id"]: row for row in rows(pushed, "pipeline.due")}
    assert set(due) == {ids[to] for to in ("later", "whole", "at", "untracked")}
    assert due[ids["at"]]["due_at"] == at
    assert json.loads(due[ids["at"]]["payload"]) == {"to": "at"}

    jobs = {row["id"]: row for row in rows(pushed, "pipeline.job")}
    assert {to: jobs[job_id]["state"] for to, job_id in ids.items() if job_id in jobs} == {
        "now": "waiting", "later": "delayed", "whole": "delayed", "at": "delayed", "kept": "waiting",
        "not kept": "waiting", "replaced": "cancelled", "replaces": "waiting",
    }  # fmt: skip
    now = jobs[ids["now"]]
    assert (now["tags"], now["priority"], now["terms"]) == (["é", "b%s"], "high", {"timeout_s": 2.5})
    assert jobs[ids["at"]]["due_at"] == at
    for to, delay_s in (("later", 3600.5), ("whole", 60)):
        job = jobs[ids[to]]  # its two times are read from the clock within microseconds
        off = job["due_at"] - job["created_at"] - timedelta(seconds=delay_s)
        assert abs(off) < timedelta(seconds=0.25)
        assert abs(due[ids[to]]["due_at"] - job["due_at"]) < timedelta(minutes=10)  # statements one after another
    held = {row["job_id"]: row["until"] for row in rows(pushed, "pipeline.job_key")}
    assert set(held) == {ids["kept"], ids["replaces"]}


# ── what is psycopg's or a framework's own ─────────────────────────────────────────────────────────────────────────


def test_autocommit_inside_a_transaction_block_is_fine(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn, autocommit=True) as conn:
        with conn.transaction():
            app.publish(conn, Placed(order_id="1"))
        with pytest.raises(ConfigError, match="outside a transaction"):
            app.publish(conn, Placed(order_id="2"))
    assert [row["aggregateid"] for row in rows(pushed)] == ["1"]


def test_a_savepoint_takes_its_rows_back(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        app.publish(conn, Placed(order_id="1"))
        with contextlib.suppress(SchemaError), conn.transaction():
            app.publish_many(conn, [Placed(order_id="2")])
            app.publish(conn, NeverPushed(order_id="3"))
        with conn.transaction(force_rollback=True):
            app.publish_many(conn, [Placed(order_id=f"x{n}") for n in range(50)])
    assert [row["aggregateid"] for row in rows(pushed)] == ["1"]


def test_a_connection_with_its_own_cursor_class_and_rows_or_in_pipeline_mode(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn, cursor_factory=psycopg.RawCursor, row_factory=dict_row) as conn:
        Pipeline("fresh", topic_prefix="").publish(conn, Placed(order_id="1"))
    with psycopg.connect(pushed.dsn) as conn, conn.pipeline():
        app.publish_many(conn, [Placed(order_id=f"{n}") for n in range(100)])
    with psycopg.connect(pushed.dsn, client_encoding="latin1") as conn:
        app.publish_many(conn, [Placed(order_id=f"ö{n}") for n in range(100)])
        with pytest.raises(SourceError, match="client_encoding"):
            app.publish(conn, Placed(order_id="日本"))
    assert len(rows(pushed)) == 201


def test_nothing_is_prepared_on_the_server(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        for n in range(20):
            Pipeline("fresh", topic_prefix="").publish_many(conn, [Placed(order_id=f"{n}"), Placed(order_id="x")])
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_closed_connection_pools_and_engines_are_refused(pushed: Database) -> None:
    conn = psycopg.connect(pushed.dsn)
    conn.close()
    with pytest.raises(SourceError, match="closed"):
        app.publish(conn, Placed(order_id="1"))
    engine = sa.create_engine(url(pushed.dsn, "psycopg"), poolclass=NullPool)
    for wrong in (engine, sessionmaker(engine), "postgresql://", None, object()):
        with pytest.raises(ConfigError, match="is not a database connection that is known here"):
            app.publish(wrong, Placed(order_id="1"))  # type: ignore[arg-type]
    with psycopg.connect(pushed.dsn) as conn, pytest.raises(ConfigError, match="not a pool, an engine or a cursor"):
        app.publish(conn.cursor(), Placed(order_id="1"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="this is sqlite"), sa.create_engine("sqlite://").connect() as other:
        app.publish(other, Placed(order_id="1"))
    with pytest.raises(ConfigError, match="session has no engine"):
        app.publish(Session(), Placed(order_id="1"))


class Traced(wrapt.ObjectProxy):
    """What a tracer puts around a connection."""


def test_a_connection_with_a_tracer_around_it_is_known(pushed: Database) -> None:
    events = [Placed(order_id=f"{n}") for n in range(30)]
    for driver in (psycopg, psycopg2):
        with plain(driver.connect, pushed.dsn) as conn:
            app.publish_many(Traced(conn), events)
            conn.commit()
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: Traced(psycopg.connect(pushed.dsn)), poolclass=NullPool
    )
    with Session(engine) as session:
        app.publish_many(session, events)
        session.commit()
    assert len(rows(pushed)) == 90


def test_an_asyncpg_connection_that_is_closed_or_back_in_its_pool_is_said(pushed: Database) -> None:
    async def run() -> None:
        conn = await asyncpg.connect(pushed.dsn)
        await conn.close()
        with pytest.raises(SourceError, match="connection is closed"):
            await app.apublish(conn, Placed(order_id="1"))
        async with asyncpg.create_pool(pushed.dsn, min_size=1, max_size=1) as pool:
            async with pool.acquire() as conn:
                pass
            with pytest.raises(SourceError, match="released back to the pool"):
                await app.apublish(conn, Placed(order_id="1"))

    asyncio.run(run())


def test_in_an_asynchronous_view_of_django_it_is_said_how(pushed: Database) -> None:
    from asgiref.sync import sync_to_async
    from django.db import connections, transaction

    def place(conn: Any) -> None:
        with transaction.atomic():
            app.publish(conn, Placed(order_id="1"))

    async def view(conn: Any) -> None:
        with pytest.raises(ConfigError, match=r"on an event loop[\s\S]*sync_to_async"):
            app.publish(conn, Placed(order_id="1"))
        with pytest.raises(ConfigError, match=r"not an async connection[\s\S]*sync_to_async"):
            await app.apublish(conn, Placed(order_id="1"))
        await sync_to_async(place)(conn)
        await sync_to_async(connections.close_all)()

    with django_connection(pushed.dsn) as conn:
        asyncio.run(view(conn))
    assert len(rows(pushed)) == 1


def test_an_error_of_sqlalchemy_does_not_quote_the_parameters(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        conn.execute("ALTER TABLE pipeline.outbox ADD CHECK (aggregateid <> 'secret')")
    for driver in ("psycopg2", "psycopg"):
        with sa.create_engine(url(pushed.dsn, driver), poolclass=NullPool).connect() as conn:
            with pytest.raises(SourceError, match="violates check constraint") as caught:
                app.publish(conn, Placed(order_id="secret"))
            assert "secret" not in str(caught.value)
            assert "[parameters:" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_is_down_is_said() -> None:
    engine = sa.create_engine("postgresql+psycopg://u:p@127.0.0.1:1/x", poolclass=NullPool)
    with pytest.raises(SourceError, match="is the server up"), Session(engine) as session:
        app.publish(session, Placed(order_id="1"))


def test_async_scoped_sessions_are_known(pushed: Database) -> None:
    async def run() -> None:
        engine = create_async_engine(url(pushed.dsn, "asyncpg"), poolclass=NullPool)
        session = async_scoped_session(sessionmaker(engine, class_=AsyncSession), scopefunc=asyncio.current_task)
        await app.apublish(session, Placed(order_id="1"))  # type: ignore[arg-type]
        await session.commit()
        await session.remove()
        await engine.dispose()

    asyncio.run(run())
    assert len(rows(pushed)) == 1


def test_a_jsonb_codec_of_the_applications_own_is_not_applied_twice(pushed: Database) -> None:
    async def run() -> None:
        conn = await asyncpg.connect(pushed.dsn)
        await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        async with conn.transaction():
            await app.apublish(conn, Placed(order_id="1"), headers={"a": "b"})
        await conn.close()

    asyncio.run(run())
    assert rows(pushed)[0]["headers"] == {"a": "b"}


def test_an_event_is_not_enqueued_and_a_job_not_published(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        with pytest.raises(ConfigError, match="publish: Mail is not an Event"):
            app.publish(conn, Mail(to="x"))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="enqueue: Placed is not a Job"):
            app.enqueue(conn, Placed(order_id="1"))  # type: ignore[call-overload]
        with pytest.raises(ConfigError, match="pass an instance"):
            app.publish(conn, Placed)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"publish_many: one Placed[\s\S]*a list"):
            app.publish_many(conn, Placed(order_id="1"))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="enqueue_many: one Mail"):
            app.enqueue_many(conn, Mail(to="x"))  # type: ignore[arg-type]


def test_headers_and_traceparent_are_checked(pushed: Database) -> None:
    with psycopg.connect(pushed.dsn) as conn:
        with pytest.raises(ConfigError, match="headers: a list"):
            app.publish(conn, Placed(order_id="1"), headers=[("a", "b")])  # type: ignore[arg-type]
        for headers in ({"a": 1}, {"a": "\0"}, {"a": "\ud800"}):
            with pytest.raises(ConfigError, match="header 'a'"):
                app.publish(conn, Placed(order_id="1"), headers=headers)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="traceparent"):
            app.publish(conn, Placed(order_id="1"), traceparent="nonsense")


def test_the_current_span_becomes_the_traceparent(pushed: Database) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with psycopg.connect(pushed.dsn) as conn, TracerProvider().get_tracer("t").start_as_current_span("s") as span:
        app.publish(conn, Placed(order_id="1"))
        app.publish(conn, Placed(order_id="2"), traceparent=TRACE)
    context = span.get_span_context()
    stored = {row["aggregateid"]: row["traceparent"] for row in rows(pushed)}
    assert stored == {"1": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}", "2": TRACE}


def _enqueue_by_itself(shop: Pipeline, job: Job) -> UUID:
    return shop.enqueue(job)


def _enqueue_by_itself_async(shop: Pipeline, job: Job) -> UUID:
    return asyncio.run(shop.aenqueue(job))


@pytest.mark.parametrize("enqueue", [_enqueue_by_itself, _enqueue_by_itself_async])
def test_enqueue_without_a_connection_commits_by_itself(
    pushed: Database, monkeypatch: pytest.MonkeyPatch, enqueue: Callable[[Pipeline, Any], UUID]
) -> None:
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", pushed.dsn)
    job_id = enqueue(Pipeline("shop"), Mail(to="x"))
    assert [(row["id"], row["aggregateid"], row["topic"]) for row in rows(pushed)] == [
        (job_id, str(job_id), "shop.jobs.email")
    ]
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", "postgresql://u:p@127.0.0.1:1/x")
    with pytest.raises(SourceError, match="is the server up"):
        enqueue(Pipeline("shop"), Mail(to="x"))
    with pytest.raises(ConfigError, match="is not a Job"):
        enqueue(Pipeline("shop"), Placed(order_id="1"))


def test_nobody_may_write_who_was_not_granted_it(pushed: Database) -> None:
    role = f"nobody_{os.getpid()}"
    with psycopg.connect(pushed.dsn) as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        with pytest.raises(SourceError, match=r"permission denied[\s\S]*grant it"):
            app.publish(conn, Noted(order_id="1"))
        conn.rollback()
