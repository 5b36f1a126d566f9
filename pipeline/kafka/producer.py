"""Records in, acknowledgements out.

A record counts as acknowledged only when all in-sync replicas have it. Nothing expires: while the broker is away
records wait in the client. After a failed delivery a client sends nothing more (``enable.gapless.guarantee``), so that
no later record of a key can overtake the failed one; its owner closes it and resends with a new one.

An acknowledgement without an offset is a failed delivery. The client takes a later batch's success for a proof that an
earlier one is stored, which failed as far as it knows; a partition that has just been made accepts the later one alone.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer, murmur2

from pipeline.capture import Headers, Lost, Refused, Routed, identity
from pipeline.errors import BrokerError
from pipeline.kafka.errors import misconfigured, refuses_record, translate

__all__ = ["AckProducer", "Mark", "RecordProducer"]

log = logging.getLogger(__name__)
log.addFilter(lambda record: "CONFWARN" not in record.getMessage())  # that gapless is "experimental": known

_BASE: dict[str, str | int | bool] = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": 0,  # an expired message would be lost in silence
    "compression.type": "lz4",
    "message.max.bytes": 100_000_000,  # the broker decides what is too large; below its socket.request.max.bytes
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 2_097_151,  # whoever sends bounds the bytes in flight, one huge record included
}
_METADATA_MAX_AGE_S = 300.0  # as Java's metadata.max.age.ms
_METADATA_TIMEOUT_S = 2.0
_FLUSH_S = 0.001  # long enough for the client's threads to wake and ignore linger.ms
_FLUSH_EVERY_S = 0.003  # full batches at high rates: lingering ends at most this often …
_FATAL = (KafkaException, SystemError)
"""What calls into a client raise that has failed for good; SystemError where callbacks ran with that pending."""
_PLACELESS = KafkaError(KafkaError._FAIL, "acknowledged without an offset: it may be nowhere")  # noqa: SLF001
_PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # noqa: SLF001
_DROP_S = 1.0
_REPORTS_S = 1.0
_WINDOW_S = 0.05
_FEW = 200  # … unless there were so few records in the last window: then each leaves at once


class _Counter:
    """Sent and acknowledged records of one partition. Acknowledgements of a partition come in order."""

    __slots__ = ("acknowledged", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.acknowledged = 0


class Mark:
    """All that was sent before a moment."""

    __slots__ = ("_goals",)

    def __init__(self, goals: list[tuple[_Counter, int]]) -> None:
        self._goals = goals

    def acknowledged(self) -> bool:
        """Tell whether all of it was acknowledged."""
        goals = self._goals
        while goals:
            counter, sent = goals[-1]
            if counter.acknowledged < sent:
                return False
            goals.pop()
        return True


class RecordProducer:
    """Sends routed records, keys to the same partitions as Java's clients, and counts acknowledgements per partition.

    ``options`` are librdkafka settings, at least ``bootstrap.servers``; those that the guarantee needs stay as they
    are. ``on_error`` hears what the client reports about brokers. One thread only.
    """

    def __init__(
        self,
        options: Mapping[str, str | int | bool],
        *,
        on_error: Callable[[BrokerError], None] = lambda _error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trouble = ""
        self._on_error = on_error
        self._clock = clock
        self._counters: dict[str, list[_Counter]] = {}  # kept for late acknowledgements when a topic fails
        self._partitions: dict[str, list[_Counter]] = {}  # of topics that can be written, as far as is known
        self._known_at: dict[str, float] = {}
        self._next_refresh = clock() + _METADATA_MAX_AGE_S
        self._touched: set[_Counter] = set()
        self._unkeyed = 0
        self._failed: list[tuple[KafkaError, Message]] = []
        self._flushed_at = 0.0
        self._window_from = 0.0
        self._in_window = 0
        self._producer = _connect(
            {
                "linger.ms": 5,
                "batch.num.messages": 10_000,
                **options,
                "enable.gapless.guarantee": True,
                "on_delivery": self._delivered,
                "error_cb": self._reported,
            }
        )

    def send(self, records: Sequence[Routed], start: int) -> int:
        """Queue ``records[start:]`` as far as possible; return the index of the first one that was not queued.

        Raises, always about ``records[start]`` and with nothing queued: Refused where the client does not take that
        record, Lost where it takes none any more, BrokerError where the record's topic cannot be written now.
        """
        produce = self._producer.produce
        partitions = self._partitions
        touched = self._touched
        index = start
        end = len(records)
        try:
            while index < end:
                topic, key, value, headers, timestamp, chosen = records[index]
                counters = partitions.get(topic)
                if counters is None:
                    counters = self._look_up(topic)
                if chosen < 0:
                    chosen = murmur2(key, len(counters)) if key is not None else self._spread(len(counters))
                elif chosen >= len(counters):
                    raise Refused(
                        f"partition {chosen} of topic {topic!r}, which has {len(counters)}",
                        frozenset({identity(records[index])}),
                    )
                produce(topic, value, key, chosen, None, None, timestamp, headers)
                counter = counters[chosen]
                counter.sent += 1
                touched.add(counter)
                index += 1
            self._note_rate(end - start)
        except BufferError:
            return index
        except BrokerError:
            if index > start:
                return index
            raise
        except KafkaException as raised:
            if index > start:
                return index
            error = raised.args[0]
            if refuses_record(error):
                record = records[index]
                raise Refused(f"topic {record[0]}: {error.str()}", frozenset({identity(record)})) from raised
            self._partitions.pop(records[index][0], None)
            if error.code() == KafkaError._FATAL:  # noqa: SLF001 — the client's public codes look so
                raise _lost(raised) from raised
            raise translate(error, f"topic {records[index][0]}", right="WRITE") from raised
        return index

    def mark(self) -> Mark:
        """Return a mark for all that was sent so far and since the last mark."""
        goals = [(counter, counter.sent) for counter in self._touched]
        self._touched.clear()
        if self._clock() >= self._next_refresh:
            self._refresh()
        return Mark(goals)

    def poll(self, wait_s: float, *, hurry: bool) -> str:
        """Take acknowledgements, waiting at most ``wait_s`` for one; return what ails the client, "" where nothing.

        ``hurry`` says that nothing more comes just now, so what is queued leaves at once.
        Raises Refused or BrokerError when records were not delivered: then close, and resend with a new producer.
        """
        if hurry and self._in_window:
            now = self._clock()
            if self._in_window < _FEW or now - self._flushed_at >= _FLUSH_EVERY_S:
                self._flushed_at = now
                self._serve(lambda: self._producer.flush(_FLUSH_S))
        self._serve(lambda: self._producer.poll(wait_s))
        if self._failed:
            raise self._failure()
        return self._trouble

    def close(self) -> None:
        """Drop what was not acknowledged, and the connections."""
        _drop(self._producer)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None and message.offset() is not None:
            self._counters[message.topic()][message.partition()].acknowledged += 1  # type: ignore[index]  # both are set on a delivered message
            self._trouble = ""
        else:
            self._failed.append((error or _PLACELESS, message))

    def _serve(self, call: Callable[[], int]) -> None:
        """Call into the client. After a fatal error it gives back all records: wait a moment for the reports."""
        try:
            call()
        except _FATAL as raised:
            until = self._clock() + _REPORTS_S
            while not self._failed and self._clock() < until:
                with contextlib.suppress(*_FATAL):
                    self._producer.poll(0.05)
            if not self._failed:
                raise _lost(raised) from raised

    def _failure(self) -> BrokerError:
        refused = [(error, message) for error, message in self._failed if refuses_record(error)]
        if refused:
            records = frozenset((str(m.topic()), _bytes(m.key()), _bytes(m.value())) for _, m in refused)
            error, message = refused[0]
            return Refused(f"topic {message.topic()}: {error.str()}", records)
        error, message = self._failed[0]
        self._partitions.pop(str(message.topic()), None)
        return translate(error, f"topic {message.topic()}", right="WRITE")

    def _reported(self, error: KafkaError) -> None:
        translated = translate(error, "connection")
        self._trouble = translated.what
        self._on_error(translated)

    def _note_rate(self, count: int) -> None:
        now = self._clock()
        if now - self._window_from > _WINDOW_S:
            self._window_from, self._in_window = now, 0
        self._in_window += count

    def _spread(self, count: int) -> int:
        """Return the next partition for a record without key: a run of records each, so that batches fill."""
        self._unkeyed += 1
        return (self._unkeyed >> 7) % count

    def _look_up(self, topic: str) -> list[_Counter]:
        return self._set_count(topic, self._count(topic))

    def _set_count(self, topic: str, count: int) -> list[_Counter]:
        counters = self._counters.setdefault(topic, [])
        counters.extend(_Counter() for _ in range(count - len(counters)))
        found = self._partitions[topic] = counters[:count]
        return found

    def _count(self, topic: str) -> int:
        try:
            found = self._producer.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic]
        except KafkaException as raised:
            raise translate(raised.args[0], f"topic {topic}", right="WRITE") from raised
        if found.error is not None:
            raise translate(found.error, f"topic {topic}", right="WRITE")
        return len(found.partitions)

    def _refresh(self) -> None:
        """See whether topics have grown. A topic that cannot be asked about keeps what is known."""
        self._next_refresh = self._clock() + _METADATA_MAX_AGE_S
        for topic, counters in list(self._partitions.items()):
            try:
                count = self._count(topic)
            except BrokerError as error:
                self._on_error(error)
                return
            self._set_count(topic, max(count, len(counters)))


class AckProducer:
    """Sends single records and tells of each, by the token that came with it, when it was stored or failed.

    For retry and dead-letter topics and redrive. Keys go to the same partitions as with Java's clients. After a fatal
    error of the client all that was on its way has failed, and a new client takes its place. One thread only.
    """

    def __init__(
        self,
        options: Mapping[str, str | int | bool],
        *,
        on_error: Callable[[BrokerError], None] = lambda _error: None,
    ) -> None:
        self._settled: deque[tuple[object, BrokerError | None]] = deque()
        self._ended: BrokerError | None = None  # why the last client could not go on
        self._options: dict[str, object] = {
            "linger.ms": 1,
            "partitioner": "murmur2_random",
            **options,
            "error_cb": lambda error: on_error(translate(error, "connection")),
        }
        self._producer = _connect(self._options)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp_ms: int,
        token: object,
        *,
        partition: int = -1,
    ) -> None:
        """Queue one record; ``timestamp_ms`` 0 means now, ``partition`` -1 by key.

        Raises BrokerError: retryable where the queue is full or the topic unknown, else the record cannot be sent.
        """
        try:
            self._producer.produce(
                topic,
                value,
                key,
                partition,
                on_delivery=partial(self._delivered, token),
                timestamp=timestamp_ms,
                headers=headers,
            )
        except BufferError as raised:
            raise BrokerError(f"topic {topic}: the client's queue is full", retryable=True) from raised
        except KafkaException as raised:
            error = raised.args[0]
            if error.code() == KafkaError._FATAL:  # noqa: SLF001 — as above
                self._replace(raised)
                raise _lost(raised) from raised
            raise translate(error, f"topic {topic}", right="WRITE") from raised

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        """Return ``(token, error or None)`` of what was settled, waiting at most ``wait_s`` for the first."""
        try:
            self._producer.poll(wait_s)
        except _FATAL as raised:  # what was on its way is given back, as failed
            self._replace(raised)
        settled = []
        while self._settled:
            settled.append(self._settled.popleft())
        return settled

    def flush(self, wait_s: float) -> int:
        """Send what is queued at once, wait at most ``wait_s``; return how many records are not settled yet."""
        try:
            return self._producer.flush(wait_s)
        except _FATAL as raised:
            self._replace(raised)
            return len(self._producer)

    def close(self) -> None:
        """Drop what was not acknowledged, and the connections."""
        _drop(self._producer)

    def _replace(self, raised: Exception) -> None:
        self._ended = _lost(raised)
        _drop(self._producer)
        self._producer = _connect(self._options)

    def _delivered(self, token: object, error: KafkaError | None, message: Message) -> None:
        if error is None and message.offset() is None:
            error = _PLACELESS
        if error is not None and error.code() in _PURGED and self._ended is not None:
            self._settled.append((token, self._ended))
            return
        self._settled.append(
            (token, None if error is None else translate(error, f"topic {message.topic()}", right="WRITE"))
        )


def _connect(options: dict[str, object]) -> Producer:
    guarantee = {"message.timeout.ms": 0, "acks": "all", "enable.idempotence": True}
    try:
        return Producer({**_BASE, **options, **guarantee, "logger": log})
    except (KafkaException, ValueError, TypeError) as raised:
        raise misconfigured(raised, "producer") from raised


def _drop(producer: Producer) -> None:
    """Give back all that was not acknowledged: its reports come before this returns, in a second at most."""
    with contextlib.suppress(*_FATAL):
        producer.purge(in_queue=True, in_flight=True, blocking=True)
    until = time.monotonic() + _DROP_S
    while len(producer) and time.monotonic() < until:
        with contextlib.suppress(*_FATAL):
            producer.flush(0.1)


def _lost(raised: Exception) -> Lost:
    if isinstance(raised, KafkaException):
        found = translate(raised.args[0], "producer")
        return Lost(found.what, remedy=found.remedy, retryable=True)
    return Lost("Kafka: producer: it has failed for good", remedy="all is sent again by another one", retryable=True)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
