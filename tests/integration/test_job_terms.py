"""Jobs that are enqueued with a timeout, a policy or an end of their own, on a real broker and database."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jobbing import Desk, OpenDesk
from working import wait_until

from pipeline import Context, Job, Pipeline, RetryPolicy
from pipeline.flow import Flow
from pipeline.headers import DeadLetter
from pipeline.job import Unique
from pipeline.record import Record
from pipeline.terms import HEADER


class Task(Job, queue="tasks", format="json"):
    do: str = ""


class Plain(Job, queue="mixed", format="json"):
    do: str = ""


class Mixed(Job, queue="mixed", format="json"):
    do: str = ""


class Stop(Exception):
    pass


@pytest.fixture
def begun() -> list[tuple[str, int, float]]:
    """What began, at which attempt, and when."""
    return []


@pytest.fixture
def app(prefix: str, begun: list[tuple[str, int, float]]) -> Pipeline:
    app = Pipeline(prefix, topic_prefix="", partitions=2)

    @app.job(Task, retry=RetryPolicy(attempts=2, first_s=0.4, factor=1, cap_s=0.4, jitter=0, fatal=(Stop,)))
    async def task(job: Task, ctx: Context) -> None:
        begun.append((job.do, ctx.attempt, time.monotonic()))
        ctx.result(ctx.timeout_s)
        if job.do == "sleep":
            await asyncio.sleep(60)
        if job.do == "fail":
            raise ValueError
        if job.do == "stop":
            raise Stop

    @app.job(Mixed, retry=RetryPolicy(attempts=1))
    async def mixed(job: Mixed, ctx: Context) -> None:
        if job.do == "sleep":
            await asyncio.sleep(60)

    @app.job(Plain)
    def plain(job: Plain, ctx: Context) -> None: ...

    return app


def waits(begun: list[tuple[str, int, float]], do: str) -> list[float]:
    times = [at for what, _, at in begun if what == do]
    return [after - before for before, after in pairwise(times)]


def test_a_job_has_the_timeout_and_the_attempts_that_it_was_enqueued_with(
    desk: Desk, begun: list[tuple[str, int, float]]
) -> None:
    twice = RetryPolicy(attempts=3, first_s=1.2, factor=1, cap_s=1.2, jitter=0)
    slow = desk.put(Task(do="sleep"), timeout_s=0.2, retry=RetryPolicy(attempts=1))
    mixed = desk.put(Mixed(do="sleep"), timeout_s=0.2)
    failing = desk.put(Task(do="fail"), retry=twice)
    stopped = desk.put(Task(do="stop"), retry=twice)
    well = desk.put(Task(), timeout_s=30)
    desk.carry()
    with desk.working():
        for job_id in (slow, mixed):
            row = desk.until(job_id, "dead")
            assert (row["attempts"], row["error"]) == (1, "TimeoutError")
        row = desk.until(failing, "dead")
        assert row["attempts"] == 3
        # of the tiers 0 s and 0.4 s neither is as long: it goes round until its time
        assert all(wait >= 1.2 for wait in waits(begun, "fail"))
        assert desk.until(stopped, "dead")["attempts"] == 1  # the handler's fatal errors are still fatal
        assert desk.until(well, "done")["result"] == 30
        bare = desk.put(Task(do="fail"))
        desk.carry()
        assert desk.until(bare, "dead")["attempts"] == 2  # others have the handler's


def test_jobs_of_a_flow_have_those_of_the_flow_or_their_own(desk: Desk) -> None:
    with psycopg.connect(desk.database.dsn) as conn:
        flow = Flow(Task(), [Task(), Flow(Task(), options={"timeout_s": 7, "tags": ["own"]})])
        root = str(desk.app.enqueue_flow(conn, flow, timeout_s=20, tags=["all"]))
    desk.carry()
    with desk.working():
        wait_until(lambda: desk.states() == {"done": 2, "delayed": 1})
        rows = desk.conn.execute("SELECT result, tags FROM pipeline.job WHERE parent = %s ORDER BY place", (root,))
        assert [(row["result"], row["tags"]) for row in rows] == [(20, ["all"]), (7, ["own"])]
    assert desk.job(root)["terms"] == {"timeout_s": 20}


def test_what_did_not_begin_in_time_is_cancelled_and_its_key_is_free(
    desk: Desk, begun: list[tuple[str, int, float]]
) -> None:
    late = desk.put(Task(do="late"), expires_s=0.5, unique=Unique(key="k"))
    again = RetryPolicy(attempts=5, first_s=0.8, factor=1, cap_s=0.8, jitter=0)
    desk.carry()
    wait_until(lambda: desk.conn.execute("SELECT now() > created_at + interval '1 s' AS past FROM pipeline.job")
               .fetchone()["past"])  # fmt: skip  # type: ignore[index]
    with desk.working():
        row = desk.until(late, "cancelled")
        assert (row["error"], row["attempts"]) == ("Expired", 0)
        assert desk.conn.execute("SELECT count(*) AS n FROM pipeline.job_key").fetchone() == {"n": 0}
        timely, failing = desk.put(Task(do="timely"), expires_s=30), desk.put(Task(do="fail"), expires_s=1, retry=again)
        desk.carry()
        desk.until(timely, "done")
        assert desk.until(failing, "cancelled")["error"] == "Expired"  # between two attempts
    assert {do for do, _, _ in begun} == {"timely", "fail"}
    assert len(waits(begun, "fail")) <= 1


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "timeout_s": "1"}', '{"version": 1, "retry": {"a": 1}}'])
def test_terms_that_are_corrupt_are_never_passed_over(desk: Desk, text: str) -> None:
    header = json.dumps({HEADER: text}).encode()
    desk.broker.put(desk.app.topic_of(Task), "Task", {}, event_id="e", headers=[("headers", header)])
    desk.broker.flush()
    (group,) = (group for group in desk.app.groups.values() if group.name.endswith(".tasks"))
    with desk.working():
        (letter,) = desk.broker.read(group.dlq, 1)
    error = DeadLetter.of(Record("", 0, 0, None, None, letter.headers(), 0)).error
    assert HEADER in error.message


def test_terms_of_a_newer_version_wait_for_a_newer_worker(desk: Desk, begun: list[tuple[str, int, float]]) -> None:
    header = b'{"pipeline.terms": "{\\"version\\": 2, \\"mood\\": \\"good\\"}"}'
    desk.broker.put(desk.app.topic_of(Task), "Task", {}, event_id="e", headers=[("headers", header)])
    desk.broker.flush()
    (group,) = (group for group in desk.app.groups.values() if group.name.endswith(".tasks"))
    with desk.working():
        wait_until(lambda: sum(map(desk.broker.count, group.retry_topics)) > 0)
    assert begun == []
    assert desk.broker.count(group.dlq) == 0


def test_a_process_is_killed_at_the_jobs_own_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, open_desk: OpenDesk
) -> None:
    monkeypatch.setenv("PROCESS_TEST_DIR", str(tmp_path))
    monkeypatch.setenv("PROCESS_TEST_PREFIX", f"{prefix}.")
    sys.modules.pop("cruncher", None)
    cruncher: Any = importlib.import_module("cruncher")
    desk = open_desk(cruncher.app)
    desk.put(cruncher.Soak(what="long"), timeout_s=0.5, retry=RetryPolicy(attempts=1))
    desk.carry()
    (group,) = cruncher.app.groups.values()
    with desk.working():
        (letter,) = desk.broker.read(group.dlq, 1, 30)
    error = DeadLetter.of(Record("", 0, 0, None, None, letter.headers(), 0)).error
    assert "timeout_s=0.5" in error.message
