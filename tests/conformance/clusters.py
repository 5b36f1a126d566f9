"""The brokers that one suite runs on: Kafka by its adapters, with both of its group protocols, and ours in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Protocol

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from pipeline.errors import BrokerError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.progress import Mark
from pipeline.record import Record
from pipeline.testing.broker import Broker
from pipeline.testing.consumer import GroupConsumer as MemoryConsumer
from pipeline.testing.producer import AckProducer as MemoryProducer
from pipeline.topics import TopicSpec
from pipeline.worker.ports import Partition

FEATURES = {
    "kafka": frozenset({"record sizes"}),
    "memory": frozenset(),
}
"""What only one of them can: a broker in memory takes records of any size."""


class Cluster(Protocol):
    """One broker. Names are made unique by who uses it."""

    def create(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None: ...
    def add_partitions(self, topic: str, total: int) -> None: ...
    def producer(self) -> Any: ...
    def consumer(self, group: str) -> Any: ...
    def hole(self, topic: str, partition: int) -> None:
        """Let one offset pass that holds no record."""

    def expire(self, topic: str, partition: int, before: int) -> None:
        """Delete the records below an offset."""

    def now_ms(self) -> int: ...


class Kafka:
    def __init__(self, bootstrap: str, group_protocol: str) -> None:
        self._group_protocol = group_protocol
        self._options = {"bootstrap.servers": bootstrap}
        self._admin = AdminClient(self._options)
        self._open: list[Any] = []

    def create(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        new = NewTopic(topic, partitions, 1, config=dict(config or {}))
        for done in self._admin.create_topics([new], operation_timeout=60).values():
            done.result(60)

    def add_partitions(self, topic: str, total: int) -> None:
        for done in self._admin.create_partitions([NewPartitions(topic, total)], operation_timeout=60).values():
            done.result(60)

    def producer(self) -> AckProducer:
        made = AckProducer({**self._options, "topic.metadata.propagation.max.ms": 500})
        self._open.append(made)
        return made

    def consumer(self, group: str) -> GroupConsumer:
        made = GroupConsumer(
            {**self._options, "topic.metadata.refresh.interval.ms": "500", "group.protocol": self._group_protocol},
            group,
        )
        self._open.append(made)
        return made

    def hole(self, topic: str, partition: int) -> None:
        """A marker of an empty transaction cannot be; one record, aborted, and its marker are two offsets."""
        producer = Producer({**self._options, "transactional.id": f"hole-{topic}"})
        producer.init_transactions(60)
        producer.begin_transaction()
        producer.produce(topic, b"aborted", partition=partition)
        producer.flush(60)  # an abort drops what was not sent
        producer.abort_transaction(60)

    def expire(self, topic: str, partition: int, before: int) -> None:
        for done in self._admin.delete_records([TopicPartition(topic, partition, before)]).values():
            done.result(60)

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def close(self) -> None:
        for one in self._open:
            try:
                one.close()
            except (BrokerError, RuntimeError):  # closed by the test already
                continue


class Memory:
    def __init__(self) -> None:
        self._broker = Broker(time.time)
        self._chance = Random(1)

    def create(self, topic: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        self._broker.create([TopicSpec(topic, partitions, dict(config or {}))])

    def add_partitions(self, topic: str, total: int) -> None:
        self._broker.create([TopicSpec(topic, total)])

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self._broker, self._chance)

    def consumer(self, group: str) -> MemoryConsumer:
        return MemoryConsumer(self._broker, group, self._chance)

    def hole(self, topic: str, partition: int) -> None:
        self._broker.skip(topic, partition, 2)

    def expire(self, topic: str, partition: int, before: int) -> None:
        self._broker.expire(topic, partition, before)

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def close(self) -> None:
        """Nothing is open."""


class Listening:
    """What a member was told. ``commits`` is what it commits when partitions are taken."""

    def __init__(self) -> None:
        self.starts: dict[Partition, Mark] = {}
        self.has: set[Partition] = set()
        self.told: list[tuple[str, tuple[Partition, ...]]] = []
        self.troubles: list[BrokerError] = []
        self.on_revoked: Callable[[], None] = lambda: None

    def assigned(self, starts: Mapping[Partition, Mark]) -> None:
        self.starts.update(starts)
        self.has |= set(starts)
        self.told.append(("assigned", tuple(sorted(starts))))

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self.on_revoked()
        self.has -= set(partitions)
        self.told.append(("revoked", tuple(sorted(partitions))))

    def lost(self, partitions: Sequence[Partition]) -> None:
        self.has -= set(partitions)
        self.told.append(("lost", tuple(sorted(partitions))))

    def trouble(self, error: BrokerError) -> None:
        self.troubles.append(error)


class Member:
    """A consumer with what it was told and what it has read."""

    def __init__(self, consumer: Any, topics: Mapping[str, Any]) -> None:
        self.consumer = consumer
        self.heard = Listening()
        self.records: list[Record] = []
        consumer.open(topics, self.heard)

    def poll(self) -> list[Record]:
        found: list[Record] = self.consumer.poll(100, 0.05)
        self.records += found
        return found

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]


def poll_until(done: Callable[[], object], *members: Member, deadline_s: float = 90.0) -> None:
    """Poll all members until it is done."""
    end = time.monotonic() + deadline_s
    while not done():
        for member in members:
            member.poll()
        told = [(member.heard.told, len(member.records), member.heard.troubles) for member in members]
        assert time.monotonic() < end, f"not within {deadline_s} s: {told}"


def send(producer: Any, topic: str, *values: bytes, key: bytes | None = None, partition: int = -1, **more: Any) -> None:
    """Send records and wait until each is stored."""
    waiting = set()
    for number, value in enumerate(values):
        producer.send(
            topic, key, value, more.get("headers", []), more.get("timestamp_ms", 0), number, partition=partition
        )
        waiting.add(number)
    end = time.monotonic() + 90
    while waiting:
        for token, error in producer.poll(0.1):
            assert error is None, error
            waiting.discard(token)
        assert time.monotonic() < end, "not stored within 90 s"
