"""Topics as they should be in, topics as they are and as they are changed out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from pipeline.errors import BrokerError
from pipeline.kafka.errors import misconfigured, translate
from pipeline.topics import TopicSpec

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Copies", "Topics"]

_TIMEOUT_S = 30.0
_CONTACT_S = 8.0  # a broker that is down is told early
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Copies:
    """``replicas`` there should be, and how many are ``in_sync``, in a cluster of so many ``brokers``."""

    replicas: int
    in_sync: int
    brokers: int


class Topics:
    """The broker's topics. ``options`` are librdkafka settings; every call raises BrokerError.

    ``contact_s`` is how long a broker may take to tell which topics there are.
    """

    def __init__(self, options: Mapping[str, str], *, contact_s: float = _CONTACT_S) -> None:
        self._contact_s = contact_s
        try:
            self._admin = AdminClient({"client.id": "pipeline-topics", **options, "log_level": 0})
        except (KafkaException, ValueError, TypeError) as error:
            raise misconfigured(error, "client") from error

    def partitions(self) -> dict[str, int]:
        """Return topic → number of partitions, of all topics."""
        try:
            found = self._admin.list_topics(timeout=self._contact_s)
        except KafkaException as error:
            raise translate(error.args[0], "list topics") from error
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def look_for(self, names: Iterable[str]) -> None:
        """Raise BrokerError where this user may not see a topic of these: it is not among all topics then."""
        if not (wanted := list(names)):
            return
        asked = self._admin.describe_topics(TopicCollection(wanted), request_timeout=_TIMEOUT_S)
        for name, future in asked.items():
            _await(future, f"topic {name}", right="DESCRIBE", ignore=KafkaError.UNKNOWN_TOPIC_OR_PART)

    def copies(self) -> dict[str, Copies]:
        """Return topic → how many brokers have its partitions, of all topics. The poorest partition counts."""
        try:
            found = self._admin.list_topics(timeout=self._contact_s)
        except KafkaException as error:
            raise translate(error.args[0], "list topics") from error
        return {
            name: Copies(
                min(len(one.replicas) for one in topic.partitions.values()),
                min(len(one.isrs) for one in topic.partitions.values()),
                len(found.brokers),
            )
            for name, topic in found.topics.items()
            if topic.partitions
        }

    def newest(self, partitions: Mapping[str, int]) -> dict[str, float]:
        """Return topic → the highest time of its records, in Unix time; without topics that have none."""
        wanted = {
            TopicPartition(name, number): OffsetSpec.max_timestamp()  # type: ignore[no-untyped-call]
            for name, count in partitions.items()
            for number in range(count)
        }
        times: dict[str, float] = {}
        for partition, future in (self._admin.list_offsets(wanted) if wanted else {}).items():
            found = _await(future, f"times of {partition.topic}", right="DESCRIBE")
            if found.timestamp >= 0:
                times[partition.topic] = max(times.get(partition.topic, 0.0), found.timestamp / 1000)
        return times

    def configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return topic → all its settings, defaults among them."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        futures = self._admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
        return {
            resource.name: {
                key: entry.value
                for key, entry in _await(future, f"settings of {resource.name}", right="DESCRIBE_CONFIGS").items()
            }
            for resource, future in futures.items()
        }

    def create(self, specs: Iterable[TopicSpec], replication_factor: int = -1) -> None:
        """Create topics and wait until every partition has a leader. One that is there already is left as it is."""
        new = [
            NewTopic(
                spec.name, num_partitions=spec.partitions, replication_factor=replication_factor, config=spec.config
            )
            for spec in specs
        ]
        if not new:
            return
        for name, future in self._admin.create_topics(new, operation_timeout=_TIMEOUT_S).items():
            _await(future, f"create topic {name}", right="CREATE", ignore=KafkaError.TOPIC_ALREADY_EXISTS)

    def add_partitions(self, name: str, total: int) -> None:
        """Raise the number of partitions to ``total``. Keys move to other partitions: order per key is broken once."""
        futures = self._admin.create_partitions([NewPartitions(name, total)], operation_timeout=_TIMEOUT_S)
        for future in futures.values():
            _await(future, f"partitions of {name}", right="ALTER")
        _until(lambda: self.partitions().get(name, 0) >= total, f"partitions of {name}")

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Set the named settings of a topic and leave the others as they are."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for future in self._admin.incremental_alter_configs([resource], request_timeout=_TIMEOUT_S).values():
            _await(future, f"settings of {name}", right="ALTER_CONFIGS")
        _until(lambda: config.items() <= self.configs([name])[name].items(), f"settings of {name}")


def _until(seen: Callable[[], bool], what: str) -> None:
    """Wait until the broker shows a change that its controller has accepted: it applies it a moment later."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not seen():
        if time.monotonic() > deadline:
            raise BrokerError(
                f"Kafka: {what}: accepted, but not applied within {_TIMEOUT_S:.0f} s",
                remedy="look at the broker's log, then ask again",
                retryable=True,
            )
        time.sleep(_PAUSE_S)


def _await(
    future: Future[Any], what: str, *, right: str, ignore: int | None = None
) -> Any:  # as the client's futures are typed
    try:
        return future.result(timeout=_TIMEOUT_S + 5)
    except KafkaException as error:
        if error.args[0].code() != ignore:
            raise translate(error.args[0], what, right=right) from error
        return None
