"""What is read, and from where on: the native relay beside Debezium 3.7, with a connector of each for each case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Message
from pairs import SIDES, Capture, slots_read
from relays import ids, insert, until
from servers import Database, Topics

Conn = psycopg.Connection[tuple[object, ...]]
Start = Callable[..., dict[str, Capture]]


@pytest.fixture
def conn(database: Database) -> Iterator[Conn]:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def start(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str],
    topics: Topics, conn: Conn,
) -> Iterator[Start]:  # fmt: skip
    """Start a file with these changes on both sides, and wait until both read their slots."""
    with ExitStack() as stack:

        def begin(**changes: str | None) -> dict[str, Capture]:
            made = {
                side: Capture(side, prefix, tmp_path, connect_url, cli_environment, database.name, changes)
                for side in SIDES
            }
            topics.create(*(one.topic for one in made.values()))
            for one in made.values():
                stack.callback(one.end)
            go_on(conn, made)
            return made

        yield begin


def go_on(conn: Conn, pair: Mapping[str, Capture]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Capture.start, pair.values()))
    until(
        lambda: all(one.lives() for one in pair.values()) and slots_read(conn, pair.values()) == 2,
        "both slots are read",
        90,
    )


def published(bootstrap_servers: str, pair: Mapping[str, Capture], last: str) -> dict[str, list[Message]]:
    """Return what both published, once both have a row."""
    for side, one in pair.items():
        until(lambda one=one: one.lives() and one.has(bootstrap_servers, last), f"{side}: the last row", 60)
    return {side: one.records(bootstrap_servers) for side, one in pair.items()}


def content(messages: list[Message]) -> list[object]:
    """Return what is compared of records."""
    return [(one.key(), one.value(), one.headers(), one.timestamp()) for one in messages]


def test_lists_of_schemas_tables_and_columns(start: Start, conn: Conn, bootstrap_servers: str) -> None:
    tables = ("shop.orders", "shop.aside", "crm.outbox", "other.outbox")
    for schema in ("shop", "crm", "other"):
        conn.execute(f"CREATE SCHEMA {schema}")
    for table in tables:
        conn.execute(f"CREATE TABLE {table} (LIKE pipeline.outbox INCLUDING ALL)")
    pair = start(
        **{
            "table.include.list": None, "schema.include.list": "SHOP,crm", "table.exclude.list": "shop\\.a.*",
            "column.exclude.list": ".*\\.headers,shop.orders.traceparent",
            "publication.autocreate.mode": "filtered", "offset.mismatch.strategy": "trust_greater_lsn",
            "transforms.outbox.table.field.additional.missing": "ignore",
        }
    )  # fmt: skip
    made = []
    for table in tables:
        made.append(insert(conn, "events", "k"))
        conn.execute(
            f"INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent) SELECT"
            " id, aggregatetype, aggregateid, type, payload, topic, '{}', 't' FROM pipeline.outbox WHERE id = %s",
            (made[-1],),
        )
    found = published(bootstrap_servers, pair, made[2])
    assert ids(found["native"]) == ids(found["debezium"]) == [made[0], made[2]]
    assert content(found["native"]) == content(found["debezium"])
    assert [sorted(dict(one.headers() or [])) for one in found["native"]] == [
        ["id", "type"],
        ["id", "traceparent", "type"],
    ]
