"""Tasks of a real Celery application, called as jobs beside it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Reject
from celery.signals import setup_logging
from jobbing import Desk, OpenDesk
from working import wait_until

from pipeline import Pipeline
from pipeline.errors import ConfigError
from pipeline.jobs_library.celery import CeleryTask, run_celery_tasks
from pipeline.testing import Harness

shop = Celery("shop", broker="memory://", set_as_current=False)
setup_logging.connect(lambda **_: None, weak=False)  # else Celery's worker sets up this process's logging, for good
calls: list[tuple[str, Any]] = []


@shop.task
def add(a: int, b: int = 0) -> int:
    return a + b


@shop.task(bind=True, max_retries=2)
def flaky(self: Any, name: str) -> str:
    calls.append((name, self.request.retries))
    if self.request.retries < 1:
        raise self.retry(countdown=0.1)
    return name


@shop.task(bind=True, max_retries=1)
def hopeless(self: Any) -> None:
    calls.append(("hopeless", self.request.retries))
    raise self.retry(exc=LookupError("never"), eta=datetime.now(UTC) + timedelta(seconds=0.1))


@shop.task(autoretry_for=(TimeoutError,), retry_backoff=False, default_retry_delay=0.1, max_retries=3)
def impatient() -> str:
    calls.append(("impatient", None))
    if len([name for name, _ in calls if name == "impatient"]) < 3:
        raise TimeoutError
    return "at last"


@shop.task(bind=True, max_retries=1)
def in_ten_days(self: Any) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=10 * 86_400)
    return "at last"


@shop.task
def fails() -> None:
    raise ZeroDivisionError


@shop.task
def ignored() -> None:
    raise Ignore


@shop.task
def refused() -> None:
    raise Reject("no such order", requeue=False)


@shop.task
def odd(which: int) -> Any:
    return [float("nan"), "half a pair \ud800", object(), "x" * 100_000][which]


@pytest.fixture
def desk(prefix: str, open_desk: OpenDesk) -> Desk:
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    run_celery_tasks(app, shop)
    return open_desk(app)


def test_tasks_are_called_and_their_own_retries_are_obeyed(desk: Desk) -> None:
    calls.clear()
    jobs = {
        "add": desk.put(CeleryTask.of(add, 2, b=3)),
        "flaky": desk.put(CeleryTask.of(flaky, "x")),
        "hopeless": desk.put(CeleryTask.of(hopeless)),
        "impatient": desk.put(CeleryTask.of(impatient)),
        "fails": desk.put(CeleryTask.of(fails)),
        "ignored": desk.put(CeleryTask.of(ignored)),
        "refused": desk.put(CeleryTask.of(refused)),
        "unknown": desk.put(CeleryTask(task="nobody.has.it")),
    }
    desk.carry()
    with desk.working():
        assert desk.until(jobs["add"], "done")["result"] == 5
        assert desk.until(jobs["flaky"], "done")["result"] == "x"
        assert desk.until(jobs["hopeless"], "dead")["error"] == "LookupError"
        assert desk.until(jobs["impatient"], "done")["result"] == "at last"
        assert desk.until(jobs["fails"], "dead")["error"] == "ZeroDivisionError"
        desk.until(jobs["ignored"], "done")
        assert desk.until(jobs["refused"], "dead")["error"] == "pipeline.retry.Reject"
        assert desk.until(jobs["unknown"], "dead")["error"] == "pipeline.retry.Reject"
    assert [n for name, n in calls if name == "x"] == [0, 1]
    assert [n for name, n in calls if name == "hopeless"] == [0, 1]
    assert desk.job(jobs["fails"])["attempts"] == 1  # as in Celery: what a task does not retry is the end


def test_workers_of_celery_and_ours_run_beside_each_other_each_what_was_sent_to_it(desk: Desk) -> None:
    calls.clear()
    ours = desk.put(CeleryTask.of(flaky, "ours"))
    desk.carry()
    # Celery's worker tells its children by the environment how to log
    with patch.dict(os.environ), start_worker(shop, perform_ping_check=False), desk.working():
        flaky.delay("theirs")
        assert desk.until(ours, "done")["result"] == "ours"
        wait_until(lambda: ("theirs", 1) in calls, why="Celery's own worker retries it")
    assert sorted(calls) == [("ours", 0), ("ours", 1), ("theirs", 0), ("theirs", 1)]


@pytest.mark.parametrize("which", range(4))
def test_a_task_whose_result_cannot_be_kept_is_done_all_the_same(which: int) -> None:
    app = Pipeline("shop", topic_prefix="")
    run_celery_tasks(app, shop)
    harness = Harness(app)
    job = harness.enqueue(CeleryTask.of(odd, which))
    harness.run_until_idle()
    assert (harness.job(job).state, harness.job(job).result) == ("done", None)


def test_a_countdown_that_is_longer_than_a_retry_may_wait_is_cut() -> None:
    app = Pipeline("shop", topic_prefix="")
    run_celery_tasks(app, shop)
    harness = Harness(app)
    job = harness.enqueue(CeleryTask.of(in_ten_days))
    harness.run_until_idle()
    assert (harness.job(job).state, harness.job(job).result) == ("done", "at last")


def test_the_same_task_still_works_by_celery_itself() -> None:
    assert add.apply(args=[1], kwargs={"b": 1}).get() == 2


def test_arguments_that_are_no_json_are_refused_before_anything_is_enqueued() -> None:
    with pytest.raises(ConfigError, match=r"test_celery_tasks\.add"):
        CeleryTask.of(add, object())
    assert json.loads(CeleryTask.of(add, 1, b=2).model_dump_json())["kwargs"] == {"b": 2}
