"""``pipeline topics plan`` and ``apply`` on a real broker: made so, never deleted, changed only where allowed."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType
from pydantic import SecretStr
from servers import Topics

from pipeline import Event, Job, Pipeline, RetryPolicy
from pipeline.config import KafkaSettings, Settings
from pipeline.errors import BrokerError
from pipeline.local import Endpoints
from pipeline.runtime.topics import apply_topics, plan_topics


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job, queue="email"):
    to: str


def handle(_message: Any, _ctx: Any) -> None: ...


def made(prefix: str, partitions: int = 2) -> Pipeline:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=partitions)
    app.consumer(Placed, group="billing")(handle)
    app.job(Mail, retry=RetryPolicy(attempts=2, first_s=1))(handle)
    return app


@pytest.fixture
def settings(endpoints: Endpoints) -> Settings:
    return Settings(kafka=KafkaSettings(bootstrap_servers=endpoints.kafka))


def test_what_is_missing_is_created_as_declared(prefix: str, settings: Settings, topics: Topics) -> None:
    app = made(prefix)
    assert {change.action for change in plan_topics(app, settings)} == {"create"}
    assert all(change.action == "create" for change in apply_topics(app, settings))
    assert topics.names(f"{prefix}.") == [spec.name for spec in app.topics()]
    assert {change.action for change in plan_topics(app, settings)} == {"keep"}
    resource = ConfigResource(ResourceType.TOPIC, f"{prefix}.shop.billing.dlq")
    [future] = topics.admin.describe_configs([resource]).values()
    found = future.result(60)
    assert (found["retention.ms"].value, found["message.timestamp.type"].value) == ("-1", "LogAppendTime")


def test_what_exists_is_changed_only_where_it_is_allowed(prefix: str, settings: Settings, topics: Topics) -> None:
    dlq, events = f"{prefix}.shop.billing.dlq", f"{prefix}.outbox.event.order"
    topics.create(dlq, config={"retention.ms": "1000", "max.message.bytes": "5000"})
    topics.create(events)
    app = made(prefix)
    actions = {change.topic: change.action for change in apply_topics(app, settings)}
    assert (actions[dlq], actions[events]) == ("config", "partitions")
    assert {change.topic for change in plan_topics(app, settings) if change.open} == {dlq, events}
    apply_topics(app, settings, allow=("config",))
    assert {change.topic for change in plan_topics(app, settings) if change.open} == {events}
    apply_topics(app, settings, allow=("partitions",))
    assert not [change for change in plan_topics(app, settings) if change.open]
    [future] = topics.admin.describe_configs([ConfigResource(ResourceType.TOPIC, dlq)]).values()
    assert future.result(60)["max.message.bytes"].value == "5000"  # what was not declared is left alone


def test_a_topic_that_needs_both_gets_both(prefix: str, settings: Settings, topics: Topics) -> None:
    retry = f"{prefix}.shop.billing.retry.0s"
    topics.create(retry, config={"retention.ms": "1000"})
    app = made(prefix)
    apply_topics(app, settings, allow=("partitions", "config"))
    assert not [change for change in plan_topics(app, settings) if change.open]


def test_a_retry_topic_that_would_lose_what_waits_on_it_is_said_with_what_to_do(
    prefix: str, settings: Settings, topics: Topics
) -> None:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=2)
    app.job(Mail, retry=RetryPolicy(attempts=3, first_s=60, factor=60, cap_s=3600))(handle)
    minute, hour = (f"{prefix}.shop.jobs.email.retry.{delay}" for delay in ("60s", "3600s"))
    for topic in (minute, hour):
        topics.create(topic, config={"retention.ms": "3600000", "message.timestamp.type": "LogAppendTime"})
    told = {change.topic: change.detail for change in apply_topics(app, settings) if change.action == "config"}
    assert told[minute] == "retention.ms: 3600000 → 1209600000"  # enough for it, if less than declared
    assert told[hour] == (
        "retention.ms: 3600000 → 1209600000: records wait here for 3600 s and may be deleted before they are due, "
        "which loses them; pipeline topics apply --allow config"
    )
    apply_topics(app, settings, allow=("config", "partitions"))
    assert not [change for change in plan_topics(app, settings) if change.open]


def test_more_partitions_than_declared_are_said_and_kept(prefix: str, settings: Settings, topics: Topics) -> None:
    topics.create(f"{prefix}.outbox.event.order", partitions=5)
    app = made(prefix)
    apply_topics(app, settings, allow=("partitions", "config"))
    [change] = [c for c in plan_topics(app, settings) if c.topic == f"{prefix}.outbox.event.order"]
    assert (change.action, change.open) == ("fewer", False)


def test_two_at_once_are_both_content(prefix: str, settings: Settings) -> None:
    app = made(prefix)
    missing = plan_topics(app, settings)
    apply_topics(app, settings)
    from pipeline.kafka.admin import Topics as Admin

    Admin({"bootstrap.servers": settings.kafka.bootstrap_servers or ""}).create([c.spec for c in missing])


def test_a_broker_that_is_down_and_a_setting_it_refuses_are_said(
    prefix: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.admin._TIMEOUT_S", 2.0)
    options = {"socket.connection.setup.timeout.ms": SecretStr("1000")}
    with pytest.raises(BrokerError, match="is the broker up"):
        plan_topics(made(prefix), Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1", options=options)))
    odd = Settings(kafka=KafkaSettings(bootstrap_servers=settings.kafka.bootstrap_servers, replication_factor=3))
    with pytest.raises(BrokerError, match="replica"):
        apply_topics(made(prefix), odd)


def test_a_librdkafka_setting_that_does_not_exist_is_said(prefix: str, settings: Settings) -> None:
    odd = KafkaSettings(bootstrap_servers=settings.kafka.bootstrap_servers, options={"no.such.thing": SecretStr("x")})
    with pytest.raises(BrokerError, match=r"no\.such\.thing"):
        plan_topics(made(prefix), Settings(kafka=odd))
