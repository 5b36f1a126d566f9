"""A consumer group's name in, how far it is on each partition out. Nothing is joined or committed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import BrokerError
from pipeline.kafka.errors import misconfigured, translate
from pipeline.kafka.extent import extent

__all__ = ["Lag", "Lags"]

_TIMEOUT_S = 10.0
_LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Lag:
    """One partition. ``committed`` is None where the group has not committed; ``lag_s`` where it could not be told."""

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int
    lag_s: float | None


class Lags:
    """Looks lag up. ``options`` are librdkafka settings; every call raises BrokerError. Close it."""

    def __init__(self, options: Mapping[str, str]) -> None:
        fixed: dict[str, str | bool] = {"log_level": "0"}
        try:
            self._admin = AdminClient({**options, **fixed})
            self._consumer = Consumer(
                {
                    **options,
                    **fixed,
                    "group.id": "pipeline-lag",  # the client wants one; it is never joined
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                }
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise misconfigured(error, "consumer") from error

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def groups(self) -> list[str]:
        """Return the names of all consumer groups."""
        try:
            found = self._admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result(_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error.args[0], "list consumer groups") from error
        return sorted(group.group_id for group in found.valid)

    def of(self, group: str, topics: Iterable[str] = (), *, now_s: float) -> list[Lag]:
        """Return the lag of a group on what it committed, and on ``topics`` where it committed nothing yet.

        ``lag_s`` is the age of the first record that is not committed; ``now_s`` is seconds since 1970.
        """
        try:
            committed = self._committed(group)
            known = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
            for topic in topics:
                for number in known[topic].partitions if topic in known else ():
                    committed.setdefault((topic, number), None)
            rows = []
            for (topic, number), offset in sorted(committed.items()):
                if topic not in known or number not in known[topic].partitions:
                    continue
                low, end = extent(self._consumer, topic, number, _TIMEOUT_S)
                begin = low if offset is None else max(low, offset)
                rows.append((topic, number, offset, begin, end))
            ages = self._ages({(topic, number): begin for topic, number, _, begin, end in rows if begin < end}, now_s)
        except KafkaException as error:
            raise translate(error.args[0], f"group {group}") from error
        return [
            Lag(group, topic, number, offset, end, max(0, end - begin), ages.get((topic, number)) if begin < end else 0)
            for topic, number, offset, begin, end in rows
        ]

    def _committed(self, group: str) -> dict[tuple[str, int], int | None]:
        asked = [ConsumerGroupTopicPartitions(group)]
        future = self._admin.list_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)[group]
        try:
            found = future.result(_TIMEOUT_S + 1).topic_partitions or []
        except TimeoutError as error:
            raise BrokerError(
                f"Kafka: group {group}: no answer within {_TIMEOUT_S:.0f} s",
                remedy="is the broker up, and bootstrap.servers right?",
                retryable=True,
            ) from error
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def _ages(self, begins: Mapping[tuple[str, int], int], now_s: float) -> dict[tuple[str, int], float]:
        """Read one record of each partition; what does not come in time has no age."""
        ages: dict[tuple[str, int], float] = {}
        if not begins:
            return ages
        self._consumer.assign([TopicPartition(topic, number, offset) for (topic, number), offset in begins.items()])
        deadline = time.monotonic() + _LOOK_S
        while len(ages) < len(begins) and time.monotonic() < deadline:
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            where = (str(message.topic()), int(message.partition() or 0))
            if where not in ages:
                ages[where] = round(max(0.0, now_s - message.timestamp()[1] / 1000), 1)
                self._consumer.pause([TopicPartition(*where)])
        self._consumer.unassign()
        return ages
