"""Rows a second inside one transaction: our bulk call against plain COPY of the same rows, and the single call.

    python -m tests.benchmarks.writers [--rows 20000]

In a database of its own on PIPELINE_POSTGRES__DSN. The ways take turns, round by round, and the median counts. Messages
are made outside the clock; encoding, ids and the commit are inside. Only ratios carry over to other machines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from pipeline import Event, Pipeline
from pipeline.avro import schema_of
from pipeline.codec import encode
from pipeline.config import Settings
from pipeline.endpoints import postgres_dsn
from pipeline.outbox import uuid7
from pipeline.postgres.schema_ids import SchemaIdTable
from pipeline.subject import subject_of
from tests.benchmarks.table import told

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import migrated_template, new_database

ROUNDS = 5
TARGET = 0.7
COPY = "COPY pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent) FROM STDIN"


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str
    customer: str
    address: str
    number: int


app = Pipeline("bench", topic_prefix="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    count, repeats = (2_000, 1) if given.quick else (given.rows, ROUNDS)
    address = "a street with a long name, " * 7  # 230 bytes of payload, as the relay's benchmark has
    events = [Placed(order_id=f"order-{n}", customer="c" * 20, address=address, number=n) for n in range(count)]
    admin = postgres_dsn(Settings.load())
    with migrated_template(admin) as template, new_database(admin, template) as database:
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            key = (subject_of("outbox.event.order", "Placed"), schema_of(Placed).fingerprint)
            SchemaIdTable(conn).put({key: 1})
        rows = [
            (uuid7(), "order", e.order_id, "Placed", encode(e, 1), "outbox.event.order", None, None) for e in events
        ]
        ways: dict[str, Callable[[psycopg.Connection[Any]], object]] = {
            "plain COPY, write_row": lambda conn: plain_copy(conn, rows),
            "plain COPY, one ready text": lambda conn: ready_copy(conn, text_of(rows)),
            "publish_many": lambda conn: app.publish_many(conn, events),
            "publish_many, 1,000 each": lambda conn: [
                app.publish_many(conn, events[n : n + 1000]) for n in range(0, count, 1000)
            ],
            "publish, one by one": lambda conn: [app.publish(conn, event) for event in events[: count // 10]],
        }
        text_of(rows)
        rounds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, work in ways.items():
                rounds[name].append(rate(database.dsn, work, count // (10 if "one by" in name else 1)))
    rates = {name: statistics.median(each) for name, each in rounds.items()}
    base = rates.pop("plain COPY, write_row")
    for name, found in rates.items():
        least = TARGET if name == "publish_many" else None
        told(
            f"{name}, against plain COPY of the same rows",
            f"{found:,.0f} / {base:,.0f} rows/s",
            found / base,
            least=least,
        )


def rate(dsn: str, work: Callable[[psycopg.Connection[Any]], object], count: int) -> float:
    """Rows a second, commit among them, on an emptied table."""
    with psycopg.connect(dsn) as conn:
        conn.execute("TRUNCATE pipeline.outbox")
        conn.commit()
        start = time.perf_counter()
        work(conn)
        conn.commit()
        return count / (time.perf_counter() - start)


def plain_copy(conn: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    with conn.cursor().copy(COPY) as copy:
        for row in rows:
            copy.write_row(row)


_TEXTS: dict[int, bytes] = {}


def text_of(rows: list[tuple[Any, ...]]) -> bytes:
    """The rows as COPY's text, made once outside the clock: what the server alone can take."""
    if id(rows) not in _TEXTS:
        lines = (f"{r[0]}\t{r[1]}\t{r[2]}\t{r[3]}\t\\\\x{r[4].hex()}\t{r[5]}\t\\N\t\\N\n" for r in rows)
        _TEXTS[id(rows)] = "".join(lines).encode()
    return _TEXTS[id(rows)]


def ready_copy(conn: psycopg.Connection[Any], text: bytes) -> None:
    with conn.cursor().copy(COPY) as copy:
        copy.write(text)


if __name__ == "__main__":
    main()
