"""Lists of jobs are read by index, whatever the filter: no plan reads the table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from servers import Database

from pipeline import jobs
from pipeline.outbox import Steps

ROWS = 100_000

_FILL = """
INSERT INTO pipeline.job (id, queue, type, state, tags)
SELECT CAST(lpad(to_hex(n), 12, '0') || repeat('0', 20) AS uuid), 'q' || n %% 3, 'T' || n %% 5,
       CASE WHEN n %% 1000 = 0 THEN 'dead' ELSE 'done' END, CASE WHEN n %% 500 = 0 THEN ARRAY['t' || n %% 7] END
FROM generate_series(1, %s) AS n
"""


def plans(conn: psycopg.Connection[Any], steps: Steps[Any]) -> list[dict[str, Any]]:
    """Run one question, and return the nodes of its plan."""
    statement = next(steps)
    row = conn.execute(("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql).encode(), statement.rows[0]).fetchone()
    assert row is not None
    found = [row[0][0]["Plan"]]
    for node in found:
        found += node.get("Plans", [])
    return found


@pytest.fixture
def conn(database: Database) -> Any:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(_FILL, (ROWS,))
        conn.execute("VACUUM ANALYZE pipeline.job, pipeline.job_delta")
        yield conn


def found(conn: Any, steps: Steps[Any]) -> list[Any]:
    statement = next(steps)
    return [row[0] for row in conn.execute(statement.sql.encode(), statement.rows[0])]


def plainly(conn: Any, filters: dict[str, Any]) -> list[Any]:
    """The same page, by reading the table."""
    columns = {"queue": "queue = %s", "type_name": "type = %s", "state": "state = %s", "tag": "%s = ANY (tags)",
               "before": "id < %s::uuid",
               "since": "id >= (lpad(to_hex((extract(epoch FROM %s::timestamptz) * 1000)::bigint), 12, '0')"
                        " || repeat('0', 20))::uuid"}  # fmt: skip
    where = " AND ".join(["true", *(columns[name] for name in filters)])
    sql = f"SELECT id FROM pipeline.job WHERE {where} ORDER BY id DESC LIMIT 50"
    return [row[0] for row in conn.execute(sql.encode(), list(filters.values()))]


def test_no_filter_reads_more_than_its_page(conn: Any) -> None:
    middle = f"{ROWS // 2:012x}{0:020x}"
    since = datetime.fromtimestamp(ROWS * 0.99 / 1000, UTC)
    asked: list[dict[str, Any]] = [
        {}, {"queue": "q1"}, {"type_name": "T2"}, {"state": "dead"}, {"tag": "t3"}, {"queue": "q1", "state": "dead"},
        {"queue": "q0", "type_name": "T4", "state": "done"}, {"tag": "t3", "state": "done"},
        {"queue": "q9"}, {"queue": "q1", "type_name": "T0", "state": "dead"},
    ]  # fmt: skip
    bounds: list[dict[str, Any]] = [{}, {"before": middle}, {"since": since}]
    for filters in ({**one, **bound} for one in asked for bound in bounds):
        assert found(conn, jobs.listing(**filters)) == plainly(conn, filters), filters
        assert found(conn, jobs.matching(**filters, limit=50)) == plainly(conn, filters), filters
        nodes = plans(conn, jobs.listing(**filters))
        at_jobs = [node for node in nodes if node.get("Relation Name") == "job"]
        assert at_jobs, filters
        for node in at_jobs:
            read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            assert node["Node Type"] != "Seq Scan", (filters, json.dumps(node, indent=1))
            assert read < 1_000, (filters, json.dumps(node, indent=1))
