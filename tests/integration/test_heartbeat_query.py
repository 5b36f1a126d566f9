"""The statement of a connector's operator, run beside its relay, on connections that are as the file wants them."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from servers import Database
from waiting import wait_until

from pipeline.postgres.heartbeat import beat


def test_no_query_runs_on_a_connection_whose_first_statements_failed(
    database: Database, conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    conn.execute("CREATE TABLE beats (said text)")
    first = "SELECT set_config('shop.said', 'all ran', false) FROM comes_later"
    query = "INSERT INTO beats VALUES (current_setting('shop.said', true))"
    done = threading.Event()
    beating = threading.Thread(
        target=beat,
        args=(database.dsn, query, 0.02),
        kwargs={"active": lambda: True, "done": done, "statements": [first]},
    )
    beating.start()
    try:
        wait_until(lambda: "comes_later" in caplog.text)
        conn.execute("CREATE TABLE comes_later AS SELECT 1")
        wait_until(lambda: "works again" in caplog.text)
    finally:
        done.set()
        beating.join()
    assert conn.execute("SELECT DISTINCT said FROM beats").fetchall() == [("all ran",)]
