"""The application object: what is declared on it, and definitions that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import Event, Job, Pipeline
from pipeline.errors import ConfigError


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job, queue="email"):
    to: str


def handle(_message: Any, _ctx: Any) -> None: ...


def test_topics_and_groups_have_the_prefix_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TOPIC_PREFIX", "staging.")
    app = Pipeline("shop")
    assert app.topic_of(Placed) == "staging.outbox.event.order"
    assert app.topic_of(Mail) == "staging.shop.jobs.email"
    assert Pipeline("shop", topic_prefix="").topic_of(Mail) == "shop.jobs.email"


@pytest.mark.parametrize("prefix", ["staging", "a b.", "Ä.", "\t.", "a.b."])
def test_a_prefix_outside_the_rule_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError):
        Pipeline("shop", topic_prefix=prefix)


@pytest.mark.parametrize("name", ["", "Shop", "a.b", "x" * 61])
def test_an_application_name_outside_the_rule_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Pipeline(name, topic_prefix="")


@pytest.mark.parametrize("partitions", [0, -1, 10_001])
def test_partitions_that_make_no_sense_are_refused(partitions: int) -> None:
    with pytest.raises(ConfigError, match="partitions"):
        Pipeline("shop", partitions=partitions, topic_prefix="")


def test_the_topics_are_those_of_messages_and_groups() -> None:
    app = Pipeline("shop", partitions=3, topic_prefix="")
    app.register(Placed)
    app.job(Mail)(handle)
    names = {spec.name: spec.partitions for spec in app.topics()}
    assert names["outbox.event.order"] == 3
    assert {"shop.jobs.email", "shop.jobs.email.dlq", "shop.jobs.email.retry.0s"} <= set(names)


def test_a_consumer_takes_events_and_a_job_handler_jobs() -> None:
    app = Pipeline("shop", topic_prefix="")
    with pytest.raises(ConfigError, match="consumer: Mail is not an Event"):
        app.consumer(Mail, group="g")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="job: Placed is not a Job"):
        app.job(Placed)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="is not an Event"):
        app.consumer(Placed(order_id="1"), group="g")  # type: ignore[arg-type]


def test_one_group_has_one_start() -> None:
    app = Pipeline("shop", topic_prefix="")
    app.consumer(Placed, group="g", start="latest")(handle)
    with pytest.raises(ConfigError, match="two different start"):
        app.consumer(Placed, group="g", start="earliest")


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_a_timeout_is_longer_than_nothing(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        Pipeline("shop", topic_prefix="").consumer(Placed, group="g", timeout_s=timeout_s)(handle)


def test_decorators_give_the_function_back() -> None:
    app = Pipeline("shop", topic_prefix="")
    assert app.consumer(Placed, group="g")(handle) is handle
    assert app.job(Mail)(handle) is handle
    assert app.messages == (Mail, Placed)
