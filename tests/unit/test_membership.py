from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from pipeline.errors import ConfigError
from pipeline.kafka.membership import membership, not_taken


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({}, "auto"),
        ({"group.protocol": "auto"}, "auto"),
        ({"group.instance.id": "one"}, "auto"),
        ({"group.protocol": "classic"}, "classic"),
        ({"group.protocol": "consumer", "group.remote.assignor": "range"}, "consumer"),
        ({"session.timeout.ms": "6000"}, "classic"),
        ({"heartbeat.interval.ms": "300"}, "classic"),
        ({"partition.assignment.strategy": "cooperative-sticky"}, "classic"),
        ({"group.protocol": "auto", "session.timeout.ms": "6000"}, "classic"),
    ],
)
def test_settings_choose_or_leave_it_to_the_broker(options: dict[str, str], protocol: str) -> None:
    assert membership(options) == protocol


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group.protocol": "streams"}, "group.protocol=streams"),
        ({"partition.assignment.strategy": "range"}, "partition.assignment.strategy"),
        ({"group.protocol": "consumer", "session.timeout.ms": "6000"}, "session.timeout.ms"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        membership(options)
    assert said in str(raised.value)


def test_a_broker_that_does_not_know_it_is_told_from_other_failures() -> None:
    said = "Broker: API version not supported: ConsumerGroupHeartbeat fatal error: Broker: API version not supported"
    assert not_taken(KafkaError(KafkaError._FATAL, said, True))
    assert not_taken(KafkaError(KafkaError.UNSUPPORTED_VERSION))
    assert not not_taken(KafkaError(KafkaError._FATAL, "Broker: Static consumer fenced by other consumer", True))
    assert not not_taken(KafkaError(KafkaError._TRANSPORT))
