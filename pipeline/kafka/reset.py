"""A consumer group and a place in, the offsets that it would begin at out; committed when told to.

Only a group that nobody works for is moved. What stood beside its commits is gone with that: what lies above the new
offsets is handled again, whether it was settled or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import BrokerError, ConfigError
from pipeline.kafka.errors import misconfigured, translate
from pipeline.kafka.extent import extent

__all__ = ["Move", "Place", "Resets"]

_TIMEOUT_S = 10.0

Place = Literal["earliest", "latest"] | datetime | int


@dataclass(frozen=True, slots=True)
class Move:
    """One partition. ``again`` is how many offsets lie between, negative where they are skipped."""

    group: str
    topic: str
    partition: int
    committed: int | None
    to: int
    again: int


class Resets:
    """Plans and makes moves. ``options`` are librdkafka settings; every call raises BrokerError. Close it."""

    def __init__(self, options: Mapping[str, str]) -> None:
        fixed: dict[str, str | bool] = {"log_level": "0"}
        try:
            self._admin = AdminClient({**options, **fixed})
            self._consumer = Consumer({**options, **fixed, "group.id": "pipeline-reset"})  # never joined
        except (KafkaException, ValueError, TypeError) as error:
            raise misconfigured(error, "consumer") from error

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def plan(self, group: str, to: Place, *, topics: Sequence[str] = (), partition: int | None = None) -> list[Move]:
        """Return where each partition would go: those of ``topics``, or all that the group has committed but retries.

        Raises ConfigError for a topic, partition or offset that is not there.
        """
        try:
            committed = self._committed(group)
            known = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
            if missing := sorted(set(topics) - set(known)):
                raise ConfigError(f"no such topic: {', '.join(missing)}", remedy="name it whole, with its prefix")
            wanted = [(topic, number) for topic in topics for number in known[topic].partitions] or [
                where for where in committed if where[0] in known and not where[0].startswith(f"{group}.retry.")
            ]
            if partition is not None:
                wanted = [where for where in wanted if where[1] == partition]
            if not wanted:
                raise ConfigError(
                    f"group {group}: nothing to reset",
                    remedy="pipeline consumer lag shows what it has; or give --topic",
                )
            return [
                self._move(group, topic, number, committed.get((topic, number)), to) for topic, number in sorted(wanted)
            ]
        except KafkaException as error:
            raise translate(error.args[0], f"group {group}") from error

    def make(self, moves: Sequence[Move]) -> None:
        """Commit the new offsets. Raises BrokerError where the group has members."""
        [group] = {move.group for move in moves}
        where = [TopicPartition(move.topic, move.partition, move.to) for move in moves]
        try:
            described = self._admin.describe_consumer_groups([group], request_timeout=_TIMEOUT_S)[group].result()
            if described.members:
                raise BrokerError(
                    f"group {group}: {len(described.members)} members work for it", remedy="stop its workers first"
                )
            asked = [ConsumerGroupTopicPartitions(group, where)]
            done = self._admin.alter_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)[group].result()
        except KafkaException as error:
            raise translate(error.args[0], f"group {group}") from error
        for partition in done.topic_partitions or []:
            if partition.error is not None:
                raise translate(partition.error, f"group {group}: {partition.topic} [{partition.partition}]")

    def _move(self, group: str, topic: str, number: int, committed: int | None, to: Place) -> Move:
        low, end = extent(self._consumer, topic, number, _TIMEOUT_S)
        if isinstance(to, datetime):
            asked = TopicPartition(topic, number, int(to.timestamp() * 1000))
            found = self._consumer.offsets_for_times([asked], timeout=_TIMEOUT_S)[0].offset
            target = end if found < 0 else int(found)
        elif isinstance(to, int):
            if not low <= to <= end:
                raise ConfigError(f"{topic} [{number}]: there is no offset {to}", remedy=f"it has {low} to {end}")
            target = to
        else:
            target = low if to == "earliest" else end
        return Move(group, topic, number, committed, target, (end if committed is None else committed) - target)

    def _committed(self, group: str) -> dict[tuple[str, int], int]:
        asked = [ConsumerGroupTopicPartitions(group)]
        found = self._admin.list_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)[group].result(_TIMEOUT_S + 1)
        return {(p.topic, p.partition): p.offset for p in found.topic_partitions or [] if p.offset >= 0}
