"""A topic, a partition and a range of offsets in, its records out; no group is joined and nothing is committed.

The end is fixed before reading: what is written meanwhile is not read. Holes (compaction, markers of transactions,
records that retention took) are passed over.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Delivered

from pipeline.errors import BrokerError
from pipeline.kafka.errors import misconfigured, translate
from pipeline.kafka.extent import extent
from pipeline.record import Record

if TYPE_CHECKING:
    from pipeline.deadletter import Place

__all__ = ["TopicReader", "record_of"]

_TIMEOUT_S = 8.0
_STALLED_S = 30.0
_GAP = 1000  # offsets: reading on over fewer than these is quicker than asking anew


class TopicReader:
    """Reads topics. ``options`` are librdkafka settings; every call raises BrokerError. Close it. One thread only."""

    def __init__(self, options: Mapping[str, str]) -> None:
        fixed: dict[str, str | bool | int] = {
            "group.id": "pipeline-reader",  # the client wants one; it is never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,  # a request that waits at the end holds up the next range
            "auto.offset.reset": "error",
            "log_level": 0,
        }
        try:
            self._consumer = Consumer({"isolation.level": "read_committed", **options, **fixed})
        except (KafkaException, ValueError, TypeError) as error:
            raise misconfigured(error, "reader") from error

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def topics(self) -> frozenset[str]:
        """Return the names of all topics."""
        try:
            return frozenset(self._consumer.list_topics(timeout=_TIMEOUT_S).topics)
        except KafkaException as error:
            raise translate(error.args[0], "list topics") from error

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return partition → first offset that is still there, and the one after the last."""
        try:
            found = self._consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
            if found.error is not None:
                raise translate(found.error, f"topic {topic}")
            return {number: extent(self._consumer, topic, number, _TIMEOUT_S) for number in found.partitions}
        except KafkaException as error:
            raise translate(error.args[0], f"topic {topic}") from error

    def read(self, topic: str, partition: int, start: int, end: int) -> Generator[Record, None, None]:
        """Give the records from ``start`` to before ``end``, in order. Ask ``bounds`` for offsets that are there."""
        if start >= end:
            return
        try:
            self._consumer.assign([TopicPartition(topic, partition, start)])
            heard = time.monotonic()
            while True:
                message = self._consumer.poll(1.0)
                if message is None:
                    if time.monotonic() > heard + _STALLED_S:
                        raise BrokerError(
                            f"Kafka: {topic}[{partition}]: nothing came for {_STALLED_S:.0f} s",
                            remedy="is the broker up, and its partition led by somebody?",
                            retryable=True,
                        )
                    continue
                heard = time.monotonic()
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 — the client's public codes look so
                        return
                    if error.retriable():
                        continue
                    raise translate(error, f"{topic}[{partition}]")
                record = record_of(message)
                if record.offset >= end:
                    return
                yield record
                if record.offset == end - 1:
                    return
        except KafkaException as error:
            raise translate(error.args[0], f"{topic}[{partition}]") from error
        finally:
            self._consumer.unassign()

    def fetch(self, places: Iterable[Place]) -> Iterator[Record]:
        """Give the records at these places, by topic, partition and offset, as far as they are still there."""
        for (topic, partition), group in groupby(sorted(places), key=lambda place: place[:2]):
            first, end = self.bounds(topic).get(partition, (0, 0))
            wanted = [place.offset for place in group if first <= place.offset < end]
            for run in _runs(wanted):
                chosen = set(run)
                for record in self.read(topic, partition, run[0], run[-1] + 1):
                    if record.offset in chosen:
                        yield record


def _runs(offsets: list[int]) -> Iterator[list[int]]:
    """Split ascending offsets where the next is far away."""
    run: list[int] = []
    for offset in offsets:
        if run and offset - run[-1] > _GAP:
            yield run
            run = []
        run.append(offset)
    if run:
        yield run


def record_of(message: Delivered) -> Record:
    """Return what a client delivered as a record."""
    found = cast("list[tuple[str, str | bytes | None]]", message.headers() or [])
    return Record(
        str(message.topic()),
        int(message.partition() or 0),
        int(message.offset() or 0),
        _bytes(message.key()),
        _bytes(message.value()),
        [(name, _bytes(value)) for name, value in found],
        int(message.timestamp()[1]),
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
