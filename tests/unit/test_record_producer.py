"""Counting acknowledgements, where a topic goes away and comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.capture import Lost
from pipeline.errors import BrokerError
from pipeline.kafka import producer as module
from pipeline.kafka.producer import AckProducer, RecordProducer


class Delivered:
    """A delivery report."""

    def __init__(self, topic: str, partition: int, offset: int | None = 0) -> None:
        self.topic = lambda: topic
        self.partition = lambda: partition
        self.offset = lambda: offset


def producer(counts: dict[str, int]) -> RecordProducer:
    made = RecordProducer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    made._count = lambda topic: counts[topic]  # type: ignore[method-assign]
    return made


def send(made: RecordProducer, *partitions: int) -> None:
    records: list[Any] = [("orders", b"k", b"v", [], 0, partition) for partition in partitions]
    assert made.send(records, 0) == len(records)


def acknowledge(made: RecordProducer, *partitions: int) -> None:
    for partition in partitions:
        made._delivered(None, Delivered("orders", partition))  # type: ignore[arg-type]


def test_an_acknowledgement_that_comes_after_its_topic_failed_counts_for_what_was_sent_before() -> None:
    made = producer({"orders": 2})
    send(made, 0, 0, 1)
    before = made.mark()
    made._partitions.pop("orders")  # as after a failed delivery, or where the client knows no such topic
    acknowledge(made, 0, 0, 1)  # used to raise inside the client: the relay died
    assert before.acknowledged()
    made.close()


def test_late_acknowledgements_never_count_for_what_is_sent_to_the_topic_that_came_back() -> None:
    made = producer({"orders": 2})
    send(made, 0, 0)
    made.mark()
    made._partitions.pop("orders")
    send(made, 0)
    behind = made.mark()
    acknowledge(made, 0, 0)
    assert not behind.acknowledged()
    acknowledge(made, 0)
    assert behind.acknowledged()
    made.close()


def test_a_topic_that_comes_back_with_fewer_partitions_is_written_to_those() -> None:
    counts = {"orders": 6}
    made = producer(counts)
    send(made, 5)
    made._partitions.pop("orders")
    counts["orders"] = 2
    assert len(made._look_up("orders")) == 2
    acknowledge(made, 5)
    made.close()


def test_an_acknowledgement_without_an_offset_is_none_and_all_is_sent_again() -> None:
    made = producer({"orders": 1})
    send(made, 0)
    mark = made.mark()
    made._delivered(None, Delivered("orders", 0, None))  # type: ignore[arg-type]
    assert not mark.acknowledged()
    with pytest.raises(BrokerError, match="without an offset") as raised:
        made.poll(0, hurry=False)
    assert raised.value.retryable
    made.close()


def test_a_single_record_that_was_acknowledged_without_an_offset_has_failed_for_now() -> None:
    made = AckProducer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    made._delivered("token", None, Delivered("orders", 0, None))  # type: ignore[arg-type]
    made._delivered("other", None, Delivered("orders", 0, 7))  # type: ignore[arg-type]
    (token, error), other = made.poll()
    assert (token, other) == ("token", ("other", None))
    assert error is not None
    assert error.retryable
    made.close()


class Fatal:
    """A client after a fatal error: it takes nothing, and gives back what it had."""

    def __init__(self) -> None:
        self.closed = False

    def produce(self, *_args: object, **_options: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    def purge(self, **_options: object) -> None:
        self.closed = True

    def flush(self, _wait_s: float) -> int:
        if not self.closed:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        return 0

    def poll(self, _wait_s: float) -> int:
        raise SystemError("a callback ran while the fatal error was pending")

    def __len__(self) -> int:
        return 0


def test_after_a_fatal_error_the_relay_is_told_that_the_client_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_connect", lambda _options: Fatal())
    made = producer({"orders": 1})
    with pytest.raises(Lost):
        made.send([("orders", b"k", b"v", [], 0, -1)], 0)


def test_after_a_fatal_error_single_records_go_by_another_client(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [Fatal(), Fatal()]
    left = list(clients)
    monkeypatch.setattr(module, "_connect", lambda _options: left.pop(0))
    made = AckProducer({})
    with pytest.raises(Lost) as raised:
        made.send("orders", b"k", b"v", [], 0, "token")
    assert raised.value.retryable  # so it is sent again
    assert (clients[0].closed, made._producer) == (True, clients[1])


@pytest.mark.parametrize(
    "call", [lambda made: made.poll() == [], lambda made: made.flush(0) == 0], ids=["poll", "flush"]
)
def test_a_fatal_error_that_comes_with_the_reports_replaces_the_client_too(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[AckProducer], bool]
) -> None:
    clients = [Fatal(), Fatal()]
    left = list(clients)
    monkeypatch.setattr(module, "_connect", lambda _options: left.pop(0))
    made = AckProducer({})
    assert call(made)
    assert (clients[0].closed, made._producer) == (True, clients[1])


def test_a_fatal_error_without_reports_is_a_lost_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_connect", lambda _options: Fatal())
    monkeypatch.setattr(module, "_REPORTS_S", 0.0)
    with pytest.raises(Lost):
        producer({"orders": 1}).poll(0, hurry=False)
