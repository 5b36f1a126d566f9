"""Committed outbox rows in, acknowledged Kafka records out.

At least once: a position is confirmed only after every record at or below it was acknowledged. The first copies of a
key's records are sent in commit order. Only a row that is wrong in itself goes to the DLQ; all else waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from pipeline.capture import Batch
from pipeline.errors import SourceError
from pipeline.metrics import Meter
from pipeline.relay.delivery import Delivery, Health, Keep, Producer

__all__ = ["Health", "Keep", "Producer", "Relay", "Source", "Stop"]

log = logging.getLogger(__name__)

_IDLE_S = 0.5  # how long to wait for rows when nothing is in flight
_BUSY_S = 0.002  # … and when acknowledgements are due
_FULL_S = 0.02  # how long to wait for room
_STANDBY_S = 1.0
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Source(Protocol):
    """Where rows come from. All may raise SourceError; retryable means that ``start`` can help."""

    def start(self) -> bool:
        """Begin, or go on behind the last batch handed out; False where another process is active."""

    def read(self, wait_s: float) -> Batch:
        """Return what has come, waiting at most ``wait_s``."""

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Take note that all up to ``position`` is acknowledged. Called at least every second, also with no news."""

    def close(self) -> None:
        """End."""


class Stop(Protocol):
    """Tells when to stop."""

    def is_set(self) -> bool:
        """Tell whether to stop."""


class Relay:
    """One connector's relay. ``run`` is its life.

    ``producers`` makes a new producer, at the start and after each failed delivery; ``keep`` stores what no topic
    takes; ``limit_bytes`` bounds what is in flight (one batch may go beyond it); ``drain_s`` how long to wait for
    acknowledgements when told to stop.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        producers: Callable[[], Producer],
        *,
        keep: Keep,
        meter: Meter,
        health: Health,
        limit_bytes: int = 8_000_000,
        drain_s: float = 25.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = name
        self._source = source
        self._delivery = Delivery(name, producers, keep=keep, meter=meter, health=health, clock=clock, now=now)
        self._meter = meter
        self._health = health
        self._limit_bytes = limit_bytes
        self._drain_s = drain_s
        self._clock = clock
        self._sleep = sleep
        self._reading = False
        self._open = False  # what was read last ends inside a transaction

    def run(self, stop: Stop, *, at_once: Stop | None = None) -> None:
        """Work until ``stop``, then drain, unless ``at_once``. Raises PipelineError where nothing but help helps."""
        failures = 0
        try:
            while not stop.is_set():
                try:
                    self._open = False
                    self._reading = self._source.start()
                    if self._reading:
                        failures = 0
                        self._active(1)
                        self._stream(stop)
                    else:
                        self._stand_by()
                        self._wait(_STANDBY_S, stop)
                except SourceError as error:
                    self._reading = False
                    if not error.retryable:
                        raise
                    self._health.not_ready("source", error.what)
                    log.warning(error.what, extra={"action": "relay.source_lost", "connector": self._name})
                    self._wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)], stop)
                    failures += 1
            self._drain(at_once)
        finally:
            self._delivery.close()
            self._source.close()

    def _stream(self, stop: Stop) -> None:
        delivery = self._delivery
        while not stop.is_set():
            batch = None
            if delivery.size < self._limit_bytes:
                batch = self._source.read(_BUSY_S if delivery.under_way else _IDLE_S)
                self._take(batch)
            delivery.serve(_FULL_S if batch is None else 0, hurry=batch is None or not batch.more)
            self._source.confirm(delivery.position)

    def _take(self, batch: Batch) -> None:
        self._open = batch.open
        if batch.records or batch.position:
            self._delivery.take(batch)

    def _active(self, active: int) -> None:
        self._meter.set("pipeline_relay_active", active, connector=self._name)
        self._health.ready("source", role="active" if active else "standby")
        self._health.ready("start")

    def _stand_by(self) -> None:
        """Another relay is active, and sends what is in flight here too."""
        self._delivery.drop()
        self._active(0)

    def _wait(self, wait_s: float, stop: Stop) -> None:
        """Let time pass, while acknowledgements are taken."""
        until = self._clock() + wait_s
        while not stop.is_set() and (left := until - self._clock()) > 0:
            if self._delivery.under_way:
                self._delivery.serve(min(left, 0.1), hurry=True)
            else:
                self._sleep(min(left, 0.1))

    def _drain(self, at_once: Stop | None) -> None:
        """Finish what is under way, and the transaction that is half read; where nothing is read nothing is owed."""
        until = self._clock() + self._drain_s
        log.info("draining", extra={"action": "relay.drain", "connector": self._name})
        if not self._reading:
            return
        try:
            while (
                (self._open or self._delivery.under_way)
                and self._clock() < until
                and not (at_once and at_once.is_set())
            ):
                if self._open and self._delivery.size < self._limit_bytes:
                    self._take(self._source.read(_FULL_S))
                self._delivery.serve(_FULL_S, hurry=True)
                self._source.confirm(self._delivery.position)
            self._source.confirm(self._delivery.position, final=True)
        except SourceError as error:
            log.warning(
                "the last position was not confirmed, some rows will come again: %s",
                error.what,
                extra={"action": "relay.unconfirmed", "connector": self._name},
            )
