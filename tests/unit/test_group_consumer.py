"""A consumer whose client has failed for good: what a real broker shows only now and then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from waiting import wait_until

from pipeline.errors import BrokerError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.offsets import Offsets
from pipeline.progress import Mark


class Fails:
    """A client that gives one message and then fails for good."""

    def poll(self, _wait_s: float) -> object:
        return object()

    def consume(self, _count: int, _wait_s: float) -> Any:
        fenced = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
        raise KafkaException(KafkaError(KafkaError._FATAL, fenced, fatal=True))


def denied(what: str) -> KafkaException:
    return KafkaException(KafkaError(KafkaError._FATAL, what, fatal=True))


class Denied:
    """A client that may not read its group any more: KIP-848 makes that fatal, and then it takes no call."""

    def poll(self, _wait_s: float) -> object:
        raise denied("ConsumerGroupHeartbeat fatal error: Broker: Group authorization failed")

    def assignment(self) -> list[object]:
        return []

    def unsubscribe(self) -> None:
        raise denied("Failed to remove subscription: Local: Fatal error")

    def close(self) -> None:
        raise denied("Local: Fatal error")


class Answers:
    """A client whose broker tells what each topic's committed offset is, or why not."""

    def __init__(self, **errors: int) -> None:
        self._errors = errors

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[Any]:
        assert 0 < timeout <= 0.5
        if "group" in self._errors:
            raise KafkaException(KafkaError(self._errors["group"]))
        errors = [self._errors.get(partition.topic) for partition in partitions]
        return [SimpleNamespace(error=None if code is None else KafkaError(code)) for code in errors]


@pytest.mark.parametrize(
    ("errors", "reachable"),
    [
        ({}, True),
        ({"group": KafkaError._TIMED_OUT}, False),
        ({"group": KafkaError.GROUP_AUTHORIZATION_FAILED}, False),
        ({"retries": KafkaError.TOPIC_AUTHORIZATION_FAILED}, False),
    ],
)
def test_a_broker_that_answers_and_does_not_let_the_group_read_is_as_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, int], reachable: bool
) -> None:
    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    monkeypatch.setattr(consumer, "_starts", {"orders": "earliest", "retries": "earliest"})
    monkeypatch.setattr(consumer, "_consumer", Answers(**errors))
    assert consumer.reachable() == reachable


def test_a_client_that_failed_for_want_of_a_right_says_which_and_another_joins_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, Any]] = []

    class Listener:
        def assigned(self, starts: object) -> None: ...
        def revoked(self, partitions: object) -> None: ...
        def lost(self, partitions: Any) -> None:
            told.append(("lost", list(partitions)))

        def trouble(self, error: BrokerError) -> None:
            told.append(("trouble", error.remedy))

    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    monkeypatch.setattr(consumer, "_listener", Listener())
    monkeypatch.setattr(consumer, "_has", {("orders", 0)})
    monkeypatch.setattr(consumer, "_starts", {"orders": "earliest"})
    monkeypatch.setattr(consumer, "_consumer", Denied())
    assert consumer.poll(10, 0) == []
    assert told == [("trouble", "grant this user READ on the group"), ("lost", [("orders", 0)])]
    assert not consumer.reachable()  # while nobody is a member
    wait_until(lambda: consumer.poll(10, 0.1) == [] and not isinstance(consumer._consumer, Denied), 10)
    consumer.close()


class Unlisted:
    """A client whose broker knows a topic by its name, and does not list it."""

    asked = 0

    def list_topics(self, topic: str | None = None, timeout: float = 0) -> Any:
        assert timeout > 0
        self.asked += 1
        assert self.asked < 100, "it asks for ever"
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None)} if topic else {})


def test_a_topic_that_is_neither_listed_nor_missing_is_asked_for_so_long_and_not_after_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BrokerError, match="does not list orders") as raised:
        Offsets(Unlisted(), "shop.billing", lambda: True).begin({"orders": "earliest"})  # type: ignore[arg-type]
    assert raised.value.retryable
    monkeypatch.setattr("pipeline.kafka.offsets._APPEAR_S", 0.2)
    with pytest.raises(BrokerError, match="does not list orders"):
        Offsets(Unlisted(), "shop.billing", lambda: False).begin({"orders": "earliest"})  # type: ignore[arg-type]


def test_the_end_may_come_while_it_waits_to_join_again(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    client = consumer._consumer

    def fails(_limit: int, _wait_s: float) -> list[object]:
        raise denied("ConsumerGroupHeartbeat fatal error: Broker: Group authorization failed")

    monkeypatch.setattr(consumer, "_polled", fails)
    assert consumer.poll(10, 0) == []
    with pytest.raises(RuntimeError, match="closed"):
        client.assignment()  # what every call of these was
    consumer.pause([("orders", 0)])
    consumer.resume([("orders", 0)])
    consumer.commit({("orders", 0): Mark(7)}, wait=False)
    with pytest.raises(BrokerError, match="joined again") as raised:
        consumer.commit({("orders", 0): Mark(7)}, wait=True)
    assert raised.value.retryable
    assert consumer.ends([("orders", 0)]) == {}
    assert not consumer.reachable()
    consumer.close()


def test_the_end_of_a_client_that_failed_says_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    monkeypatch.setattr(consumer, "_consumer", Denied())
    consumer.close()  # used to raise "leaving group …: Fatal error" in place of what it failed of


def test_a_client_that_fails_between_two_records_is_told_as_a_broker_error(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    monkeypatch.setattr(consumer, "_consumer", Fails())
    with pytest.raises(BrokerError, match=r"group shop\.billing: .*[Ff]enced"):
        consumer.poll(10, 0)
