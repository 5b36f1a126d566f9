"""Heartbeats in, stored where people look at them, out: now and then, and none when the worker has ended.

It is not what a worker is for: one that cannot be stored is dropped, counted, and said once. Nothing waits for it, but
the last one for a moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from pipeline.errors import BrokerError
from pipeline.metrics import Meter

__all__ = ["BeatTopic", "Beats"]

log = logging.getLogger("pipeline.worker")

_LAST_S = 2.0


class BeatTopic(Protocol):
    """Where heartbeats go: ``pipeline.kafka.beats.BeatProducer``. Only ``poll`` may wait."""

    def send(self, key: bytes, value: bytes | None) -> None:
        """Queue one. Raises BrokerError."""

    def poll(self, wait_s: float) -> list[BrokerError | None]:
        """Return what became of those that were queued: the error, or None."""

    def close(self) -> None:
        """Drop what is queued."""


class Beats:
    """The heartbeats of one worker process. ``say`` gives the value that is true now. One thread only."""

    def __init__(
        self,
        connect: Callable[[], BeatTopic],
        key: bytes,
        say: Callable[[], bytes],
        *,
        every_s: float,
        meter: Meter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._key = key
        self._say = say
        self._every_s = every_s
        self._meter = meter
        self._clock = clock
        self._topic: BeatTopic | None = None
        self._next = clock()
        self._open = 0
        self._failing = False

    def step(self) -> None:
        """Send one where it is due. Call it often; it never waits."""
        self._look(0)
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._every_s
        if not self._open:  # the one before has its time, and is dropped when that is over
            self._send(self._say())

    def end(self, *, gone: bool) -> None:
        """Send no more; with ``gone`` let nothing be left of this worker. Waits for a moment at most."""
        if self._topic is None:
            return
        if gone:
            self._send(None)
        until = self._clock() + _LAST_S
        while gone and self._open and (left_s := until - self._clock()) > 0:
            self._look(left_s)
        self._topic.close()

    def _send(self, value: bytes | None) -> None:
        try:
            if self._topic is None:
                self._topic = self._connect()
            self._topic.send(self._key, value)
            self._open += 1
        except BrokerError as error:
            self._lost(error)

    def _look(self, wait_s: float) -> None:
        if self._topic is None or not self._open:
            return
        for error in self._topic.poll(wait_s):
            self._open -= 1
            if error is not None:
                self._lost(error)
            elif self._failing:
                self._failing = False
                log.info("heartbeats are stored again", extra={"action": "worker.beats_back"})

    def _lost(self, error: BrokerError) -> None:
        self._meter.add("pipeline_worker_beats_lost_total")
        if not self._failing:
            log.warning(
                "heartbeats cannot be stored; handlers go on, and nobody sees this worker from outside",
                extra={"action": "worker.beats", "why": error.what, "remedy": error.remedy},
            )
        self._failing = True
