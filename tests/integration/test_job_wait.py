"""The end of a job is waited for from Python and from the command line, on real PostgreSQL."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from commands import CommandLine
from pydantic import SecretStr
from servers import Database
from working import wait_until

from pipeline import Job, Pipeline
from pipeline.config import PostgresSettings, Settings
from pipeline.errors import JobError
from pipeline.runtime.jobs import wait_for

app = Pipeline("shop", topic_prefix="")


class Mail(Job, queue="email", format="json"):
    to: str


def test_a_result_is_waited_for_on_one_connection(
    conn: psycopg.Connection[Any], database: Database, pipeline: CommandLine
) -> None:
    with conn.transaction():
        job_id = app.enqueue(conn, Mail(to="a"))
    settings = Settings(postgres=PostgresSettings(dsn=SecretStr(database.dsn)))
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    sessions: set[tuple[int, ...]] = set()

    def looked(times: int) -> None:
        seen: set[Any] = set()

        def again() -> bool:
            rows = conn.execute(f"SELECT pid, query_start {others} AND application_name = 'pipeline'").fetchall()
            sessions.update((pid,) for pid, _ in rows)
            seen.update(rows)
            return len(seen) >= times

        wait_until(again, why="it looks again and again")

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for, settings, job_id, timeout_s=60)
        looked(5)
        assert not waiting.done()
        report = {"id": str(job_id), "state": "done", "result": {"pages": 7}}
        conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([report]),))
        row = waiting.result(60)
    assert (row.state, row.result) == ("done", {"pages": 7})
    assert len(sessions) == 1
    assert json.loads(pipeline("jobs", "show", str(job_id), "-o", "json").stdout)["result"] == {"pages": 7}
    assert "pages" in pipeline("jobs", "show", str(job_id)).stdout
    with conn.transaction():
        unfinished = app.enqueue(conn, Mail(to="b"))
    with pytest.raises(JobError, match=rf"{unfinished} is waiting after 0.2 s") as late:
        wait_for(settings, unfinished, timeout_s=0.2)
    assert (late.value.retryable, "wait longer" in (late.value.remedy or "")) == (True, True)
    said = pipeline("jobs", "show", str(unfinished), "--wait", "0.1")
    assert (said.code, said.stdout) == (1, "")
    assert "is waiting after 0.1 s" in said.stderr
    assert "wait longer" in said.stderr
    with pytest.raises(JobError, match="no job"):
        wait_for(settings, "01900000-0000-7000-8000-000000000000", timeout_s=60)
