"""Batches of records in, the position up to which all of them were acknowledged out.

Batches are held in memory until they are acknowledged in full. After a failed delivery all that was not acknowledged
is sent again, in order, by a new producer, so that no record overtakes an earlier one of its key. Where a batch is
refused for what is in it, its records are sent one by one, and the one that fails alone goes to the DLQ; what not even
the DLQ takes is kept in a table first, and goes to the DLQ without its value.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.capture import Batch, Lost, Refused, Routed, dead_letter, identity, lsn_text
from pipeline.errors import BrokerError, PipelineError, SourceError
from pipeline.metrics import Meter

__all__ = ["Delivery", "Health", "Keep", "Mark", "Producer"]

log = logging.getLogger(__name__)

_STALLED_S = 10.0  # without an acknowledgement for so long: not ready
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Mark(Protocol):
    """All that a producer sent before a moment."""

    def acknowledged(self) -> bool:
        """Tell whether all of it was acknowledged."""


class Producer(Protocol):
    """Where records go."""

    def send(self, records: Sequence[Routed], start: int) -> int:
        """Queue ``records[start:]`` as far as possible; return the first index not queued.

        Raises Refused or BrokerError about ``records[start]``, with nothing queued.
        """

    def mark(self) -> Mark:
        """Return a mark for all that was sent since the last mark."""

    def poll(self, wait_s: float, *, hurry: bool) -> str:
        """Take acknowledgements; return what ails the client. Raises Refused or BrokerError after a failed delivery."""

    def close(self) -> None:
        """Drop what was not acknowledged."""


class Keep(Protocol):
    """Where a record goes that no topic takes."""

    def __call__(self, record: Routed, topic: str) -> None:
        """Store a record that was meant for ``topic``, once for each event and value. Raises SourceError."""


class Health(Protocol):
    """What the process says of itself."""

    def ready(self, part: str, *, role: str | None = None) -> None:
        """``part`` works."""

    def not_ready(self, part: str, why: str) -> None:
        """``part`` does not work."""


class _Flight:
    """A batch on its way. ``first``: not acknowledged from here on; ``next``: not sent from here on."""

    __slots__ = ("batch", "first", "mark", "next")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.first = self.next = 0
        self.mark: Mark | None = None


class Delivery:
    """What is on its way to the broker.

    ``producers`` makes a new producer, at the start and after each failed delivery. ``clock`` is monotonic, ``now``
    Unix time, both in seconds. ``position`` is what may be confirmed, 0 before anything; ``size`` the bytes held.
    """

    def __init__(
        self,
        name: str,
        producers: Callable[[], Producer],
        *,
        keep: Keep,
        meter: Meter,
        health: Health,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.position = 0
        self.size = 0
        self._name = name
        self._dlq = f"{name}.dlq"
        self._producers = producers
        self._producer = producers()
        self._keep = keep
        self._meter = meter
        self._health = health
        self._clock = clock
        self._now = now
        self._unsent: deque[_Flight] = deque()
        self._sent: deque[_Flight] = deque()
        self._suspects: set[tuple[str, bytes | None, bytes | None]] = set()
        self._barrier: Mark | None = None
        self._alone = False
        self._failures = 0
        self._held_until = 0.0
        self._progress_at = clock()
        self._stalled = False
        self._measured_at = 0.0

    @property
    def under_way(self) -> bool:
        """Tell whether anything is not acknowledged yet."""
        return bool(self._sent or self._unsent)

    def take(self, batch: Batch) -> None:
        """Accept a batch: it is sent at the next ``serve``."""
        if not self.under_way:
            self._progress_at = self._clock()  # nothing was owed: standby or idle, for however long
        for index, (error, lsn) in batch.dead.items():
            batch.records[index] = self._bury(batch.records[index], error.what, type(error).__name__, lsn)
        self.size += batch.size
        self._unsent.append(_Flight(batch))

    def serve(self, wait_s: float, *, hurry: bool) -> None:
        """Send what can be sent, take what was acknowledged, and see to failures."""
        try:
            self._serve(wait_s, hurry=hurry)
        except SourceError as error:  # of `keep`
            if not error.retryable:
                raise
            self._failed(error)

    def _serve(self, wait_s: float, *, hurry: bool) -> None:
        try:
            self._push()
            trouble = self._producer.poll(wait_s, hurry=hurry) if self._sent or self._unsent else ""
        except Refused as error:
            self._refused(error)
        except BrokerError as error:
            if not error.retryable:
                raise
            self._failed(error)
        else:
            self._settle(trouble)

    def drop(self) -> None:
        """Forget what is under way: it is another's business now."""
        if self.under_way:
            self._unsent.clear()
            self._sent.clear()
            self.size = 0
            self._suspects.clear()
            self._rewind()
        self.position = 0  # it may be of another server's WAL

    def close(self) -> None:
        """Drop what was not acknowledged, and the producer."""
        self._producer.close()

    def _push(self) -> None:
        if self._unsent and self._clock() >= self._held_until:
            while self._unsent:
                flight = self._unsent[0]
                if not self._send(flight):
                    return
                flight.mark = self._producer.mark()
                self._sent.append(self._unsent.popleft())

    def _send(self, flight: _Flight) -> bool:
        """Send a batch as far as possible; tell whether all of it was."""
        records = flight.batch.records
        while flight.next < len(records) or self._barrier is not None:
            try:
                if self._suspects or self._barrier is not None:
                    if not self._send_carefully(flight):
                        return False
                else:
                    sent = self._producer.send(records, flight.next)
                    if sent == flight.next:
                        return False
                    flight.next = sent
            except Refused as error:  # by the client itself: nothing of it is under way
                self._bury_at(flight, flight.next, error)
            except Lost:
                raise  # no wait mends this client
            except BrokerError as error:
                if not error.retryable:
                    raise
                self._hold(error)
                return False
        return True

    def _send_carefully(self, flight: _Flight) -> bool:
        """Send up to the next suspect; a suspect alone, when all before it is acknowledged and none behind is sent."""
        if self._barrier is not None:
            if self._sent or not self._barrier.acknowledged():
                return False
            self._barrier = None
            if self._alone:
                self._alone = False
                self._suspects.discard(identity(flight.batch.records[flight.next - 1]))
            flight.first = flight.next
            if (
                flight.next < len(flight.batch.records)
                and identity(flight.batch.records[flight.next]) in self._suspects
            ):
                flight.next += self._producer.send([flight.batch.records[flight.next]], 0)
                self._alone = True
                self._barrier = self._producer.mark()
            return True
        records = flight.batch.records
        end = next(
            (n for n in range(flight.next, len(records)) if identity(records[n]) in self._suspects), len(records)
        )
        if end > flight.next:
            flight.next += self._producer.send(records[flight.next : end], 0)
        if flight.next == end < len(records):
            self._barrier = self._producer.mark()
        return flight.next == end

    def _settle(self, trouble: str) -> None:
        """Take the acknowledged prefix out, and remember its position."""
        rows = 0
        last: Routed | None = None
        while self._sent and self._sent[0].mark is not None and self._sent[0].mark.acknowledged():
            batch = self._sent.popleft().batch
            self.size -= batch.size
            if batch.records:
                rows += len(batch.records)
                last = batch.records[-1]
            if batch.position is not None:
                self.position = batch.position
        if not self._sent and not self._unsent:
            self._suspects.clear()
        now = self._clock()
        if rows and last is not None:
            self._failures = 0
            self._meter.add("pipeline_relay_rows_total", rows, connector=self._name)
            age_s = max(0.0, self._now() - last[4] / 1000)
            self._meter.observe("pipeline_relay_outbox_age_seconds", age_s, connector=self._name)
        self._watch(trouble, now, progress=rows > 0 or not (self._sent or self._unsent))

    def _watch(self, trouble: str, now: float, *, progress: bool) -> None:
        """Say when nothing is acknowledged for long, and when that is over; measure each second."""
        if progress:
            self._progress_at = now
            if self._stalled:
                self._stalled = False
                self._health.ready("broker")
                log.info("records are acknowledged again", extra={"action": "relay.broker_back"})
        elif not self._stalled and now - self._progress_at > _STALLED_S:
            self._not_ready(trouble or f"nothing was acknowledged for {_STALLED_S:.0f} s")
        if now - self._measured_at >= 1:
            self._measured_at = now
            rows = sum(len(flight.batch.records) for flight in self._sent)
            self._meter.set("pipeline_relay_in_flight_rows", rows, connector=self._name)
            self._meter.set("pipeline_relay_in_flight_bytes", self.size, connector=self._name)

    def _refused(self, error: Refused) -> None:
        """A batch was refused for records in it: find out which, one by one; or the one sent alone is dead."""
        self._meter.add("pipeline_relay_errors_total", connector=self._name)
        if self._alone:
            flight = self._unsent[0]
            flight.first = flight.next - 1
            self._bury_at(flight, flight.first, error)
        else:
            self._suspects |= error.records
        self._rewind()

    def _failed(self, error: PipelineError) -> None:
        """A delivery failed for a reason that can pass: wait, and send all again that was not acknowledged."""
        self._meter.add("pipeline_relay_errors_total", connector=self._name)
        self._hold(error)
        self._rewind()

    def _hold(self, error: PipelineError) -> None:
        delay_s = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        self._held_until = self._clock() + delay_s
        self._not_ready(error.what)

    def _not_ready(self, why: str) -> None:
        if not self._stalled:
            log.warning(why, extra={"action": "relay.broker_waiting", "connector": self._name})
        self._stalled = True
        self._health.not_ready("broker", why)

    def _rewind(self) -> None:
        """Go back to the first record that was not acknowledged, with a new producer."""
        self._producer.close()
        self._producer = self._producers()
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        for flight in self._unsent:
            flight.next = flight.first
            flight.mark = None
        self._barrier = None
        self._alone = False

    def _bury_at(self, flight: _Flight, index: int, error: BrokerError) -> None:
        record = flight.batch.records[index]
        if record[0] == self._dlq:  # not even the DLQ takes it whole
            if record[2] is None:
                raise BrokerError(
                    f"{self._dlq} refuses a dead letter: {error.what}", remedy="raise its max.message.bytes"
                )
            told = dict(record[3])
            self._keep(record, str(told["__dlq.errors.topic"]))
            flight.batch.records[index] = self._without_value(record)
        else:
            flight.batch.records[index] = self._bury(record, error.what, type(error).__name__, flight.batch.lsn)

    def _without_value(self, record: Routed) -> Routed:
        topic, key, value, headers, timestamp, _ = record
        return (topic, key, None, [*headers, ("__dlq.errors.value.bytes", str(len(value or b"")))], timestamp, -1)

    def _bury(self, record: Routed, why: str, kind: str, lsn: int) -> Routed:
        self._meter.add("pipeline_relay_dead_total", connector=self._name)
        log.error(
            "a row cannot be published and goes to %s: %s",
            self._dlq,
            why,
            extra={"action": "relay.dead", "connector": self._name, "lsn": lsn_text(lsn)},
        )
        return dead_letter(self._dlq, record, kind=kind, message=why, lsn=lsn, now_ms=int(self._now() * 1000))
