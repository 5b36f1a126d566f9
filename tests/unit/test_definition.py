"""Groups as they are declared: one handler for each message, and the topics that a group needs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import Event, Job, Pipeline, RetryPolicy
from pipeline.errors import ConfigError


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Paid(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job, queue="email"):
    to: str


def handle(_message: Any, _ctx: Any) -> None: ...


@pytest.fixture
def app() -> Pipeline:
    return Pipeline("shop", topic_prefix="")


def test_a_handler_is_found_by_original_topic_and_type(app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(handle)
    group = app.groups["shop.billing"]
    found = group.handler("outbox.event.order", "Placed")
    assert found is not None
    assert found.model is Placed
    assert group.handler("outbox.event.order", "Paid") is None
    assert group.handler("elsewhere", "Placed") is None


def test_two_handlers_of_one_message_in_one_group_are_refused(app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(handle)
    app.consumer(Paid, group="billing")(handle)
    app.consumer(Placed, group="other")(handle)
    with pytest.raises(ConfigError, match=r"two handlers for Placed[\s\S]*a group of its own"):
        app.consumer(Placed, group="billing")(handle)


def test_an_ordered_group_needs_only_the_tier_of_redrive(app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(handle)
    assert app.groups["shop.billing"].retry_topics == {"shop.billing.retry.0s": 0.0}


def test_tiers_are_shared_by_all_handlers_of_a_group(app: Pipeline) -> None:
    app.consumer(Placed, group="g", order="none", retry=RetryPolicy(attempts=3, first_s=1, factor=2))(handle)
    app.consumer(Paid, group="g", order="none", retry=RetryPolicy(attempts=3, first_s=2, factor=2))(handle)
    assert app.groups["shop.g"].tiers_s == (0.0, 1, 2, 4)


def test_exhausted_ordered_records_may_go_to_the_tiers(app: Pipeline) -> None:
    app.consumer(Placed, group="g", on_exhausted="retry_topic", retry=RetryPolicy(attempts=2, first_s=1))(handle)
    assert app.groups["shop.g"].tiers_s == (0.0, 1)


def test_retry_topics_outlive_their_longest_delay_and_are_stamped_on_arrival(app: Pipeline) -> None:
    app.job(Mail, retry=RetryPolicy(attempts=2, first_s=7 * 86_400, cap_s=7 * 86_400))(handle)
    for spec in app.groups["shop.jobs.email"].specs():
        assert spec.config["message.timestamp.type"] == "LogAppendTime"
        if ".retry." in spec.name:
            assert int(spec.config["retention.ms"]) > 7 * 86_400_000
        else:
            assert (spec.name, spec.config["retention.ms"], spec.partitions) == ("shop.jobs.email.dlq", "-1", 1)
