"""Records in, the same records out by topic, partition and offset: a Kafka broker in memory.

What a program can tell from Kafka is as with Kafka, and one suite of tests runs on both (``tests/conformance``): the
partition of a key, offsets that only grow and have holes, timestamps, groups and their committed offsets. One thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from pipeline.errors import BrokerError
from pipeline.progress import Mark
from pipeline.record import Header, Record
from pipeline.testing.coordinator import Coordinator
from pipeline.testing.murmur import partition_of
from pipeline.topics import TopicSpec

__all__ = ["Broker"]

_START = Mark(0)


class _Log:
    """One partition. ``start`` is the first offset that retention left, ``end`` the next one to be written."""

    __slots__ = ("end", "offsets", "records", "start")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.offsets: list[int] = []
        self.start = 0
        self.end = 0


class Broker:
    """Topics, their records, and groups. ``wall`` gives seconds since 1970.

    ``down`` lets every request wait or fail as a broker does that is away. ``refusals`` has, by topic, the error that
    a record meets there. ``hashed`` gives what stands for a key when its partition is chosen.
    """

    def __init__(self, wall: Callable[[], float], hashed: Callable[[bytes], bytes] = lambda key: key) -> None:
        self.down = False
        self.refusals: dict[str, BrokerError] = {}
        self._wall = wall
        self._hashed = hashed
        self._specs: dict[str, TopicSpec] = {}
        self._logs: dict[str, list[_Log]] = {}
        self._groups: dict[str, Coordinator] = {}
        self._unkeyed = 0

    # ── topics ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def topics(self) -> dict[str, int]:
        """Topic → number of partitions."""
        return {name: len(logs) for name, logs in self._logs.items()}

    def create(self, specs: Iterable[TopicSpec]) -> None:
        """Create topics; one that is there is left as it is, but for partitions that it lacks."""
        for spec in specs:
            self._specs.setdefault(spec.name, spec)
            logs = self._logs.setdefault(spec.name, [])
            logs.extend(_Log() for _ in range(spec.partitions - len(logs)))

    def delete(self, topic: str) -> None:
        """Delete a topic with all that is in it."""
        self._logs.pop(topic, None)
        self._specs.pop(topic, None)

    # ── records ────────────────────────────────────────────────────────────────────────────────────────────────

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, str | bytes | None]] = (),
        *,
        timestamp_ms: int = 0,
        partition: int = -1,
    ) -> Record:
        """Store a record and return it; ``timestamp_ms`` 0 means now, ``partition`` -1 by the key.

        Raises BrokerError where the topic or partition is missing, or ``refusals`` says so.
        """
        if topic in self.refusals:
            raise self.refusals[topic]
        logs = self._logs.get(topic)
        if logs is None or partition >= len(logs):
            raise BrokerError(f"Kafka: no such topic or partition: {topic}", remedy="create it", retryable=True)
        if partition < 0:
            partition = partition_of(self._hashed(key), len(logs)) if key is not None else self._spread(len(logs))
        stamped = self._specs[topic].config.get("message.timestamp.type") == "LogAppendTime" or not timestamp_ms
        own: list[Header] = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers]
        log = logs[partition]
        record = Record(
            topic, partition, log.end, key, value, own, int(self._wall() * 1000) if stamped else timestamp_ms
        )
        log.records.append(record)
        log.offsets.append(log.end)
        log.end += 1
        return record

    def records(self, topic: str, partition: int | None = None) -> list[Record]:
        """Return what is on a topic, partition after partition."""
        logs = self._logs.get(topic, [])
        return [record for number, log in enumerate(logs) if partition in {None, number} for record in log.records]

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return at most ``limit`` records from ``offset`` on."""
        log = self._logs[topic][partition]
        first = bisect_left(log.offsets, offset)
        return log.records[first : first + limit]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset that is still there, and the one after the last."""
        log = self._logs[topic][partition]
        return log.start, log.end

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """Return the first offset that is not older than a time."""
        log = self._logs[topic][partition]
        return next((record.offset for record in log.records if record.timestamp_ms >= timestamp_ms), None)

    def skip(self, topic: str, partition: int, count: int = 1) -> None:
        """Leave a hole, as markers of transactions and compaction do."""
        self._logs[topic][partition].end += count

    def expire(self, topic: str, partition: int, before: int) -> None:
        """Delete the records below an offset, as retention does."""
        log = self._logs[topic][partition]
        log.start = min(max(before, log.start), log.end)
        first = bisect_left(log.offsets, log.start)
        del log.records[:first], log.offsets[:first]

    # ── groups ─────────────────────────────────────────────────────────────────────────────────────────────────

    def group(self, name: str) -> Coordinator:
        """Return what is known of a consumer group."""
        return self._groups.setdefault(name, Coordinator(self))

    def lag(self, group: str, topics: Iterable[str]) -> int:
        """Count the records of topics that lie at or above what a group has committed."""
        committed = self.group(group).committed
        return sum(
            len(log.offsets) - bisect_left(log.offsets, committed.get((topic, number), _START).offset)
            for topic in topics
            for number, log in enumerate(self._logs.get(topic, ()))
        )

    def _spread(self, count: int) -> int:
        self._unkeyed += 1
        return self._unkeyed % count
