"""``pipeline.testing`` on real connections: what the open transaction published, whatever the driver; never more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import sqlalchemy
from servers import Database

from pipeline import Context, Event, Job, Money, Personal, Pipeline
from pipeline.connect.file import read
from pipeline.connect.router import Router
from pipeline.errors import SchemaError
from pipeline.testing import (
    Harness,
    aassert_enqueued,
    aassert_published,
    assert_enqueued,
    assert_nothing_enqueued,
    assert_nothing_published,
    assert_published,
    store_schemas,
)

app = Pipeline("store", topic_prefix="")


class Paid(Event, aggregate="payment", key="order_id"):
    order_id: str
    total: Money


class Mail(Job, queue="mail"):
    address: Personal[str]


class Noted(Job, queue="notes", format="json"):
    text: str


@app.job(Mail)
def mail(_job: Mail, _ctx: Context) -> None: ...


app.register(Paid, Noted)


def paid(order_id: str) -> Paid:
    return Paid(order_id=order_id, total=Decimal("9.90"))


@contextmanager
def psycopg_connection(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()


@contextmanager
def sqlalchemy_connection(dsn: str) -> Iterator[Any]:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with engine.connect() as conn:
        yield conn
        conn.rollback()
    engine.dispose()


@pytest.mark.parametrize("connection", [psycopg_connection, sqlalchemy_connection])
def test_what_the_open_transaction_published_is_found_and_nothing_else(database: Database, connection: Any) -> None:
    with psycopg.connect(database.dsn) as other:
        store_schemas(other, app)
        app.publish(other, paid("committed by another"))
        app.enqueue(other, Mail(address="other@example.org"), delay_s=60)
    with connection(database.dsn) as conn:
        assert_nothing_published(conn, Paid)
        with psycopg.connect(database.dsn) as other:
            app.publish(other, paid("committed while it is open"))
            app.enqueue(other, Mail(address="other@example.org"), delay_s=60)
        assert_nothing_published(conn, Paid)
        assert_nothing_enqueued(conn, Mail)
        app.publish(conn, paid("o-1"), headers={"tenant": "a"})
        app.publish(conn, paid("o-2"))
        app.enqueue(conn, Mail(address="a@example.org"))
        with conn.begin_nested() if hasattr(conn, "begin_nested") else conn.transaction():
            app.enqueue(conn, Mail(address="b@example.org"), delay_s=3600)
        app.enqueue(conn, Noted(text="ü"))
        assert assert_published(conn, Paid, order_id="o-1") == [paid("o-1")]
        assert assert_published(conn, Paid, times=2) == [paid("o-1"), paid("o-2")]
        assert {one.address for one in assert_enqueued(conn, Mail, times=2)} == {"a@example.org", "b@example.org"}
        assert assert_enqueued(conn, Noted) == [Noted(text="ü")]
        with pytest.raises(AssertionError, match="none of Paid"):
            assert_published(conn, Paid, order_id="committed by another")
        with pytest.raises(AssertionError, match="2 of Mail"):
            assert_nothing_enqueued(conn, Mail)


def test_async_connections_are_asked_in_the_same_way(database: Database) -> None:
    async def test() -> None:
        async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
            await app.aenqueue(conn, Noted(text="a"))
            assert await aassert_enqueued(conn, Noted, text="a") == [Noted(text="a")]
            with pytest.raises(AssertionError):
                await aassert_published(conn, Paid)
            await conn.rollback()

    asyncio.run(test())


def test_ids_for_tests_end_with_their_transaction(database: Database) -> None:
    with psycopg.connect(database.dsn) as conn:
        store_schemas(conn, app)
        app.publish(conn, paid("o-1"))
        conn.rollback()
        with pytest.raises(SchemaError, match="never pushed"):
            app.publish(conn, paid("o-2"))


def test_handlers_run_on_what_was_not_committed_each_message_once(database: Database) -> None:
    harness = Harness(app)
    with psycopg.connect(database.dsn) as conn:
        store_schemas(conn, app)
        app.enqueue(conn, Mail(address="a@example.org"))
        assert harness.take(conn) == 1
        app.enqueue(conn, Mail(address="b@example.org"), delay_s=3600)
        assert harness.take(conn) == 1
        assert harness.take(conn) == 0
        harness.run_until_idle()
        conn.rollback()
    assert [one.message for one in harness.handled] == [
        Mail(address="a@example.org"),
        Mail(address="b@example.org"),
    ]
    assert 3590 < harness.clock.passed_s < 3700


def test_records_are_those_that_the_relay_makes_of_the_same_row(database: Database) -> None:
    """Topic, key, value and headers; the row is read as the WAL gives it, in binary."""
    harness, headers = Harness(app), {"tenant-name": "ä", "b": "\n", "a": '"'}
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    with psycopg.connect(database.dsn) as conn:
        store_schemas(conn, app)
        event_id = app.publish(conn, paid("o-1"), headers=headers, traceparent=trace)
        cursor = conn.execute("SELECT * FROM pipeline.outbox WHERE id = %s", (event_id,))
        columns = [_Column(c.name, c.type_code) for c in cursor.description or ()]
        options = read_options()
        names, route = Router(options).bind("pipeline.outbox", columns)
        quoted = ", ".join(names)
        row = conn.execute(f"SELECT {quoted} FROM pipeline.outbox WHERE id = %s", (event_id,), binary=True)
        assert row.pgresult is not None
        values = [row.pgresult.get_value(0, number) for number in range(len(names))]
        topic, key, value, found, _, _ = route(*values)
        harness.take(conn)
        conn.rollback()
    [record] = harness.broker.records("outbox.event.payment")
    with harness.connection() as fake:
        app.publish(fake, paid("o-2"), headers=headers, traceparent=trace)
    other = next(one for one in harness.broker.records("outbox.event.payment") if one.key == b"o-2")
    assert other.headers[1:] == record.headers[1:]
    as_bytes = [(name, text.encode() if isinstance(text, str) else text) for name, text in found]
    assert (record.topic, record.key, record.headers) == (topic, key, as_bytes)
    assert value is not None
    assert record.value is not None
    assert record.value[5:] == value[5:]  # ids before it are the harness's own


class _Column:
    def __init__(self, name: str, type_oid: int) -> None:
        self.name = name
        self.type_oid = type_oid
        self.modifier = -1


def read_options() -> Any:
    from pathlib import Path

    file = Path(__file__).parents[2] / "connectors/outbox.json"
    environment = dict.fromkeys(("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"), "x")
    return read(file, {**environment, "PGPORT": "1"}, ignore_unknown=False).routers[0]
