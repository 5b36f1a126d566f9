"""A consumer group's records in, in batches as they come; offsets committed as told.

Nothing is committed by itself and no offset is ever reset: where a group begins is decided once and committed, so
that offsets that went missing are an error and not a silent skip. Only committed transactions are read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.definition import Start
from pipeline.errors import BrokerError, ConfigError
from pipeline.kafka.errors import misconfigured, translate
from pipeline.kafka.membership import CLASSIC, KIP_848, membership, not_taken
from pipeline.progress import Mark
from pipeline.record import Record

__all__ = ["GroupConsumer"]

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_PATIENCE_S = 60.0  # a coordinator that starts or moves answers with errors that pass
_APPEAR_S = 3.0  # a broker lists a topic a moment after its controller has made it
_PAUSE_S = 0.1
_GUARANTEES: dict[str, str | int | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": False,
    "allow.auto.create.topics": False,
}
_DEFAULTS: dict[str, str | int | bool] = {
    "fetch.queue.backoff.ms": 10,  # the default waits a second after a full queue
    "queued.max.messages.kbytes": 32_768,
}
_NOT_OURS = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
    }
)
_FINAL = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID})  # noqa: SLF001

Partition = tuple[str, int]
T = TypeVar("T")


class Listener(Protocol):
    """Who is told of the assignment and of trouble."""

    def assigned(self, starts: Mapping[Partition, Mark]) -> None:
        """Partitions are ours, from what was committed."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions are ours until this returns."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions are somebody else's."""

    def trouble(self, error: BrokerError) -> None:
        """The client goes on trying."""


