"""A consumer whose client has failed for good: what a real broker shows only now and then."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.errors import BrokerError
from pipeline.kafka.consumer import GroupConsumer


class Fails:
    """A client that gives one message and then fails for good."""

    def poll(self, _wait_s: float) -> object:
        return object()

    def consume(self, _count: int, _wait_s: float) -> Any:
        raise KafkaException(KafkaError(KafkaError._FATAL, "fenced", fatal=True))


def test_a_client_that_fails_between_two_records_is_told_as_a_broker_error(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = GroupConsumer({"bootstrap.servers": "localhost:1"}, "shop.billing")
    monkeypatch.setattr(consumer, "_consumer", Fails())
    with pytest.raises(BrokerError, match=r"group shop\.billing: .*fenced"):
        consumer.poll(10, 0)
