"""Batches of records in, the same with a heartbeat record among them now and then out, also where nothing comes.

A heartbeat says that the relay reads and sends: rows that wait for a schema come behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.capture import Batch, Routed, weight
from pipeline.relay.encoding import Source

__all__ = ["BeatingSource"]


class BeatingSource:
    """A source with heartbeats, each ``every_s`` seconds at most, none inside a transaction."""

    def __init__(
        self,
        source: Source,
        beat: Callable[[], Routed],
        every_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._beat = beat
        self._every_s = every_s
        self._clock = clock
        self._next = clock() + every_s
        self.start = source.start
        self.confirm = source.confirm
        self.close = source.close

    def read(self, wait_s: float) -> Batch:
        """Return what has come, and a heartbeat behind it where one is due."""
        batch = self._source.read(min(wait_s, max(self._next - self._clock(), 0)))
        if self._clock() >= self._next and not batch.open:
            self._next = self._clock() + self._every_s
            record = self._beat()
            batch.records.append(record)
            batch.size += weight(record)
        return batch