class GroupConsumer:
    """One member of a group. ``options`` are librdkafka settings; those that the guarantee needs stay as they are.

    ``group.protocol`` may be ``auto``, and is where it is left out: see ``pipeline.kafka.membership``.
    One thread only. The listener is called inside ``poll``, ``commit`` and ``close``.
    """

    def __init__(self, options: Mapping[str, str | int | bool], group: str) -> None:
        for name, value in _GUARANTEES.items():
            if str(options.get(name, value)).lower() != str(value).lower():
                raise ConfigError(
                    f"consumer setting {name}={options[name]}", remedy=f"it must be {value}: leave it out"
                )
        self._group = group
        self._listener: Listener | None = None
        self._starts: dict[str, Start] = {}
        self._closing = False
        self._static = "group.instance.id" in options
        self._options = dict(options)
        wanted = membership(options)
        self._trying = wanted == "auto"
        self._consumer = self._member(CLASSIC if wanted == "classic" else KIP_848)

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group. Raises BrokerError where the broker does not answer or a topic is missing."""
        self._starts = dict(topics)
        partitions = self._partitions()
        until = time.monotonic() + _APPEAR_S
        while (missing := sorted(set(topics) - set(partitions))) and time.monotonic() < until:
            time.sleep(_PAUSE_S)
            partitions = self._partitions()
        if missing:
            raise BrokerError(
                f"group {self._group}: no such topic: {', '.join(missing)}",
                remedy="create them: pipeline topics apply MODULE:APP",
            )
        self._begin(partitions)
        self._listener = listener
        self._subscribe()

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """Return at most ``limit`` records, waiting for the first only. Raises BrokerError when it is over."""
        try:
            first = self._consumer.poll(wait_s)
            if first is None:
                return []
            messages = [first, *self._consumer.consume(limit - 1, 0)] if limit > 1 else [first]
        except KafkaException as raised:  # the client has failed for good
            raise translate(raised.args[0], f"group {self._group}") from raised
        return [
            _RECORD(
                Record,
                (
                    message.topic(),
                    message.partition(),
                    message.offset(),
                    message.key(),
                    message.value(),
                    message.headers() or [],
                    message.timestamp()[1],
                ),
            )
            for message in messages
            if message.error() is None or self._heard(message)
        ]

    def commit(self, marks: Mapping[Partition, Mark], *, wait: bool) -> None:
        """Commit the offsets to read next; without ``wait`` trouble goes to the listener."""
        offsets = [TopicPartition(topic, n, mark.offset, mark.metadata) for (topic, n), mark in marks.items()]
        try:
            if not wait:
                self._consumer.commit(offsets=offsets, asynchronous=True)
                return
            done = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as raised:
            error = translate(raised.args[0], f"commit of group {self._group}")
            if wait:
                raise error from raised
            self._tell(error)
            return
        for partition in done:
            if partition.error is not None:
                raise translate(partition.error, f"commit of {partition.topic} [{partition.partition}]")

    def close(self) -> None:
        """Leave the group; a static member (``group.instance.id``) stays in it, for who comes in its place.

        A client that has failed for good leaves nothing: what it failed of was told by ``poll``.
        """
        self._closing = True
        try:
            if not self._static and not self._consumer.assignment():
                # closing alone would not say it to the broker, and a rebalance would wait for this member
                self._consumer.unsubscribe()
            self._consumer.close()
        except KafkaException as raised:
            if raised.args[0].code() != KafkaError._FATAL:  # noqa: SLF001
                raise translate(raised.args[0], f"leaving group {self._group}") from raised

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch no more of these."""
        self._consumer.pause([TopicPartition(*partition) for partition in partitions])

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch these again."""
        self._consumer.resume([TopicPartition(*partition) for partition in partitions])

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """End offsets as the last fetches told them."""
        found = {}
        for partition in partitions:
            try:
                bounds = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            except KafkaException:  # not fetched yet
                continue
            if bounds and bounds[1] >= 0:
                found[partition] = bounds[1]
        return found

    def reachable(self) -> bool:
        """Ask whether the broker answers within half a second, and lets this group read its topics."""
        try:
            found = self._consumer.committed([TopicPartition(topic, 0) for topic in self._starts], timeout=0.5)
        except KafkaException:
            return False
        return all(partition.error is None for partition in found)

    # ── membership ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _member(self, protocol: Mapping[str, str]) -> Consumer:
        try:
            return Consumer(
                {
                    **_DEFAULTS,
                    **self._options,
                    **protocol,
                    **_GUARANTEES,
                    "group.id": self._group,
                    "error_cb": self._reported,
                    "on_commit": self._committed,
                    "logger": log,
                }
            )
        except (KafkaException, ValueError, TypeError) as raised:
            raise misconfigured(raised, "consumer") from raised

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            sorted(self._starts), on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose
        )

    def _fall_back(self) -> None:
        """Join in the classic way: nothing was assigned yet."""
        self._trying = False
        log.info(
            f"group {self._group}: the broker does not take KIP-848; joining with the classic protocol",
            extra={"action": "consumer.classic", "group": self._group},
        )
        self._consumer.close()
        self._consumer = self._member(CLASSIC)
        self._subscribe()

    # ── where a group begins ───────────────────────────────────────────────────────────────────────────────────

    def _partitions(self) -> dict[str, list[int]]:
        try:
            return self._listed()
        except KafkaException as raised:
            raise translate(raised.args[0], "list topics") from raised

    def _listed(self) -> dict[str, list[int]]:
        found = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
        return {name: sorted(topic.partitions) for name, topic in found.items() if name in self._starts}

    def _begin(self, partitions: Mapping[str, Sequence[int]]) -> None:
        """Commit where each topic begins that the group never read. A group that runs elsewhere refuses that: fine."""
        everything = [TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers]
        known = {p.topic for p in self._stored(everything) if p.offset >= 0}
        fresh = {partition.topic for partition in everything} - known
        offsets = [
            TopicPartition(p.topic, p.partition, offset)
            for p, offset in self._start_offsets([p for p in everything if p.topic in fresh])
        ]
        if not offsets:
            return
        skipping = [topic for topic in sorted(fresh) if self._starts[topic] != "earliest"]
        log.log(
            logging.WARNING if skipping else logging.INFO,
            f"group {self._group} has committed nothing on {', '.join(skipping or sorted(fresh))}: it is new, or its "
            f"offsets have expired; it begins at {self._starts[skipping[0]] if skipping else 'the beginning'}",
            extra={"action": "consumer.begin", "group": self._group},
        )
        try:
            done = self._consumer.commit(offsets=offsets, asynchronous=False)
            errors = [p.error for p in done if p.error is not None]
        except KafkaException as raised:
            errors = [raised.args[0]]
        for error in errors:
            if error.code() not in _NOT_OURS:
                raise translate(error, f"group {self._group}: committing where it begins")

    def _start_offsets(self, partitions: Sequence[TopicPartition]) -> list[tuple[TopicPartition, int]]:
        return _patiently(
            lambda: [(p, self._start_offset(p, self._starts[p.topic])) for p in partitions],
            f"group {self._group}: where its topics begin",
        )

    def _start_offset(self, partition: TopicPartition, start: Start) -> int:
        if isinstance(start, datetime):
            at = TopicPartition(partition.topic, partition.partition, int(start.timestamp() * 1000))
            found = self._consumer.offsets_for_times([at], timeout=_TIMEOUT_S)[0]
            if found.error is not None:
                raise KafkaException(found.error)
            if found.offset >= 0:
                return int(found.offset)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=_TIMEOUT_S)
        return int(low if start == "earliest" else high)

    def _stored(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        def ask() -> list[TopicPartition]:
            stored = self._consumer.committed(list(partitions), timeout=_TIMEOUT_S)
            for partition in stored:
                if partition.error is not None:
                    raise KafkaException(partition.error)
            return stored

        return _patiently(ask, f"committed offsets of group {self._group}")

    # ── called by the client ───────────────────────────────────────────────────────────────────────────────────

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._trying = False
        if self._closing:
            return  # on its way out the client answers no questions, and nothing is begun any more
        stored = self._stored(partitions) if partitions else []
        without = [p for p in stored if p.offset < 0]
        starts = {(p.topic, p.partition): Mark(p.offset, p.metadata or "") for p in stored if p.offset >= 0}
        if without:
            topics = {p.topic for p in without}
            known_now = _patiently(self._listed, f"topics of group {self._group}")
            siblings = [
                TopicPartition(topic, number)
                for topic, numbers in known_now.items()
                for number in numbers
                if topic in topics
            ]
            known = {p.topic for p in self._stored(siblings) if p.offset >= 0}
            for partition in without:
                # a partition that is new to a topic that is known begins at its beginning
                start: Start = "earliest" if partition.topic in known else self._starts[partition.topic]
                offset = _patiently(
                    partial(self._start_offset, partition, start), f"{partition.topic} [{partition.partition}]"
                )
                starts[partition.topic, partition.partition] = Mark(offset)
        consumer.incremental_assign([TopicPartition(t, p, mark.offset) for (t, p), mark in starts.items()])
        if self._listener is not None:
            self._listener.assigned(starts)

    def _revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._listener is not None:
            self._listener.revoked([(p.topic, p.partition) for p in partitions])

    def _lose(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._listener is not None:
            self._listener.lost([(p.topic, p.partition) for p in partitions])

    def _committed(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            self._tell(translate(error, f"commit of group {self._group}"))

    def _reported(self, error: KafkaError) -> None:
        if self._trying and not_taken(error):
            return  # it comes with the next poll, too
        self._tell(translate(error, "connection"))

    def _heard(self, message: Message) -> bool:
        """Take an error that stands where a record could; False, as it is none."""
        error = message.error()
        assert error is not None
        if self._trying and not_taken(error):
            self._fall_back()
            return False
        where = f"{message.topic()} [{message.partition()}] of group {self._group}" if message.topic() else self._group
        translated = translate(error, where)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
            raise BrokerError(
                f"{where}: the committed offset is not there any more ({error.str()}): records may have been missed",
                remedy="see what retention deleted, then set the offset: pipeline consumer reset",
            )
        if error.fatal() or error.code() in _FINAL:
            raise translated
        self._tell(translated)
        return False

    def _tell(self, error: BrokerError) -> None:
        if self._listener is not None:
            self._listener.trouble(error)


_RECORD: Callable[..., Record] = tuple.__new__  # what NamedTuple's own constructor does, without its detour


def _patiently(ask: Callable[[], T], where: str) -> T:
    """Ask the broker until it answers. Raises BrokerError for what does not pass, or not soon enough."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except KafkaException as raised:
            error = translate(raised.args[0], where)
            if not error.retryable or time.monotonic() > deadline:
                raise error from raised
        time.sleep(_PAUSE_S)
