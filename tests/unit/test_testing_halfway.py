"""A handler in the middle: what the harness shows of it, and how it is cancelled, by the code of production."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from pipeline import Context, Job, Pipeline, Reject, RetryPolicy, jobs
from pipeline.errors import ConfigError, JobError
from pipeline.job import Unique
from pipeline.testing import Harness, NotIdle

Handler = Callable[["Render", Context], Any]


class Render(Job, queue="render"):
    page: int


class Publish(Job, queue="publish", format="json"):
    album: int


@pytest.fixture
def made() -> Iterator[list[Harness]]:
    found: list[Harness] = []
    yield found
    for one in found:
        one.close()


@pytest.fixture
def start(made: list[Harness]) -> Callable[..., Harness]:
    def begin(handler: Handler, **options: Any) -> Harness:
        app = Pipeline("office", topic_prefix="")
        app.job(Render, retry=RetryPolicy(attempts=3, first_s=60, factor=1), **options)(handler)
        app.job(Publish)(publish)
        made.append(Harness(app))
        return made[-1]

    return begin


def publish(job: Publish, ctx: Context) -> None:
    ctx.result(len(ctx.children()))


def test_a_running_coroutine_is_seen_and_cancelled(start: Callable[..., Harness]) -> None:
    ended: list[str] = []

    async def render(job: Render, ctx: Context) -> None:
        ctx.progress(1, 2)
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleared up")
        ctx.result("never")

    harness = start(render)
    sent, begun = harness.enqueue(Render(page=1)), harness.clock.now
    harness.run_for(10)
    row = harness.job(sent)
    assert (row.state, row.progress, row.worker, row.finished_at) == ("running", 1, "harness", None)
    assert harness.clock.now == begun + timedelta(seconds=10)
    assert harness.run(jobs.cancel(sent)) == "running"
    assert harness.job(sent).state == "running"
    harness.run_until_idle()
    row = harness.job(sent)
    assert (row.state, row.attempts, row.result, ended) == ("cancelled", 1, None, ["cleared up"])
    assert (harness.handled, harness.retries, harness.dead_letters) == ([], [], [])
    assert harness.clock.now < begun + timedelta(seconds=15)


def test_what_is_left_in_the_middle_goes_on_there_and_ends(start: Callable[..., Harness]) -> None:
    begun: list[int] = []

    async def render(job: Render, ctx: Context) -> None:
        begun.append(job.page)
        for done in range(60):
            ctx.progress(done, 60)
            await asyncio.sleep(60)
        ctx.result(job.page)

    harness = start(render, timeout_s=4000)
    pages = [harness.enqueue(Render(page=n)) for n in range(2)]
    for minutes in (10, 20):
        harness.run_for(600)
        states = sorted(harness.job(one).state for one in pages)
        assert states == ["running", "waiting"]  # one after another
        assert max(harness.job(one).progress or 0 for one in pages) == minutes
    harness.run_until_idle()
    assert [(harness.job(one).state, harness.job(one).result) for one in pages] == [("done", 0), ("done", 1)]
    assert sorted(begun) == [0, 1]


def test_a_handler_that_catches_its_cancelling_or_was_not_asked_to_end_is_as_in_production(
    start: Callable[..., Harness],
) -> None:
    async def render(job: Render, ctx: Context) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ctx.result("as far as it came")
        if job.page == 2 and ctx.attempt == 1:
            raise asyncio.CancelledError  # of its own: a failure

    harness = start(render)
    caught, own = harness.enqueue(Render(page=1)), harness.enqueue(Render(page=2))
    harness.run_for(700)
    harness.run(jobs.cancel(caught))
    harness.run_until_idle()
    assert (harness.job(own).state, harness.job(own).attempts) == ("done", 2)
    assert [one.error for one in harness.retries] == ["asyncio.exceptions.CancelledError"]
    assert harness.job(caught).result == "as far as it came"


@pytest.mark.parametrize("awaits", [True, False])
def test_a_handler_learns_of_a_command_that_comes_in_the_middle(start: Callable[..., Harness], awaits: bool) -> None:
    told: list[Any] = []

    def plain(job: Render, ctx: Context) -> None:
        told.append(ctx.cancelled)
        harness.clock.advance(60)
        told.append(harness.job(sent).state)
        told.append(harness.run(jobs.cancel(sent)))
        told.append(ctx.cancelled)
        ctx.raise_if_cancelled()

    async def coroutine(job: Render, ctx: Context) -> None:
        told.append(ctx.cancelled)
        await asyncio.sleep(60)
        told.append(harness.job(sent).state)
        told.append(harness.run(jobs.cancel(sent)))
        told.append(ctx.cancelled)
        await asyncio.sleep(0)

    harness = start(coroutine if awaits else plain)
    sent = harness.enqueue(Render(page=1))
    harness.run_until_idle()
    assert told == [False, "running", "running", True]
    assert (harness.job(sent).state, harness.job(sent).attempts) == ("cancelled", 1)
    assert harness.enqueue(Render(page=2)) != sent  # the loop and the worker go on
    harness.run_until_idle()


def test_what_began_with_an_inbox_is_undone_by_a_cancel(start: Callable[..., Harness]) -> None:
    async def render(job: Render, ctx: Context) -> None:
        await harness.app.aenqueue(ctx.conn, Publish(album=job.page))
        await asyncio.sleep(600)

    harness = start(render, inbox=True)
    cancelled, whole = harness.enqueue(Render(page=1)), harness.enqueue(Render(page=2))
    harness.run_for(601)
    in_the_middle = cancelled if harness.job(cancelled).state == "running" else whole
    harness.run(jobs.cancel(in_the_middle))
    harness.run_until_idle()
    assert sorted(harness.job(one).state for one in (cancelled, whole)) == ["cancelled", "done"]
    assert [one.album for one in harness.messages(Publish)] == [2 if in_the_middle == cancelled else 1]


def test_a_worker_that_is_killed_in_the_middle_begins_anew(start: Callable[..., Harness]) -> None:
    begun: list[float] = []

    async def render(job: Render, ctx: Context) -> None:
        begun.append(harness.clock.passed_s)
        await asyncio.sleep(600)
        ctx.result("whole")

    harness = start(render)
    sent = harness.enqueue(Render(page=1))
    harness.run_for(100)
    harness.crash("render")
    harness.run_until_idle()
    assert harness.job(sent).result == "whole"
    assert (len(begun), harness.retries) == (2, [])  # the first attempt came to nothing
    assert 100 < begun[1] < 110


def test_workers_join_and_leave_while_a_handler_is_in_the_middle(start: Callable[..., Harness]) -> None:
    ended: list[int] = []

    async def render(job: Render, ctx: Context) -> None:
        await asyncio.sleep(300)
        ended.append(job.page)

    harness = start(render)
    for page in range(20):
        harness.enqueue(Render(page=page))
    for _ in range(40):
        harness.run_for(50)
        harness.rebalance("render")
    harness.run_until_idle()
    assert set(ended) == set(range(20))
    assert harness.dead_letters == []


def test_a_run_that_must_come_to_its_end_says_when_a_handler_does_not(start: Callable[..., Harness]) -> None:
    async def render(job: Render, ctx: Context) -> None:
        await asyncio.sleep(7200)

    harness = start(render)
    sent = harness.enqueue(Render(page=1))
    with pytest.raises(NotIdle, match="render"):
        harness.run_until_idle(limit_s=60)
    harness.run_until_idle()
    assert harness.job(sent).state == "done"


def test_a_test_that_ends_in_the_middle_leaves_nothing_behind(
    start: Callable[..., Harness], recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def render(job: Render, ctx: Context) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(1)
            ended.append("cleared up")

    harness = start(render)
    harness.enqueue(Render(page=1))
    harness.run_for(1)
    harness.close()
    gc.collect()
    assert (ended, list(recwarn), caplog.records) == (["cleared up"], [], [])
    harness.run_until_idle()  # the harness is whole: the record comes again, as after a crash
    assert len(harness.handled) == 1


def test_a_handler_that_does_not_let_itself_be_cancelled_is_left_behind(start: Callable[..., Harness]) -> None:
    ends: list[bool] = []

    async def render(job: Render, ctx: Context) -> None:
        while not ends:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(600)

    harness = start(render)
    harness.enqueue(Render(page=1))
    harness.run_for(1)
    harness.close()
    ends.append(True)
    harness.run_until_idle()
    assert len(harness.handled) == 1


def test_a_handler_in_the_middle_is_not_gone_on_with_on_another_loop(start: Callable[..., Harness]) -> None:
    async def render(job: Render, ctx: Context) -> None:
        await asyncio.sleep(600)

    async def others() -> None:
        with pytest.raises(ConfigError, match="in the middle"):
            await harness.arun_until_idle()
        with pytest.raises(ConfigError, match="in the middle"):
            harness.run_until_idle()

    harness = start(render)
    harness.enqueue(Render(page=1))
    harness.run_for(1)
    asyncio.run(others())
    harness.run_until_idle()
    assert [one.attempt for one in harness.handled] == [1]


def test_on_the_tests_own_loop_a_task_beside_cancels_what_runs(start: Callable[..., Harness]) -> None:
    async def both() -> None:
        async def cancel() -> None:
            await begun.wait()
            harness.run(jobs.cancel(sent))

        async def render(job: Render, ctx: Context) -> None:
            begun.set()
            await asyncio.sleep(600)

        begun, harness = asyncio.Event(), start(render)
        sent = harness.enqueue(Render(page=1))
        beside = asyncio.create_task(cancel())
        await harness.arun_until_idle()
        await beside
        assert harness.job(sent).state == "cancelled"

    asyncio.run(both())


def test_sleeping_takes_no_time_once_a_thread_has_ended(start: Callable[..., Harness]) -> None:
    threads: list[int] = []

    async def render(job: Render, ctx: Context) -> None:
        await asyncio.to_thread(lambda: threads.append(threading.get_ident()))
        await asyncio.sleep(3600)

    harness = start(render)
    harness.enqueue(Render(page=1))
    harness.run_for(1800)
    assert harness.handled == []
    harness.run_until_idle()
    assert len(harness.handled) == len(threads) == 1


def test_replace_ends_a_job_in_the_middle_and_the_new_one_is_done(start: Callable[..., Harness]) -> None:
    async def render(job: Render, ctx: Context) -> None:
        await asyncio.sleep(600)

    harness = start(render)
    first = harness.enqueue(Render(page=1), unique=Unique(key="one"))
    harness.run_for(60)
    second = harness.enqueue(Render(page=2), unique=Unique(key="one", on_conflict="replace"))
    harness.run_until_idle()
    assert [harness.job(one).state for one in (first, second)] == ["cancelled", "done"]


def test_a_job_that_is_sent_again_takes_its_key_or_is_refused(start: Callable[..., Harness]) -> None:
    def render(job: Render, ctx: Context) -> None:
        if job.page < 9:
            raise Reject("as asked")

    harness = start(render)
    dead = []
    for page in (1, 2):
        dead.append(harness.enqueue(Render(page=page), unique=Unique(key="one")))
        harness.run_until_idle()
    harness.run(jobs.pause("office.jobs.render"))
    other = harness.enqueue(Render(page=9), unique=Unique(key="one"))
    with pytest.raises(JobError, match=f"held by job {other}"):
        harness.run(jobs.retry(dead[0]))
    harness.run(jobs.resume("office.jobs.render"))
    harness.run_until_idle()
    assert harness.run(jobs.retry_many(dead)) == [dead[1]]
    assert harness.enqueue(Render(page=9), unique=Unique(key="one")) == dead[1]
    harness.run_until_idle()
    assert harness.enqueue(Render(page=9), unique=Unique(key="one")) not in dead
