"""What a queue's rate grants on a real database, by the database's clock: its row is dated back, nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from servers import Database

from pipeline.definition import Queue, Rate
from pipeline.postgres.jobs import JobRows
from pipeline.worker.journal import Control

QUEUE = Queue("shop.jobs.limited", Rate(10))


@pytest.fixture
def rows(database: Database) -> Iterator[JobRows]:
    rows = JobRows(database.dsn, Control)
    yield rows
    rows.close()


def dated(conn: psycopg.Connection[Any], tokens: float, ago: str) -> datetime:
    """Let the rate have had so many tokens so long ago; return when that was."""
    row = conn.execute(
        "INSERT INTO pipeline.rate VALUES (%s, %s, clock_timestamp() - CAST(%s AS interval))"
        " ON CONFLICT (queue) DO UPDATE SET tokens = excluded.tokens, at = excluded.at RETURNING at",
        (QUEUE.name, tokens, ago),
    ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def left(conn: psycopg.Connection[Any]) -> tuple[float, datetime]:
    row = conn.execute("SELECT tokens, at FROM pipeline.rate WHERE queue = %s", (QUEUE.name,)).fetchone()
    assert row is not None
    return row


def test_time_refills_a_rate_by_its_tokens_a_second_and_never_beyond_its_burst(
    conn: psycopg.Connection[Any], rows: JobRows
) -> None:
    assert QUEUE.rate is not None
    assert rows.lease(QUEUE, 100) == QUEUE.rate.burst  # a rate of which nothing is known yet
    since = dated(conn, 0, "0.5 s")
    granted = rows.lease(QUEUE, 100)
    tokens, at = left(conn)
    came = 10 * (at - since).total_seconds()  # 5, and what came while the statements were on their way
    assert granted >= 5
    assert granted == min(int(QUEUE.rate.burst), int(granted + tokens))
    assert granted + tokens == pytest.approx(min(QUEUE.rate.burst, came), abs=0.1)

    dated(conn, 0, "1 day")
    assert rows.lease(QUEUE, 100) == QUEUE.rate.burst
    assert left(conn)[0] == 0  # and no debt, nor a rest


def test_what_is_left_of_a_rate_is_shared_and_a_clock_that_goes_back_takes_nothing(
    conn: psycopg.Connection[Any], rows: JobRows, database: Database
) -> None:
    ahead = dated(conn, 7.5, "-1 day")
    other = JobRows(database.dsn, Control)
    try:
        assert [rows.lease(QUEUE, 5), other.lease(QUEUE, 5), rows.lease(QUEUE, 5)] == [5, 2, 0]
    finally:
        other.close()
    assert left(conn) == (0.5, ahead)
