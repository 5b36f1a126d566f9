"""Schedulers that are away, in the harness: what is missed comes as its rule says, and what is delayed stays."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline import Context, Job, Pipeline
from pipeline.flow import Flow
from pipeline.schedule import Missed, Tick
from pipeline.testing import Harness


class Render(Job, queue="render"):
    page: int


class Publish(Job, queue="publish", format="json"):
    album: int


def hourly(missed: Missed) -> Harness:
    app = Pipeline("office", topic_prefix="")

    @app.schedule("0 * * * *", name="hourly", timezone="UTC", missed=missed)
    def handle(tick: Tick, ctx: Context) -> None: ...

    return Harness(app, schedules=True, start=datetime(2030, 1, 1, tzinfo=UTC))


def hours(harness: Harness) -> list[int]:
    return sorted(one.message.at.hour for one in harness.handled if isinstance(one.message, Tick))


@pytest.mark.parametrize(("missed", "made"), [("skip", []), ("once", [6]), ("all", [2, 3, 4, 5, 6])])
def test_ticks_that_were_missed_are_made_up_for_as_their_rule_says(missed: Missed, made: list[int]) -> None:
    harness = hourly(missed)
    harness.run_for(3600 + 60)
    harness.scheduler_down = True
    harness.run_for(5 * 3600 + 1800)
    assert hours(harness) == [1]
    harness.scheduler_down = False
    harness.run_for(60)
    assert hours(harness) == [1, *made]
    harness.run_for(3600)
    assert hours(harness) == [1, *made, 7]


def test_a_tick_that_is_late_by_less_than_a_minute_is_not_a_missed_one() -> None:
    harness = hourly("skip")
    harness.run_for(3000)
    harness.scheduler_down = True
    harness.run_for(630)
    harness.scheduler_down = False
    harness.run_for(10)
    assert hours(harness) == [1]


def test_hundreds_of_missed_ticks_are_made_one_batch_after_another() -> None:
    harness = hourly("all")
    harness.run_for(60)
    harness.scheduler_down = True
    harness.run_for(5 * 86_400)
    harness.scheduler_down = False
    harness.run_for(60)
    assert len(hours(harness)) == 5 * 24


def test_without_a_scheduler_nothing_that_is_delayed_leaves_and_no_parent_begins() -> None:
    app = Pipeline("office", topic_prefix="")
    app.job(Render)(lambda job, ctx: None)
    app.job(Publish)(lambda job, ctx: ctx.result(len(ctx.children())))
    harness = Harness(app)
    harness.scheduler_down = True
    late = harness.enqueue(Render(page=1), delay_s=60)
    album = harness.enqueue_flow(Flow(Publish(album=7), [Render(page=2), Render(page=3)]))
    harness.run_for(600)
    harness.run_until_idle()
    assert [harness.job(one).state for one in (late, album)] == ["delayed", "delayed"]
    harness.scheduler_down = False
    harness.run_until_idle()
    assert (harness.job(late).state, harness.job(album).result) == ("done", 2)
