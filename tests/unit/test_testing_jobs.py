"""Jobs in ``pipeline.testing``: rows, commands, rates, priorities, schedules and flows, by the clock that jumps."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline import Context, Job, Outbox, Pipeline, Reject, RetryPolicy, jobs
from pipeline.definition import Rate
from pipeline.errors import ConfigError, JobError, SchemaError
from pipeline.flow import Flow, batch, chain
from pipeline.job import OnFailure, Unique
from pipeline.schedule import Tick
from pipeline.testing import Faults, Harness, NotIdle


class Mail(Job, queue="mail"):
    address: str


class Step(Job, queue="steps", format="json"):
    name: str
    fails: bool = False


class Book(Job, queue="books"):
    name: str


class Limited(Job, queue="limited"):
    n: int


class InPlace(Job, queue="limited"):
    n: int


class Ranked(Job, queue="ranked"):
    n: int


app = Pipeline("office", topic_prefix="")
app.queue("limited", rate=Rate(10))
app.queue("ranked", priorities=True)


@app.job(Mail, retry=RetryPolicy(attempts=3, first_s=60, factor=1))
async def mail(job: Mail, ctx: Context) -> None:
    ctx.progress(1, 2)
    if job.address == "hung":
        await asyncio.sleep(3600)
    if job.address == "down":
        raise ConnectionError
    if job.address == "slow" and ctx.attempt == 1:
        raise TimeoutError
    ctx.result({"to": job.address})


@app.job(Step, retry=RetryPolicy(attempts=1))
def step(job: Step, ctx: Context) -> None:
    if job.fails:
        raise Reject("as asked")
    ctx.result([job.name, *(child.result for child in ctx.children())])


@app.job(Book, inbox=True)
def book(job: Book, ctx: Context) -> None:
    app.enqueue(ctx.conn, Step(name=job.name))
    ctx.result(job.name)


@app.job(Limited)
def limited(job: Limited, ctx: Context) -> None: ...


@app.job(InPlace, order="key", retry=RetryPolicy(attempts=5, first_s=0.01, factor=1, jitter=0))
def in_place(job: InPlace, ctx: Context) -> None:
    if ctx.attempt < 5:
        raise TimeoutError


@app.job(Ranked)
def ranked(job: Ranked, ctx: Context) -> None: ...


@app.schedule("0 * * * *", name="hourly", timezone="UTC", overlap="skip")
def hourly(tick: Tick, ctx: Context) -> None:
    ctx.result(tick.at.isoformat())


@pytest.fixture
def harness() -> Harness:
    return Harness(app)


def test_a_row_tells_what_became_of_its_job(harness: Harness) -> None:
    fine = harness.enqueue(Mail(address="ada"), tags=["a", "b"])
    slow, later = harness.enqueue(Mail(address="slow")), harness.enqueue(Mail(address="eve"), delay_s=7200)
    down = harness.enqueue(Mail(address="down"))
    assert [harness.job(one).state for one in (fine, later)] == ["waiting", "delayed"]
    harness.run_for(10)
    row = harness.job(fine)
    assert (row.state, row.result, row.progress, row.total, row.attempts) == ("done", {"to": "ada"}, 1, 2, 1)
    assert (harness.job(slow).state, harness.job(slow).error) == ("retrying", "TimeoutError")
    assert harness.run(jobs.counts()) == [
        ("office.jobs.mail", "Mail", "delayed", 1),
        ("office.jobs.mail", "Mail", "done", 1),
        ("office.jobs.mail", "Mail", "retrying", 2),
    ]
    harness.run_until_idle()
    assert [(harness.job(one).state, harness.job(one).attempts) for one in (slow, later, down)] == [
        ("done", 2),
        ("done", 1),
        ("dead", 3),
    ]
    done = sorted((later, slow, fine), reverse=True)
    assert [row.id for row in harness.run(jobs.listing(state="done"))] == done
    assert [row.id for row in harness.run(jobs.listing(tag="b"))] == [fine]
    assert [row.id for row in harness.run(jobs.listing(state="done", before=done[0], limit=1))] == [done[1]]


def test_jobs_are_cancelled_edited_moved_and_sent_again(harness: Harness) -> None:
    ids = [harness.enqueue(Mail(address=f"m{n}"), delay_s=3600) for n in range(3)]
    assert harness.run(jobs.cancel(ids[0])) == "cancelled"
    harness.run(app.edit(ids[1], Mail(address="edited")))
    harness.run(jobs.reschedule(ids[2], delay_s=60))
    waiting, down = harness.enqueue(Mail(address="w")), harness.enqueue(Mail(address="down"))
    assert harness.run(jobs.cancel(waiting)) == "waiting"
    harness.run_for(600)
    assert [row.message for row in harness.handled] == [Mail(address="m2")]
    assert harness.job(waiting).state == "cancelled"
    assert len(harness.dead_letters) == 1
    harness.run(jobs.retry(down))
    assert harness.dead_letters == []
    assert harness.job(down).state == "waiting"
    harness.run_until_idle()
    assert [row.message for row in harness.handled][1:] == [Mail(address="edited")]
    assert harness.job(ids[0]).state == "cancelled"
    with pytest.raises(JobError, match="nothing to cancel"):
        harness.run(jobs.cancel(ids[1]))


def test_a_job_has_the_timeout_the_policy_and_the_end_that_it_was_enqueued_with(harness: Harness) -> None:
    policy = RetryPolicy(attempts=4, first_s=1200, factor=1, cap_s=1200, jitter=0)
    down = harness.enqueue(Mail(address="down"), retry=policy, timeout_s=5)
    hung = harness.enqueue(Mail(address="hung"), retry=RetryPolicy(attempts=1), timeout_s=5)
    short = harness.enqueue(Mail(address="down"), retry=policy, expires_s=900, delay_s=60)
    assert harness.job(down).terms == {"timeout_s": 5, "retry": {
        "attempts": 4, "first_s": 1200, "factor": 1, "cap_s": 1200, "jitter": 0}}  # fmt: skip
    began = harness.clock.now
    harness.run_until_idle()
    assert timedelta(hours=1) <= harness.job(down).finished_at - began <= timedelta(hours=1, minutes=1)  # type: ignore[operator]
    assert (harness.job(down).state, harness.job(down).attempts) == ("dead", 4)
    assert (harness.job(hung).state, harness.job(hung).error) == ("dead", "TimeoutError")
    assert (harness.job(short).state, harness.job(short).attempts) == ("cancelled", 1)
    assert harness.job(short).error == "Expired"


def test_many_are_cancelled_and_sent_again_and_found_by_when_they_came(harness: Harness) -> None:
    early = [harness.enqueue(Mail(address="down"), delay_s=delay) for delay in (0, 600)]
    harness.run_for(300)
    assert harness.run(jobs.cancel_many(early)) == 1
    assert [harness.job(one).state for one in early] == ["dead", "cancelled"]
    assert harness.run(jobs.retry_many(early)) == [early[0]]
    assert harness.dead_letters == []
    assert [harness.job(one).state for one in early] == ["waiting", "cancelled"]
    found = harness.run(jobs.matching(since=datetime(2020, 1, 1, tzinfo=UTC), type_name="Mail"))
    assert [one[0] for one in found] == sorted(early, reverse=True)
    assert harness.run(jobs.matching(since=datetime(2100, 1, 1, tzinfo=UTC))) == []


def test_a_retrying_job_is_cancelled_and_makes_no_other_attempt(harness: Harness) -> None:
    slow, other = harness.enqueue(Mail(address="slow")), harness.enqueue(Mail(address="slow"))
    harness.run_for(10)
    assert harness.run(jobs.cancel(slow)) == "retrying"
    harness.run_until_idle()
    row = harness.job(slow)
    assert (row.state, row.attempts, row.error, row.result) == ("cancelled", 1, "TimeoutError", None)
    assert (harness.job(other).state, harness.job(other).attempts) == ("done", 2)
    assert harness.dead_letters == []


def test_schedules_are_paused_resumed_and_ticked_by_hand() -> None:
    harness = Harness(app, schedules=True)
    harness.run_for(3600)
    harness.run(jobs.pause_schedule("office.hourly"))
    harness.run_for(3 * 3600)
    assert len(harness.messages(Tick)) == 1
    waiting = harness.run(app.tick("hourly"))
    harness.run_for(10)
    assert harness.job(waiting).state == "done"
    harness.run(jobs.resume_schedule("office.hourly"))
    harness.run_for(2 * 3600)
    assert len(harness.messages(Tick)) == 4
    with pytest.raises(JobError, match="no schedule"):
        harness.run(jobs.pause_schedule("office.daily"))


def test_schedules_are_listed_once_a_scheduler_had_them_with_their_latest_tick(harness: Harness) -> None:
    harness.run_until_idle()
    assert harness.run(jobs.schedules()) == []
    harness = Harness(app, schedules=True)
    harness.run_for(1)
    hourly = ("office.hourly", "0 * * * *", "UTC", "once", "skip")
    assert harness.run(jobs.schedules()) == [(*hourly, False, None, None)]
    harness.run_for(3600)
    by_hand = harness.run(app.tick("hourly"))
    harness.run(jobs.pause_schedule("office.hourly"))
    assert harness.run(jobs.schedules()) == [(*hourly, True, harness.clock.now, by_hand)]


def test_what_is_commanded_in_a_transaction_that_rolls_back_is_not_done(harness: Harness) -> None:
    later = harness.enqueue(Mail(address="a"), delay_s=60)
    conn = harness.connection()
    app.run(conn, jobs.cancel(later))
    app.run(conn, jobs.pause("office.jobs.mail"))
    conn.rollback()
    harness.run_until_idle()
    assert harness.job(later).state == "done"


def test_a_key_is_held_until_its_job_has_finished_dead_ones_too(harness: Harness) -> None:
    unique = Unique(key="one")
    first = harness.enqueue(Mail(address="down"), unique=unique)
    assert harness.enqueue(Mail(address="b"), unique=unique) == first
    harness.run_for(70)
    assert harness.enqueue(Mail(address="b"), unique=unique) == first
    harness.run_until_idle()
    assert harness.job(first).state == "dead"
    second = harness.enqueue(Mail(address="b"), unique=unique)
    third = harness.enqueue(Mail(address="c"), unique=Unique(key="one", on_conflict="replace"))
    harness.run_until_idle()
    assert [harness.job(one).state for one in (second, third)] == ["cancelled", "done"]
    for_a_day = Unique(key="day", period_s=86_400)
    held = harness.enqueue(Mail(address="d"), unique=for_a_day)
    harness.run_for(86_000)
    assert harness.enqueue(Mail(address="d"), unique=for_a_day) == held
    harness.run_for(401)
    assert harness.enqueue(Mail(address="d"), unique=for_a_day) != held


def test_a_paused_queue_waits_and_the_others_go_on(harness: Harness) -> None:
    harness.run(jobs.pause("office.jobs.mail"))
    held, other = harness.enqueue(Mail(address="a")), harness.enqueue(Step(name="s"))
    harness.run_until_idle()
    assert [harness.job(one).state for one in (held, other)] == ["waiting", "done"]
    harness.run(jobs.resume("office.jobs.mail"))
    harness.run_until_idle()
    assert harness.job(held).state == "done"


def test_a_parent_whose_children_are_in_a_paused_queue_waits_too(harness: Harness) -> None:
    harness.run(jobs.pause("office.jobs.mail"))
    album = harness.enqueue_flow(Flow(Step(name="all"), [Mail(address="a"), Step(name="b")]))
    harness.run_until_idle()
    assert harness.job(album).state == "blocked"
    harness.run(jobs.resume("office.jobs.mail"))
    harness.run_until_idle()
    assert harness.job(album).result == ["all", {"to": "a"}, ["b"]]


def test_a_parent_that_can_never_begin_is_named_whatever_is_paused_elsewhere() -> None:
    harness = Harness(app, groups=["steps"])  # nobody works on its child
    harness.enqueue_flow(Flow(Step(name="all"), [Mail(address="a")]))
    with pytest.raises(NotIdle, match="delayed"):
        harness.run_until_idle(limit_s=60)
    harness.run(jobs.pause("office.jobs.ranked"))
    with pytest.raises(NotIdle, match="delayed"):
        harness.run_until_idle(limit_s=60)


def test_a_rate_spreads_attempts_over_time(harness: Harness) -> None:
    for n in range(50):
        harness.enqueue(Limited(n=n))
    begun = harness.clock.now
    harness.run_until_idle()
    times = [(one.at - begun).total_seconds() for one in harness.handled]
    assert len(times) == 50
    assert sum(at < 0.9 for at in times) <= 20
    assert 3.9 <= times[-1] < 6


def test_attempts_in_place_pay_for_a_rate_too(harness: Harness) -> None:
    for n in range(10):
        harness.enqueue(InPlace(n=n))
    begun = harness.clock.now
    harness.run_until_idle()
    assert len(harness.handled) == 10
    # 50 attempts at 10 a second; the first ten may come at once
    assert timedelta(seconds=3.9) <= harness.clock.now - begun


def test_high_priority_comes_first_and_low_does_not_starve(harness: Harness) -> None:
    for n in range(60):
        harness.enqueue(Ranked(n=n), priority="low")
        harness.enqueue(Ranked(n=100 + n), priority="high")
    harness.run_until_idle()
    first = [one.message.n >= 100 for one in harness.handled[:60] if isinstance(one.message, Ranked)]
    assert 45 <= sum(first) < 60
    assert len(harness.handled) == 120


def test_ticks_come_by_the_clock_where_they_are_asked_for() -> None:
    harness = Harness(app, schedules=True)
    begun = harness.clock.now
    harness.run_for(3 * 3600 + 60)
    ticks = [one.message.at for one in harness.handled if isinstance(one.message, Tick)]
    assert ticks == [begun + timedelta(hours=n) for n in (1, 2, 3)]
    harness.run(jobs.pause("office.jobs.schedules"))
    harness.run_for(3 * 3600)
    harness.run(jobs.resume("office.jobs.schedules"))
    harness.run_for(60)
    assert len(harness.handled) == 4  # overlap="skip": the tick before was unfinished


def test_a_tick_is_made_by_hand(harness: Harness) -> None:
    tick = harness.tick("hourly")
    harness.run_until_idle()
    assert harness.job(tick).result == harness.clock.now.replace(second=0, microsecond=0).isoformat()
    with pytest.raises(ConfigError, match="hourly"):
        harness.tick("yearly")


@pytest.mark.parametrize(("rule", "state"), [("fail", "dead"), ("ignore", "done"), ("continue", "done")])
def test_a_parent_follows_its_childrens_end_as_its_rule_says(harness: Harness, rule: OnFailure, state: str) -> None:
    last = harness.enqueue_flow(Flow(Step(name="all"), [Step(name="a"), Step(name="b", fails=True)], rule))
    assert harness.job(last).state == "blocked"
    harness.run_until_idle()
    row = harness.job(last)
    assert row.state == state
    assert row.error == ("ChildFailed" if rule == "fail" else None)
    if rule == "ignore":
        assert row.result == ["all", ["a"], None]


def test_flows_end_once_whatever_crashes() -> None:
    for seed in range(10):
        harness = Harness(app, seed=seed, faults=Faults(crash=0.05, rebalance=0.03, duplicate=0.1, slow=0.2))
        chained = harness.enqueue_flow(chain(Step(name="1"), Step(name="2"), Step(name="3")))
        mailed = harness.enqueue_flow(batch([Mail(address="ada"), Mail(address="down")], then=Step(name="sum")))
        harness.run_until_idle()
        assert harness.job(chained).result == ["3", ["2", ["1"]]]
        assert harness.job(mailed).result == ["sum", {"to": "ada"}, None]
        assert harness.faults["crash"] + harness.faults["duplicate"] > 0


def test_a_job_with_an_inbox_has_its_row_and_its_effects_once_whatever_crashes() -> None:
    for seed in range(10):
        harness = Harness(app, seed=seed, faults=Faults(crash=0.1, duplicate=0.3))
        booked = [harness.enqueue(Book(name=str(n))) for n in range(5)]
        harness.run_until_idle()
        assert [harness.job(one).result for one in booked] == ["0", "1", "2", "3", "4"]
        assert len(harness.messages(Step)) == 5


def test_a_parent_is_cancelled_and_its_own_parent_with_it(harness: Harness) -> None:
    harness.run(jobs.pause("office.jobs.steps"))
    last = harness.enqueue_flow(chain(Step(name="1"), Step(name="2"), Step(name="3")))
    middle = next(row.id for row in harness.run(jobs.listing(state="blocked")) if row.parent == last)
    harness.run(jobs.cancel(middle))
    assert (harness.job(middle).state, harness.job(last).state) == ("cancelled", "dead")


def test_what_is_left_open_is_named(harness: Harness) -> None:
    harness.enqueue(Mail(address="a"), delay_s=7200)
    with pytest.raises(NotIdle, match="delayed"):
        harness.run_until_idle(limit_s=60)


def test_what_could_wait_but_never_leave_for_a_json_outbox_is_refused_when_it_is_enqueued() -> None:
    class Note(Job, queue="notes", format="json"):
        text: str

    class Coded(Job, queue="notes"):
        text: str

    app = Pipeline("shop", topic_prefix="", outbox=Outbox("public", "event_log", payload="json"))
    handled: list[str] = []
    app.job(Note)(lambda job, ctx: handled.append(job.text))
    app.register(Coded)
    harness = Harness(app)
    for text in ("a\0b", "\\\0"):
        with pytest.raises(SchemaError, match="U\\+0000"):
            harness.enqueue(Note(text=text), delay_s=5)
    with pytest.raises(ConfigError, match="holds JSON"):
        harness.enqueue(Coded(text="a"), delay_s=5)
    told = harness.enqueue(Note(text="says \\u0000"), delay_s=5)
    with pytest.raises(SchemaError):
        harness.run(app.edit(told, Note(text="\0")))
    harness.run_until_idle()
    assert handled == ["says \\u0000"]


@pytest.mark.parametrize("tag", ["a\0b", "half of a pair \ud800", "", "x" * 101, 7])
def test_a_tag_that_no_row_can_hold_is_refused_before_anything_is_written(harness: Harness, tag: Any) -> None:
    with pytest.raises(ConfigError, match="tags="):
        harness.enqueue(Mail(address="a"), tags=[tag])
