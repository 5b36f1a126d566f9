"""A worker in this process on the real broker: what the worker tests share.

Values are JSON unless a test is about Avro: the registry is not what these tests are about.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from waiting import wait_until

from pipeline import Pipeline
from pipeline.codec import Decoder
from pipeline.definition import Group
from pipeline.errors import SchemaError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.extent import extent
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import CATALOGUE
from pipeline.probes import Readiness
from pipeline.worker import Limits, Worker


class NoSchemas:
    def text(self, schema_id: int) -> str:
        raise SchemaError("no registry in this test", retryable=True)


class Meter:
    """Keeps what was counted, by name and labels."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._key(name, labels)
        self.values[name, *labels.values()] += amount  # type: ignore[assignment]

    def set(self, name: str, value: float, **labels: str) -> None:
        self._key(name, labels)
        self.values[name, *labels.values()] = value  # type: ignore[assignment]

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.add(name, **labels)

    def observe_many(self, name: str, values: Sequence[float], **labels: str) -> None:
        self.add(name, len(values), **labels)

    def _key(self, name: str, labels: dict[str, str]) -> None:
        assert set(CATALOGUE[name].labels) == set(labels)


class Broker:
    """The real broker, as a test looks at it."""

    def __init__(self, bootstrap: str) -> None:
        self.options = {"bootstrap.servers": bootstrap}
        self._producer = Producer(
            {**self.options, "partitioner": "murmur2_random", "linger.ms": 1, "enable.idempotence": True}
        )

    def create(self, app: Pipeline) -> None:
        admin = AdminClient(self.options)
        new = [NewTopic(s.name, s.partitions, 1, config=s.config) for s in app.topics()]
        for done in admin.create_topics(new, operation_timeout=60).values():
            done.result(60)

    def admin_create(self, topic: str, *, partitions: int) -> None:
        admin = AdminClient(self.options)
        for done in admin.create_topics([NewTopic(topic, partitions, 1)], operation_timeout=60).values():
            done.result(60)

    def put(
        self,
        topic: str,
        type_name: str | None,
        data: dict[str, Any] | bytes | None,
        *,
        key: str | None = None,
        event_id: str = "",
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ms: int = 0,
        partition: int = -1,
    ) -> None:
        value = json.dumps(data).encode() if isinstance(data, dict) else data
        own: list[tuple[str, bytes | None]] = [("type", type_name.encode())] if type_name else []
        if event_id:
            own.append(("id", event_id.encode()))
        self._producer.produce(
            topic,
            value,
            key.encode() if key is not None else None,
            partition,
            timestamp=timestamp_ms,
            headers=[*own, *headers],
        )
        self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(60) == 0

    def read(self, topic: str, count: int, deadline_s: float = 90.0) -> list[Message]:
        """Return the first ``count`` records of a topic, over all partitions."""
        consumer = Consumer(
            {**self.options, "group.id": "reads", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
        )
        try:
            numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
            found: list[Message] = []
            end = time.monotonic() + deadline_s
            while len(found) < count:
                message = consumer.poll(0.2)
                if message is not None and message.error() is None:
                    found.append(message)
                assert time.monotonic() < end, f"{topic}: {len(found)} of {count} records within {deadline_s} s"
            return found
        finally:
            consumer.close()

    def count(self, topic: str) -> int:
        consumer = Consumer({**self.options, "group.id": "counts"})
        try:
            numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
            ends = [extent(consumer, topic, n, 60) for n in numbers]
            return sum(high - low for low, high in ends)
        finally:
            consumer.close()

    def committed(self, group: str, topic: str) -> int:
        """Sum of the committed offsets of a group on a topic."""
        consumer = Consumer({**self.options, "group.id": group})
        try:
            numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
            found = consumer.committed([TopicPartition(topic, n) for n in numbers], timeout=60)
            return sum(max(0, partition.offset) for partition in found)
        finally:
            consumer.close()


def members(broker: Broker, group: str) -> dict[str, int]:
    """The instance or member ids of a group's members, and how many partitions each has."""
    admin = AdminClient(broker.options)
    found = admin.describe_consumer_groups([group])[group].result(60)
    return {
        one.group_instance_id or one.member_id: len(one.assignment.topic_partitions if one.assignment else ())
        for one in found.members
    }


class Watched(Readiness):
    """Remembers that a group was joined: not being ready again can follow at once."""

    def __init__(self, group: str) -> None:
        super().__init__("worker")
        self.joined = threading.Event()
        self._group = group

    def ready(self, part: str = "start", *, role: str | None = None) -> None:
        super().ready(part, role=role)
        if part == self._group:
            self.joined.set()


class Running:
    """One worker in a thread."""

    def __init__(
        self,
        broker: Broker,
        group: Group,
        *,
        limits: Limits | None = None,
        schemas: Any = None,
        producer: Any = None,
        call_of: Any = None,
        **options: str,
    ) -> None:
        # a rebalance takes milliseconds; with KIP-848 it waits for the members' next heartbeats
        kafka = {**({} if "group.protocol" in options else {"group.protocol": "classic"}), **broker.options, **options}
        self.health = Watched(group.name)
        self.health.ready()
        self.meter = Meter()
        self.consumer = GroupConsumer(kafka, group.name)
        self.worker = Worker(
            group,
            self.consumer,
            self.consumer,
            producer or AckProducer(broker.options),
            Decoder(schemas or NoSchemas()),
            meter=self.meter,
            health=self.health,
            limits=limits or Limits(drain_s=10),
            chance=lambda: 0.0,
            **({"call_of": call_of} if call_of else {}),
        )
        self.clean: bool | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.clean = self.worker.run()
        except BaseException as error:  # noqa: BLE001 — the test looks at it
            self.error = error

    @property
    def ready(self) -> bool:
        return bool(self.health.state()["ready"])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, deadline_s: float = 90.0) -> None:
        self._thread.join(deadline_s)
        assert not self._thread.is_alive(), "the worker did not end"

    def stop(self, deadline_s: float = 90.0, *, hurry: bool = False) -> None:
        self.worker.stop(hurry=hurry)
        self.join(deadline_s)
        if self.error is not None:
            raise self.error


@contextmanager
def running(broker: Broker, group: Group, **options: Any) -> Iterator[Running]:
    worker = Running(broker, group, **options)
    try:
        wait_until(lambda: worker.health.joined.is_set() or not worker.alive, why="the worker joins its group")
        yield worker
    finally:
        worker.worker.stop(hurry=True)
        worker.join()
