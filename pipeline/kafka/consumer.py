"""A consumer group's records in, in batches as they come; offsets committed as told.

Nothing is committed by itself and no offset is ever reset: where a group begins is decided once and committed, so
that offsets that went missing are an error and not a silent skip. Only committed transactions are read. What may pass
by itself, a right that is missing among it, is waited for, and told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.definition import Start
from pipeline.errors import BrokerError, ConfigError
from pipeline.kafka.errors import Denied, misconfigured, translate
from pipeline.kafka.membership import CLASSIC, KIP_848, membership, not_taken
from pipeline.kafka.offsets import Offsets
from pipeline.progress import Mark
from pipeline.record import Record

__all__ = ["GroupConsumer"]

log = logging.getLogger(__name__)

_REJOIN_S = (1.0, 2.0, 5.0, 10.0)
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
_FINAL = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID})  # noqa: SLF001


Partition = tuple[str, int]


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

    ``group.protocol`` may be ``auto``, and is where it is left out: see ``pipeline.kafka.membership``. ``stopped``
    tells that the end was asked for: no question is asked again then.
    One thread only. The listener is called inside ``open``, ``poll``, ``commit`` and ``close``.
    """

    def __init__(
        self,
        options: Mapping[str, str | int | bool],
        group: str,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        for name, value in _GUARANTEES.items():
            if str(options.get(name, value)).lower() != str(value).lower():
                raise ConfigError(
                    f"consumer setting {name}={options[name]}", remedy=f"it must be {value}: leave it out"
                )
        self._group = group
        self._listener: Listener | None = None
        self._starts: dict[str, Start] = {}
        self._stopped = stopped
        self._said: BrokerError | None = None
        self._closing = False
        self._has: set[Partition] = set()
        self._denied: set[str] = set()
        self._over = False
        self._joined = False
        self._failures = 0
        self._again_at: float | None = None
        self._static = "group.instance.id" in options
        self._options = dict(options)
        wanted = membership(options)
        self._trying = wanted == "auto"
        self._become(CLASSIC if wanted == "classic" else KIP_848)

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group. Raises BrokerError: retryable where the broker does not answer, or denies a right, and this
        can be called again; not where a topic is missing.
        """  # fmt: skip
        self._starts = dict(topics)
        self._listener = listener
        self._said = None
        try:
            self._offsets.begin(self._starts)
        except BrokerError as error:
            if not error.retryable or isinstance(error, Denied):
                raise
            raise self._overheard(error) from error
        self._subscribe()

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """Return at most ``limit`` records, waiting for the first only. Raises BrokerError when it is over."""
        if self._again_at is not None and not self._again(wait_s):
            return []
        try:
            return self._polled(limit, wait_s)
        except KafkaException as raised:  # the client has failed for good
            error = translate(raised.args[0], f"group {self._group}")
            if not isinstance(error, Denied):
                raise error from raised
        except BrokerError as raised:
            if not raised.retryable or self._over:
                raise
            error = raised
        self._start_over(error)
        return []

    def _polled(self, limit: int, wait_s: float) -> list[Record]:
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(limit - 1, 0)] if limit > 1 else [first]
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
        if self._away:
            if wait:
                raise BrokerError(f"commit of group {self._group}: it is to be joined again first", retryable=True)
            return
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
        if self._away:
            return
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
        if not self._away:
            self._consumer.pause([TopicPartition(*partition) for partition in partitions])

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch these again."""
        if not self._away:
            self._consumer.resume([TopicPartition(*partition) for partition in partitions])

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """End offsets as the last fetches told them."""
        found: dict[Partition, int] = {}
        for partition in () if self._away else partitions:
            try:
                bounds = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            except KafkaException:  # not fetched yet
                continue
            if bounds and bounds[1] >= 0:
                found[partition] = bounds[1]
        return found

    def reachable(self) -> bool:
        """Ask whether the broker answers within half a second, and lets this group read its topics."""
        if self._away or (self._failures and not self._joined):
            return False
        denied = [TopicPartition(*partition) for partition in sorted(self._has) if partition[0] in self._denied]
        try:
            found = self._consumer.committed([TopicPartition(topic, 0) for topic in self._starts], timeout=0.5)
            if any(partition.error is not None for partition in found):
                return False
            if denied:  # asking needs DESCRIBE only, committing what is committed READ, as fetching does
                stored = [p for p in self._consumer.committed(denied, timeout=0.5) if p.offset >= 0]
                done = self._consumer.commit(offsets=stored, asynchronous=False)
                self._denied = {partition.topic for partition in done if partition.error is not None}
        except KafkaException:
            return False
        return not self._denied

    def _overheard(self, late: BrokerError) -> BrokerError:
        """Return what the client has to say of its connection, which is more than that an answer did not come."""
        with suppress(KafkaException):
            while (message := self._consumer.poll(0)) is not None:
                if (error := message.error()) is not None:
                    self._said = translate(error, f"group {self._group}")
        return self._said or late

    # ── membership ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _away(self) -> bool:
        """Whether its client was given up, is closed and takes no call, and it is not yet time for another one."""
        return self._again_at is not None

    def _become(self, protocol: Mapping[str, str]) -> None:
        """Make the client that is a member by this protocol."""
        self._protocol = protocol
        try:
            self._consumer = Consumer(
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
        self._offsets = Offsets(self._consumer, self._group, self._stopped)

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
        self._become(CLASSIC)
        self._subscribe()

    def _start_over(self, error: BrokerError) -> None:
        """Give up a client that cannot go on, for an error that may pass; join with another one in a while."""
        wait_s = _REJOIN_S[min(self._failures, len(_REJOIN_S) - 1)]
        self._failures += 1
        self._again_at = time.monotonic() + wait_s
        self._joined = False
        lost = sorted(self._has)
        self._has.clear()
        self._denied.clear()
        self._tell(error)
        if self._listener is not None and lost:
            self._listener.lost(lost)
        log.warning(
            f"group {self._group}: {error.what}; joining again in {wait_s:g} s",
            extra={"action": "consumer.rejoin", "group": self._group},
        )
        self._closing = True
        with suppress(KafkaException):
            self._consumer.close()
        self._closing = False

    def _again(self, wait_s: float) -> bool:
        """Join with another client when it is time; False while it is not."""
        assert self._again_at is not None
        if (left := self._again_at - time.monotonic()) > 0:
            time.sleep(min(left, wait_s))
            return False
        self._become(self._protocol)
        self._again_at = None
        self._subscribe()
        return True

    # ── called by the client ───────────────────────────────────────────────────────────────────────────────────

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._trying = False
        if self._closing:
            return  # on its way out the client answers no questions, and nothing is begun any more
        starts = self._offsets.of(partitions, self._starts) if partitions else {}
        consumer.incremental_assign([TopicPartition(t, p, mark.offset) for (t, p), mark in starts.items()])
        self._has.update(starts)
        self._joined, self._failures = True, 0
        if self._listener is not None:
            self._listener.assigned(starts)

    def _revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._listener is not None and self._again_at is None:
            self._listener.revoked([(p.topic, p.partition) for p in partitions])
        self._has -= {(p.topic, p.partition) for p in partitions}

    def _lose(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._has -= {(p.topic, p.partition) for p in partitions}
        if self._listener is not None and self._again_at is None:
            self._listener.lost([(p.topic, p.partition) for p in partitions])

    def _committed(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            self._tell(translate(error, f"commit of group {self._group}"))

    def _reported(self, error: KafkaError) -> None:
        if self._trying and not_taken(error):
            return  # it comes with the next poll, too
        self._said = translate(error, "connection")
        self._tell(self._said)

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
            self._over = not isinstance(translated, Denied)
            raise translated
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED and (topic := message.topic()):
            self._denied.add(topic)
        self._tell(translated)
        return False

    def _tell(self, error: BrokerError) -> None:
        if self._listener is not None:
            self._listener.trouble(error)


_RECORD: Callable[..., Record] = tuple.__new__  # what NamedTuple's own constructor does, without its detour
