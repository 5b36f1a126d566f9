"""Jobs run by workers on a real broker and database: what their rows tell, and what people command."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from jobbing import OpenDesk, steady
from working import wait_until

from pipeline import Context, Job, Pipeline, Reject, RetryLater, RetryPolicy, jobs
from pipeline.definition import Rate
from pipeline.errors import ConfigError
from pipeline.probes import Readiness


class Work(Job, queue="work", format="json"):
    n: int
    do: str = ""


class Loose(Job, queue="work", format="json", track=False):
    n: int


@pytest.fixture
def app(prefix: str) -> Pipeline:
    return Pipeline(prefix, topic_prefix="", partitions=2)


QUICK = RetryPolicy(attempts=3, first_s=0.2, factor=1, cap_s=0.2, jitter=0)


@pytest.fixture
def seen() -> list[int]:
    return []


def test_a_job_is_done_and_its_row_says_so(app: Pipeline, open_desk: OpenDesk) -> None:
    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        ctx.progress(2, 3)
        ctx.result({"squared": job.n**2})

    desk = open_desk(app)
    job_id = desk.put(Work(n=7))
    desk.carry()
    with desk.working():
        row = desk.until(job_id, "done")
    assert (row["attempts"], row["worker"], row["result"]) == (1, "me:1", {"squared": 49})
    assert (row["progress"], row["total"], row["error"]) == (2, 3, None)
    assert row["created_at"] <= row["started_at"] <= row["finished_at"]


def test_failing_jobs_are_retrying_then_dead_or_done_with_their_attempts_counted(
    app: Pipeline, open_desk: OpenDesk
) -> None:
    release = threading.Event()

    @app.job(Work, retry=QUICK)
    def work(job: Work, ctx: Context) -> None:
        if job.do == "reject":
            raise Reject("never")
        if job.do == "later" and not release.is_set():
            raise RetryLater(0.2, counted=False)
        if job.do == "fail" or (job.do == "once" and ctx.attempt == 1):
            raise ValueError("no")

    desk = open_desk(app)
    ids = {do: desk.put(Work(n=1, do=do)) for do in ("reject", "later", "fail", "once")}
    desk.carry()
    with desk.working():
        dead = desk.until(ids["reject"], "dead")
        assert (dead["attempts"], dead["error"]) == (1, "pipeline.retry.Reject")
        row = desk.until(ids["fail"], "dead")
        assert (row["attempts"], row["error"], row["finished_at"] is None) == (3, "ValueError", False)
        assert desk.until(ids["once"], "done")["attempts"] == 2
        row = desk.until(ids["later"], "retrying")
        assert (row["attempts"], row["due_at"] is None) == (0, False)
        release.set()
        assert desk.until(ids["later"], "done")["attempts"] == 1


def test_a_long_job_is_seen_running_with_progress_and_heartbeat(app: Pipeline, open_desk: OpenDesk) -> None:
    go_on = threading.Event()

    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        for step in range(600):
            ctx.progress(step)
            ctx.heartbeat()
            if go_on.wait(0.05):
                return

    desk = open_desk(app)
    job_id = desk.put(Work(n=1))
    desk.carry()
    with desk.working():
        first = desk.until(job_id, "running")
        wait_until(lambda: desk.job(job_id)["progress"] > first["progress"])
        assert desk.job(job_id)["seen_at"] > first["seen_at"]
        go_on.set()
        desk.until(job_id, "done")


def test_a_result_that_is_too_large_fails_the_attempt(app: Pipeline, open_desk: OpenDesk) -> None:
    @app.job(Work, retry=RetryPolicy(attempts=1))
    def work(job: Work, ctx: Context) -> None:
        ctx.result("x" * 70_000)

    desk = open_desk(app)
    job_id = desk.put(Work(n=1))
    desk.carry()
    with desk.working():
        assert desk.until(job_id, "dead")["error"] == "pipeline.errors.ConfigError"


def test_untracked_jobs_of_the_same_queue_run_without_a_row(
    app: Pipeline, open_desk: OpenDesk, seen: list[int]
) -> None:
    @app.job(Loose)
    def loose(job: Loose, ctx: Context) -> None:
        ctx.progress(1)
        ctx.result("nobody reads it")
        seen.append(job.n)

    @app.job(Work)
    def work(job: Work, ctx: Context) -> None: ...

    desk = open_desk(app)
    desk.put(Loose(n=5))
    job_id = desk.put(Work(n=1))
    desk.carry()
    with desk.working():
        desk.until(job_id, "done")
        wait_until(lambda: seen == [5])
    assert desk.states() == {"done": 1}


def test_a_waiting_and_a_retrying_job_that_are_cancelled_never_begin_again(
    app: Pipeline, open_desk: OpenDesk, seen: list[int]
) -> None:
    @app.job(Work, retry=RetryPolicy(attempts=5, first_s=2, factor=1, cap_s=2, jitter=0))
    def work(job: Work, ctx: Context) -> None:
        seen.append(job.n)
        if job.do == "fail":
            raise ValueError

    desk = open_desk(app)
    waiting, failing, other = desk.put(Work(n=1)), desk.put(Work(n=2, do="fail")), desk.put(Work(n=3))
    desk.conn.execute("SELECT * FROM pipeline.cancel_jobs(%s::uuid[])", ([waiting],))
    desk.carry()
    with desk.working():
        desk.until(other, "done")
        desk.until(waiting, "cancelled")
        desk.until(failing, "retrying")
        desk.conn.execute("SELECT * FROM pipeline.cancel_jobs(%s::uuid[])", ([failing],))
        row = desk.until(failing, "cancelled")
    assert sorted(seen) == [2, 3]
    assert row["finished_at"] is not None


def test_a_running_coroutine_is_cancelled_and_others_go_on(app: Pipeline, open_desk: OpenDesk) -> None:
    began, cleaned = threading.Event(), threading.Event()

    @app.job(Work)
    async def work(job: Work, ctx: Context) -> None:
        if job.do == "long":
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                cleaned.set()

    desk = open_desk(app)
    long = desk.put(Work(n=1, do="long"))
    desk.carry()
    with desk.working(concurrency=1):
        assert began.wait(60)
        desk.conn.execute("SELECT * FROM pipeline.cancel_jobs(%s::uuid[])", ([long],))
        desk.until(long, "cancelled")
        assert cleaned.is_set()
        after = desk.put(Work(n=2))
        desk.carry()
        desk.until(after, "done")


def test_a_running_thread_is_told_and_ends_itself(app: Pipeline, open_desk: OpenDesk) -> None:
    began = threading.Event()

    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        began.set()
        for _ in range(600):
            ctx.raise_if_cancelled()
            time.sleep(0.05)

    desk = open_desk(app)
    job_id = desk.put(Work(n=1))
    desk.carry()
    with desk.working():
        assert began.wait(60)
        desk.conn.execute("SELECT * FROM pipeline.cancel_jobs(%s::uuid[])", ([job_id],))
        desk.until(job_id, "cancelled")


def test_a_paused_queue_begins_nothing_and_goes_on_when_it_is_resumed(
    app: Pipeline, open_desk: OpenDesk, seen: list[int]
) -> None:
    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        seen.append(job.n)

    desk = open_desk(app)
    queue = app.topic_of(Work)

    def command(steps: Any) -> Any:
        with desk.conn.transaction():
            app.run(desk.conn, steps)
        return desk.conn.execute("SELECT clock_timestamp() AS now").fetchone()["now"]  # type: ignore[index]

    def paused(health: Readiness) -> bool:
        return health.state()["notes"] == {queue: "paused"}

    with desk.working() as health:
        first = desk.put(Work(n=1))
        desk.carry()
        desk.until(first, "done")
        command(jobs.pause(queue))
        wait_until(lambda: paused(health))
        ids = [desk.put(Work(n=n)) for n in range(2, 30)]
        desk.carry()
        resumed = command(jobs.resume(queue))
        assert all(desk.until(job_id, "done")["started_at"] >= resumed for job_id in ids)
        command(jobs.pause(queue))
        wait_until(lambda: paused(health))
    last = desk.put(Work(n=99))
    desk.carry()
    with desk.working() as health:  # a worker that starts while it is paused begins nothing either
        wait_until(lambda: paused(health))
        assert desk.job(last)["state"] == "waiting"
        resumed = command(jobs.resume(queue))
        assert desk.until(last, "done")["started_at"] >= resumed
    assert sorted(seen) == [*range(1, 30), 99]


def test_high_priority_overtakes_and_low_is_not_starved(app: Pipeline, open_desk: OpenDesk, seen: list[int]) -> None:
    app.queue("work", priorities=True)
    hold = threading.Event()
    order: list[str] = []

    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        if job.do == "block":
            hold.wait(30)
        else:
            order.append(job.do)

    desk = open_desk(app)
    with desk.working(concurrency=1):
        for n in range(2):  # the window of a concurrency of 1
            desk.put(Work(n=n, do="block"))
        desk.carry()
        wait_until(lambda: "running" in desk.states())
        for n in range(40):
            desk.put(Work(n=n, do="low"), priority="low")
        for n in range(60):
            desk.put(Work(n=n, do="high"), priority="high")
        desk.carry()
        wait_until(lambda: len(desk.journals[0]._gate) == 100, why="all are at the worker")
        hold.set()
        wait_until(lambda: len(order) == 100)
    head = order[:44]
    assert head.count("high") > 30
    assert head.count("low") >= 3


def test_bad_definitions_are_refused(app: Pipeline) -> None:
    for count, per_s in ((0, 1), (1, 0), (10, float("inf")), (10, float("nan")), (10_000_000, 1)):
        with pytest.raises(ConfigError):
            Rate(count, per_s)
    app.queue("work")
    with pytest.raises(ConfigError, match="twice"):
        app.queue("work")
    with pytest.raises(ConfigError, match="no priorities"):
        app.enqueue(_NoConnection(), Work(n=1), priority="high")


class _NoConnection:
    pipeline_writer: Any = None


def test_rows_that_cannot_be_written_hold_settlement_back(app: Pipeline, open_desk: OpenDesk, seen: list[int]) -> None:
    @app.job(Work)
    def work(job: Work, ctx: Context) -> None:
        seen.append(job.n)

    desk = open_desk(app)
    job_id = desk.put(Work(n=1))
    topic = app.topic_of(Work)
    with desk.working():
        with desk.conn.transaction():
            desk.conn.execute("SELECT FROM pipeline.job FOR UPDATE")
            desk.carry()
            wait_until(lambda: seen == [1])
            assert steady(lambda: desk.broker.committed(topic, topic), 1.0) == 0
        desk.until(job_id, "done")
        wait_until(lambda: desk.broker.committed(topic, topic) == 1)
