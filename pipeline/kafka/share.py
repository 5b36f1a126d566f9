"""A share group's records in, as a worker takes those of a consumer group; each accepted once it is settled.

Members of a share group have records of one partition side by side, so there may be more of them than partitions. The
client is a preview, and polls again only when the whole batch before is acknowledged. A batch's partitions are told to
the worker as if they were assigned; what it would commit says which of their records are settled: these are accepted.
Others are released at the end, and given up when their lock has run out. After so many deliveries (5) the broker drops
a record and keeps no copy: one that comes for the third time goes to a retry topic, whose consumer group loses nothing.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from confluent_kafka import AcknowledgeType, KafkaException, Message, ShareConsumer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from pipeline.definition import Start
from pipeline.errors import BrokerError
from pipeline.headers import RetryState
from pipeline.kafka.consumer import GroupConsumer, Listener, Partition
from pipeline.kafka.errors import misconfigured, translate
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.reader import record_of
from pipeline.progress import Mark, Progress
from pipeline.record import Record

__all__ = ["RetryConsumer", "ShareGroup", "lock_of"]

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_LOCK = "share.record.lock.duration.ms"
_LOOK_S = 0.005  # whether the batch is settled
_LAST_CHANCE = 3
"""Of how many deliveries the last one is not left to the broker; it drops a record after 5."""


def lock_of(options: Mapping[str, str | int | bool], group: str, *, lock_s: float | None = None) -> float:
    """Let a share group begin at the beginning of its topics; return how long it locks a record, in seconds.

    With ``lock_s`` it is set to that first: 15 to 60, where the broker's limits are the default. Raises BrokerError,
    also for a broker that knows no share groups.
    """
    wanted = {"share.auto.offset.reset": "earliest"}
    if lock_s is not None:
        wanted[_LOCK] = str(int(lock_s * 1000))
    resource = ConfigResource(
        ResourceType.GROUP,
        group,
        incremental_configs=[
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()
        ],
    )
    try:
        admin = AdminClient({**options, "log_level": 0})
        for done in admin.incremental_alter_configs([resource], request_timeout=_TIMEOUT_S).values():
            done.result()
        asked = ConfigResource(ResourceType.GROUP, group)
        (found,) = admin.describe_configs([asked], request_timeout=_TIMEOUT_S).values()
        return int(found.result()[_LOCK].value) / 1000
    except (KafkaException, KeyError) as raised:
        why = translate(raised.args[0], f"share group {group}").what if isinstance(raised, KafkaException) else _LOCK
        raise BrokerError(
            f"share group {group}: {why}", remedy="share groups need Kafka 4.2 or newer; leave --mode share out"
        ) from raised


class ShareGroup:
    """One member of a share group. ``aside`` takes records that were delivered too often; ``most`` is a batch's size.

    ``lock_s`` is how long the broker locks a record: what is not settled by then is given up, begun or not. One thread
    only. Both ports of a worker: of its taps nothing can be closed but the whole.
    """

    commit_s = 0.0
    """Between two commits of its worker: the next batch comes only after one."""

    def __init__(
        self,
        options: Mapping[str, str | int | bool],
        group: str,
        topics: Collection[str],
        *,
        most: int,
        lock_s: float,
        aside: str,
        producer: AckProducer,
    ) -> None:
        self._group = group
        self._topics = sorted(topics)
        self._lock_s = lock_s
        self._until = 0.0
        self._aside = aside
        self._producer = producer
        self._listener: Listener | None = None
        self._ends: dict[Partition, int] = {}
        self._open: dict[Partition, set[int]] = defaultdict(set)
        self._joined = False
        settings = {
            **options,
            "group.id": group,
            "share.acknowledgement.mode": "explicit",
            "max.poll.records": most,
        }
        try:
            self._consumer = ShareConsumer(settings)
        except (KafkaException, ValueError, TypeError) as raised:
            raise misconfigured(raised, "share consumer") from raised

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group, for its topics alone: retry topics wait, which a share group cannot."""
        del topics
        self._listener = listener
        self._consumer.subscribe(self._topics)

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """Return the next batch, once the one before is settled. Raises BrokerError when it is over."""
        del limit  # a batch comes as it is
        listener = self._listener
        assert listener is not None
        if any(self._open.values()) and time.monotonic() < self._until:
            time.sleep(min(wait_s, _LOOK_S))
            return []
        self._give_up(listener)
        begun = time.monotonic()
        try:
            batch = self._consumer.poll(wait_s)
        except KafkaException as raised:
            raise translate(raised.args[0], f"share group {self._group}") from raised
        if not self._joined:
            self._joined = True
            listener.assigned({})
        messages = [message for message in batch if self._is_record(message)]
        often = [message for message in messages if (message.delivery_count() or 1) >= _LAST_CHANCE]
        if often:
            self._put_aside(often)
        self._until = begun + self._lock_s
        records = sorted(record_of(message) for message in messages if message not in often)
        self._take(records, listener)
        return records

    def commit(self, marks: Mapping[Partition, Mark], *, wait: bool) -> None:
        """Accept what is settled by now."""
        del wait
        accepted = 0
        for partition, mark in marks.items():
            progress = Progress.read(mark)
            settled = {offset for offset in self._open[partition] if progress.settled(offset)}
            for offset in settled:
                self._consumer.acknowledge_offset(*partition, offset, AcknowledgeType.ACCEPT)
            self._open[partition] -= settled
            accepted += len(settled)
        if accepted:
            try:
                self._consumer.commit_async()
            except KafkaException as raised:
                self._tell(translate(raised.args[0], f"share group {self._group}"))

    def close(self) -> None:
        """Release what is not settled, and leave the group."""
        self._release()
        self._producer.close()
        try:
            self._consumer.close()
        except KafkaException as raised:
            raise translate(raised.args[0], f"leaving share group {self._group}") from raised

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Nothing more is fetched anyway while a batch is open."""

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetching goes on by itself, once the batch is settled."""

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Nothing is known of ends: others have records of the same partitions."""
        del partitions
        return {}

    def reachable(self) -> bool:
        """Polling says so by itself."""
        return True

    def _take(self, records: Sequence[Record], listener: Listener) -> None:
        """Tell of partitions that are new here, or whose records come again below what came before."""
        first: dict[Partition, int] = {}
        for record in records:
            where = (record.topic, record.partition)
            first.setdefault(where, record.offset)
            self._open[where].add(record.offset)
        starts = {where: Mark(offset) for where, offset in first.items() if offset < self._ends.get(where, offset + 1)}
        for record in records:
            self._ends[record.topic, record.partition] = record.offset + 1
        if starts:
            listener.assigned(starts)

    def _give_up(self, listener: Listener) -> None:
        """Forget what was not settled while its lock held: somebody else has it, or will."""
        gone = [where for where, offsets in self._open.items() if offsets]
        if gone:
            listener.lost(gone)
            self._release()

    def _release(self) -> None:
        for partition, offsets in self._open.items():
            for offset in offsets:
                self._consumer.acknowledge_offset(*partition, offset, AcknowledgeType.RELEASE)
            self._ends.pop(partition, None)
        self._open.clear()

    def _put_aside(self, messages: Sequence[Message]) -> None:
        """Store records on the retry topic, as they are, and accept them then. Raises BrokerError."""
        log.warning(
            "records were delivered too often; they go to a retry topic",
            extra={"action": "share.aside", "group": self._group, "count": len(messages)},
        )
        for number, record in enumerate(map(record_of, messages)):
            headers = RetryState.first(record).headers(record)
            self._producer.send(self._aside, record.key, record.value, [*headers], 0, number)
        waiting: set[object] = set(range(len(messages)))
        until = time.monotonic() + _TIMEOUT_S
        while waiting:
            for token, error in self._producer.poll(0.1):
                if error is not None:
                    raise error
                waiting.discard(token)
            if time.monotonic() > until:
                raise BrokerError(
                    f"{self._aside}: not stored within {_TIMEOUT_S:g} s",
                    remedy="look at the broker's log; the records come again once their locks have run out",
                    retryable=True,
                )
        for message in messages:
            self._consumer.acknowledge(message, AcknowledgeType.ACCEPT)

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        translated = translate(error, f"share group {self._group}")
        if not translated.retryable:
            raise translated
        self._tell(translated)
        return False

    def _tell(self, error: BrokerError) -> None:
        if self._listener is not None:
            self._listener.trouble(error)


class RetryConsumer(GroupConsumer):
    """A member of the consumer group beside a share group: it has the retry topics, ``topics``, and no others."""

    def __init__(
        self,
        options: Mapping[str, str | int | bool],
        group: str,
        topics: Collection[str],
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(options, group, stopped=stopped)
        self._only = frozenset(topics)

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group for the retry topics."""
        super().open({topic: start for topic, start in topics.items() if topic in self._only}, listener)
