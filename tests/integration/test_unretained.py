"""``retain="none"``: the WAL has each row, the table none; and what would lose rows is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from commands import CommandLine, runner
from relays import RelayProcess, connector_file, headers, ids, read_topic, until
from servers import Database, Topics
from transactions import ASYNC_WAYS, WAYS
from waiting import wait_until

from pipeline import Event, Job, Outbox, Pipeline
from pipeline.capture import Routed
from pipeline.errors import SourceError
from pipeline.job import Unique
from pipeline.postgres.due import DueStore
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.wal import WalSettings, WalSource


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


class Mail(Job, queue="mail", format="json"):
    to: str


def unretained(*slots: str, **options: Any) -> Pipeline:
    return Pipeline("shop", topic_prefix="", outbox=Outbox(retain="none", slots=slots, **options))


def make_slot(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))


def count(conn: psycopg.Connection[Any], table: str = "outbox") -> int:
    (found,) = conn.execute(f"SELECT count(*) FROM pipeline.{table}").fetchone()  # type: ignore[misc]
    return int(found)


def bind(relation: Relation) -> Any:
    def route(event_id: bytes) -> Routed:
        return ("t", None, event_id, [], 0, -1)

    return insert_parser(relation, ["id"], route), lambda: None


def captured(database: Database, slot: str, number: int) -> list[UUID]:
    """Read ids of rows from the slot until so many have come."""
    settings = WalSettings(slot, "pipeline_outbox", lambda _schema, table: table == "outbox", "pipeline.outbox")
    source = WalSource(database.dsn, settings, bind)
    wait_until(source.start)
    found: list[UUID] = []
    with closing(source):
        wait_until(
            lambda: (
                found.extend(UUID(bytes=one[2]) for one in source.read(0.1).records if one[2])  # type: ignore[func-returns-value]
                or len(found) >= number
            )
        )
    return found


def test_rows_of_every_writer_are_in_the_wal_and_not_in_the_table(
    database: Database, conn: psycopg.Connection[Any], prefix: str
) -> None:
    make_slot(conn, prefix)
    app, written = unretained(prefix), []

    def by(way: str) -> None:
        with WAYS[way](database.dsn) as (own, asked, transaction):
            with transaction():
                written.append(app.publish(own, Placed(order_id="1")))
                written.extend(app.publish_many(own, [Placed(order_id=f"{n}") for n in range(40)]))
                written.append(app.enqueue(own, Mail(to="a"), unique=Unique(key=way)))
                written.extend(app.enqueue_many(own, [Mail(to="a"), Mail(to="b")]))
                assert asked("SELECT count(*) FROM pipeline.outbox") == 0
            with suppress(ZeroDivisionError), transaction():
                app.publish(own, Placed(order_id="never"))
                raise ZeroDivisionError

    async def aby(way: str) -> None:
        async with ASYNC_WAYS[way](database.dsn) as (own, asked, transaction), transaction():
            written.append(await app.apublish(own, Placed(order_id="1")))
            written.extend(await app.apublish_many(own, [Placed(order_id=f"{n}") for n in range(40)]))
            written.append(await app.aenqueue(own, Mail(to="a"), unique=Unique(key=f"async {way}")))
            assert await asked("SELECT count(*) FROM pipeline.outbox") == 0

    for way in WAYS:
        by(way)
    for way in ASYNC_WAYS:
        asyncio.run(aby(way))
    assert count(conn) == 0
    assert count(conn, "job") == len(WAYS) * 3 + len(ASYNC_WAYS)
    assert captured(database, prefix, len(written)) == written


def test_a_table_of_ones_own_with_ids_as_text_stays_empty_too(
    database: Database, conn: psycopg.Connection[Any], prefix: str
) -> None:
    make_slot(conn, prefix)
    conn.execute('CREATE TABLE "own %s" ("the id" text PRIMARY KEY, aggregateid text, payload jsonb)')
    none = dict.fromkeys(("aggregatetype", "type", "topic", "headers", "traceparent"))
    app = unretained(prefix, schema="public", table="own %s", columns={"id": "the id", **none}, payload="json")
    with conn.transaction():
        app.publish_many(conn, [Placed(order_id=f"{n}") for n in range(3)])
    assert conn.execute('SELECT count(*) FROM "own %s"').fetchone() == (0,)


@pytest.mark.parametrize("there", [0, 1])
def test_without_all_of_its_slots_a_row_is_refused_and_never_lost(
    conn: psycopg.Connection[Any], prefix: str, there: int
) -> None:
    for name in (f"{prefix}_a", f"{prefix}_b")[:there]:
        make_slot(conn, name)
    app = unretained(f"{prefix}_a", f"{prefix}_b")
    with pytest.raises(SourceError, match=rf'retain="none", and {there} of its slots') as refused, conn.transaction():
        app.publish(conn, Placed(order_id="1"))
    assert refused.value.retryable
    assert count(conn) == 0
    with conn.transaction(), pytest.raises(SourceError):  # who commits all the same has the row in the table
        app.enqueue(conn, Mail(to="a"))
    assert count(conn) == 1


def test_a_slot_that_waits_for_the_transaction_does_not_count_for_it(
    database: Database, conn: psycopg.Connection[Any], prefix: str
) -> None:
    app = unretained(prefix)
    with psycopg.connect(database.dsn) as writer:
        writer.execute("SELECT pg_current_xact_id()")  # begun before the slot is: the slot will not have what it writes

        def make() -> None:
            with psycopg.connect(database.dsn, autocommit=True) as other:
                make_slot(other, prefix)

        making = threading.Thread(target=make)
        making.start()
        there = "SELECT FROM pg_replication_slots WHERE slot_name = %s"
        wait_until(lambda: conn.execute(there, (prefix,)).fetchone() is not None)
        with pytest.raises(SourceError, match="0 of its slots"):
            app.publish(writer, Placed(order_id="1"))
        writer.rollback()
        making.join()
        kept = app.publish(writer, Placed(order_id="2"))
        writer.commit()
    assert captured(database, prefix, 1) == [kept]


def test_delayed_jobs_leave_through_the_table_and_wait_while_the_slot_is_missing(
    database: Database, conn: psycopg.Connection[Any], prefix: str
) -> None:
    app = unretained(prefix)
    make_slot(conn, prefix)
    with conn.transaction():
        wanted = app.enqueue_many(conn, [Mail(to=f"{n}") for n in range(5)], delay_s=0.001)
    store = DueStore(database.dsn, app.outbox, lambda late, _now: len(late))
    with closing(store):
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        with pytest.raises(SourceError, match="0 of its slots"):
            store.move(100)
        assert (count(conn, "due"), count(conn)) == (5, 0)
        make_slot(conn, prefix)
        assert store.move(100) == 5
        assert store.move(100) == 0
    assert (count(conn, "due"), count(conn)) == (0, 0)
    assert sorted(captured(database, prefix, 5)) == sorted(wanted)


@pytest.fixture(params=["native", "debezium"])
def start(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    cli_environment: dict[str, str], tmp_path: Path, prefix: str, database: Database,
    conn: psycopg.Connection[Any],
) -> Iterator[Callable[[], None]]:  # fmt: skip
    """Start the native relay, or Debezium on Kafka Connect, of the same file."""
    file = connector_file(
        tmp_path, prefix, **{"database.dbname": database.name, "topic.prefix": prefix, "pipeline.retain": "none"}
    )
    if request.param == "native":
        with RelayProcess(file, cli_environment) as relay:
            yield lambda: relay.reading() and None
        return
    environment = {**cli_environment, "PIPELINE_CONNECT__URL": request.getfixturevalue("connect_url")}
    pipeline = runner(capsys, monkeypatch, environment)
    state = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"

    def deploy() -> None:
        assert pipeline("connector", "deploy", str(file)).code == 0
        until(lambda: conn.execute(state, (prefix,)).fetchone() == (True,), "its slot")

    yield deploy
    pipeline("connector", "delete", prefix, "--execute")


def test_what_was_never_in_the_table_for_others_arrives_on_the_topics(
    start: Callable[[], None], topics: Topics, prefix: str, conn: psycopg.Connection[Any], bootstrap_servers: str
) -> None:
    class Sent(Event, aggregate=prefix, key="order_id", format="json"):
        order_id: str

    app = unretained(prefix)
    topics.create(topic := app.topic_of(Sent))
    start()
    with conn.transaction():
        sent = app.publish_many(conn, [Sent(order_id=f"{n}") for n in range(50)], headers={"tenant": "a"})
    found = until(lambda: len(m := read_topic(bootstrap_servers, topic)) >= 50 and m, "the events")
    assert ids(found) == [str(one) for one in sent]
    assert [one.value() for one in found] == [b'{"order_id":"%d"}' % n for n in range(50)]
    assert headers(found[0])["headers"] == b'{"tenant": "a"}'
    assert count(conn) == 0
    topics.delete([topic])


def test_what_goes_by_rows_that_stay_is_refused_or_told(
    tmp_path: Path, prefix: str, pipeline: CommandLine, database: Database, conn: psycopg.Connection[Any]
) -> None:
    (tmp_path / "app.py").write_text(
        "from pipeline import Outbox, Pipeline\n"
        f'app = Pipeline("shop", outbox=Outbox(retain="none", slots=("{prefix}",)))\n'
        'other = Pipeline("shop", outbox=Outbox(retain="none", slots=("other",)))\n'
    )
    plain, file = connector_file(tmp_path, "plain"), connector_file(tmp_path, prefix, **{"pipeline.retain": "none"})
    refused = pipeline("connector", "reconcile", str(file))
    assert refused.code == 1
    assert "pipeline.retain=none" in refused.stderr
    assert "pruned in the file, none in the application" in pipeline("doctor", str(plain), "--app", "app:app").stdout
    told = pipeline("doctor", str(file), "--app", "app:other").stdout
    assert f"{prefix} is none of the application's: other" in told
    assert "deleted by the transaction that writes them" in pipeline("doctor", str(file), "--app", "app:app").stdout
    make_slot(conn, prefix)
    with conn.transaction():
        unretained(prefix).publish(conn, Placed(order_id="1"))
    assert pipeline("outbox", "tail").stdout == ""
