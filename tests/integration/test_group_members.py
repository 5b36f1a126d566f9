"""Members of a group as the broker sees them: they leave, stay, or are one too many."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Consumer, ConsumerGroupState, ConsumerGroupType
from confluent_kafka.admin import AdminClient
from servers import environment
from waiting import wait_until
from working import Broker, Running, members

from pipeline import Event, Pipeline
from pipeline.config import Settings
from pipeline.errors import BrokerError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.local import Endpoints, LocalStack
from pipeline.local import kafka as local_kafka
from pipeline.runtime.worker import run_worker

CLASSIC = {"heartbeat.interval.ms": "300"}
KIP_848 = {"group.protocol": "consumer"}
BOTH = pytest.mark.parametrize("options", [CLASSIC, KIP_848], ids=["classic", "KIP-848"])


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


@pytest.fixture
def app(broker: Broker, prefix: str) -> Pipeline:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=2)
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    broker.create(app)
    return app


class Nobody:
    """Hears of an assignment, and does nothing."""

    def assigned(self, starts: object) -> None: ...
    def revoked(self, partitions: object) -> None: ...
    def lost(self, partitions: object) -> None: ...
    def trouble(self, error: BrokerError) -> None: ...


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, ConsumerGroupType.CONSUMER), (CLASSIC, ConsumerGroupType.CLASSIC), (KIP_848, ConsumerGroupType.CONSUMER)],
    ids=["default", "classic", "KIP-848"],
)
def test_a_group_is_joined_by_kip_848_unless_classic_settings_are_given(
    broker: Broker, prefix: str, options: dict[str, str], kind: ConsumerGroupType
) -> None:
    broker.admin_create(f"{prefix}.one", partitions=1)
    assert joined_as(broker, prefix, options) is kind


def test_a_broker_that_does_not_take_kip_848_is_joined_in_the_classic_way(
    prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline.kafka.consumer")
    old = "group.coordinator.rebalance.protocols=classic\n"  # as 3.x has it
    monkeypatch.setattr(local_kafka, "SETTINGS", local_kafka.SETTINGS + old)
    data = tmp_path / "data"
    data.mkdir()
    stack = LocalStack(data)
    stack._home.settle(list(stack.kafka.port_names), stack._progress)
    stack.start("kafka")
    try:
        broker = Broker(stack.kafka.address())
        broker.admin_create(f"{prefix}.one", partitions=1)
        assert joined_as(broker, prefix, {}) is ConsumerGroupType.CLASSIC
    finally:
        stack.down(delete=True)
    assert "the broker does not take KIP-848" in caplog.text


def joined_as(broker: Broker, prefix: str, options: dict[str, str]) -> ConsumerGroupType:
    """Join a group, and return its type as the broker tells it."""
    admin = AdminClient(broker.options)
    with closing(GroupConsumer({**broker.options, **options}, prefix)) as member:
        member.open({f"{prefix}.one": "earliest"}, Nobody())

        def assigned() -> bool:
            member.poll(1, 0.05)
            return bool(member._consumer.assignment())

        wait_until(assigned)
        found: ConsumerGroupType = admin.describe_consumer_groups([prefix])[prefix].result(60).type
        return found


@BOTH
def test_a_member_without_partitions_leaves_at_its_end_too(
    broker: Broker, prefix: str, options: dict[str, str]
) -> None:
    """Else a rebalance waits for it, and what the others commit waits behind that: for session.timeout.ms."""
    broker.admin_create(f"{prefix}.one", partitions=1)
    two = [GroupConsumer({**broker.options, **options}, prefix) for _ in range(2)]
    for one in two:
        one.open({f"{prefix}.one": "earliest"}, Nobody())

    def settled() -> bool:
        for one in two:
            one.poll(1, 0.05)
        return sorted(members(broker, prefix).values()) == [0, 1]

    wait_until(settled)
    idle, busy = sorted(two, key=lambda one: len(one._consumer.assignment()))
    with closing(busy):
        idle.close()
        assert list(members(broker, prefix).values()) == [1]


@BOTH
def test_of_two_with_one_instance_id_one_ends_and_says_why(
    broker: Broker, app: Pipeline, options: dict[str, str]
) -> None:
    (group,) = app.groups.values()
    static = {**options, "group.instance.id": "one"}
    first = Running(broker, group, **static)
    wait_until(first.health.joined.is_set)
    second = Running(broker, group, **static)
    # the classic protocol ends the older one, KIP-848 refuses the newer
    ends, stays = (first, second) if options is CLASSIC else (second, first)
    try:
        ends.join()
        assert isinstance(ends.error, BrokerError)
        assert "another process runs with this --instance-id" in str(ends.error)
        assert ends.error.retryable is (options is KIP_848)  # it is free when the one before has timed out
        wait_until(stays.health.joined.is_set)
        assert stays.alive
    finally:
        for worker in (first, second):
            worker.worker.stop(hurry=True)
            worker.join()


def test_a_second_signal_does_not_wait_for_a_broker_that_does_not_answer(
    broker: Broker, app: Pipeline, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A member's commit has no answer while it waits, on the same connection, for another one to rejoin."""
    for name, value in environment(endpoints).items():
        monkeypatch.setenv(name, value)
    caplog.set_level("INFO", "pipeline.worker")
    (group,) = app.groups.values()
    until, at_once = threading.Event(), threading.Event()
    options = {**CLASSIC, "session.timeout.ms": "120000"}
    ended: list[bool] = []

    def run() -> None:
        ended.append(run_worker(app, settings=Settings.load(), until=until, at_once=at_once, options=options))

    def assigned() -> list[int]:
        return [one.partitions for one in caplog.records if getattr(one, "action", "") == "worker.assigned"]

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    wait_until(assigned)
    deaf = Consumer(
        {**broker.options, "group.id": group.name, "partition.assignment.strategy": "cooperative-sticky", **options}
    )
    deaf.subscribe([*group.topics, *group.retry_topics], on_assign=lambda *_: None)  # and takes part no more
    wait_until(lambda: min(assigned()) < max(assigned()))  # what it gave back is to be given to the deaf one
    admin = AdminClient(broker.options)
    wait_until(
        lambda: (
            admin.describe_consumer_groups([group.name])[group.name].result(60).state
            is ConsumerGroupState.PREPARING_REBALANCING
        )
    )
    until.set()
    at_once.set()
    worker.join(40)
    assert ended == [False]
    deaf.poll(0)  # hears of it
    deaf.unsubscribe()
    deaf.close()
    wait_until(lambda: not any(thread.name == "worker" for thread in threading.enumerate()))
