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
from pipeline.relay.delivery import Delivery, Health, Producer

__all__ = ["Health", "Producer", "Relay", "Source", "Stop"]

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

    ``producers`` makes a new producer, at the start and after each failed delivery; ``limit_bytes`` bounds what is in
    flight (one batch may go beyond it); ``drain_s`` how long to wait for acknowledgements when told to stop.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        producers: Callable[[], Producer],
        *,
        meter: Meter,
        health: Health,
        limit_bytes: int = 24_000_000,
        drain_s: float = 25.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = name
        self._source = source
        self._delivery = Delivery(name, producers, meter=meter, health=health, clock=clock, now=now)
        self._meter = meter
        self._health = health
        self._limit_bytes = limit_bytes
        self._drain_s = drain_s
        self._clock = clock
        self._sleep = sleep

    def run(self, stop: Stop, *, at_once: Stop | None = None) -> None:
        """Work until ``stop``, then drain, unless ``at_once``. Raises PipelineError where nothing but help helps."""
        failures = 0
        try:
            while not stop.is_set():
                try:
                    if self._source.start():
                        failures = 0
                        self._active(1)
                        self._stream(stop)
                    else:
                        self._stand_by()
                        self._wait(_STANDBY_S, stop)
                except SourceError as error:
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
                if batch.records or batch.position:
                    delivery.take(batch)
            delivery.serve(_FULL_S if batch is None else 0, hurry=batch is None or not batch.more)
            self._source.confirm(delivery.position)

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
        until = self._clock() + self._drain_s
        log.info("draining", extra={"action": "relay.drain", "connector": self._name})
        while self._delivery.under_way and self._clock() < until and not (at_once and at_once.is_set()):
            self._delivery.serve(0.02, hurry=True)
        try:
            self._source.confirm(self._delivery.position, final=True)
        except SourceError as error:
            log.warning(
                "the last position was not confirmed, some rows will come again: %s",
                error.what,
                extra={"action": "relay.unconfirmed", "connector": self._name},
            )
