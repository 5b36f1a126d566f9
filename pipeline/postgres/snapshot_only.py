"""Captured tables as they are now in, batches of routed rows out, and then nothing more: no slot, no stream.

That it was published whole is stored beside the positions of slots, under a name that no slot can have, so it is done
once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipeline.capture import Batch
from pipeline.errors import SourceError
from pipeline.postgres.changes import Binding
from pipeline.postgres.position import Position, PositionStore
from pipeline.postgres.slot import Connection, Identity, ReplicationConnection, quoted
from pipeline.postgres.snapshot import Snapshot, SnapshotSettings

__all__ = ["SnapshotOnly", "stored_as"]

log = logging.getLogger(__name__)

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('pipeline.snapshot ' || {}, 0))"
_STORE_S = 10.0


def stored_as(slot: str) -> str:
    """Return the key of ``pipeline.relay_position`` where the file of ``slot`` has its end."""
    return f"snapshot:{slot}"


class SnapshotOnly:
    """The source of a connector with ``snapshot.mode=initial_only``. One process is active, by an advisory lock."""

    def __init__(
        self,
        dsn: str,
        slot: str,
        settings: SnapshotSettings,
        bind: Binding,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._dsn = dsn
        self._slot = slot
        self._settings = settings
        self._bind = bind
        self._clock = clock
        self._sleep = sleep
        self._lock: Connection | None = None
        self._store: PositionStore | None = None
        self._server: Identity | None = None
        self._snapshot: Snapshot | None = None
        self._end = 0  # the position to store; 0: nothing is left to do
        self._done = False

    def start(self) -> bool:
        """Take the snapshot, unless that was done; False where another process does. Raises SourceError."""
        self.close()
        self._lock = Connection(self._dsn)
        if self._lock.rows(_LOCK.format(quoted(self._slot)))[0][0] != "t":
            self.close()
            return False
        conn = ReplicationConnection(self._dsn)
        try:
            self._server = conn.identify()
        finally:
            conn.close()
        self._store = PositionStore(self._dsn, stored_as(self._slot))
        if self._store.load() is None or (self._settings.when == "always" and not self._done):
            self._snapshot = Snapshot(self._dsn, self._settings, self._bind, clock=self._clock)
            self._end = self._snapshot.lsn
            log.info("snapshot of now", extra={"action": "snapshot.begin"})
        else:
            log.info(
                "the snapshot was published before: nothing is left to do",
                extra={"action": "snapshot.done", "slot": self._slot},
            )
        return True

    def read(self, wait_s: float) -> Batch:
        """Return what has come of it, waiting at most ``wait_s``."""
        batch = Batch(lsn=self._end)
        if self._snapshot is None:
            self._sleep(wait_s)
        elif not self._snapshot.read(wait_s, batch):
            batch.position = self._end
            log.info("snapshot is read: %d rows", self._snapshot.count, extra={"action": "snapshot.end"})
            self._snapshot.close()
            self._snapshot = None
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Store that all of it is acknowledged, once it is. Raises SourceError."""
        del final  # stored at once
        if not self._end or position < self._end or self._store is None or self._server is None:
            return
        self._store.begin(Position(self._server.system_id, self._server.timeline, self._end))
        until = self._clock() + _STORE_S
        while not self._store.done():
            if self._clock() > until:
                raise SourceError("PostgreSQL: the end of the snapshot was not stored", retryable=True)
            self._sleep(0.001)
        self._end, self._done = 0, True
        log.info("the snapshot is published", extra={"action": "snapshot.done", "slot": self._slot})

    def close(self) -> None:
        """End all connections."""
        for one in (self._lock, self._store, self._snapshot):
            if one is not None:
                one.close()
        self._lock = self._store = self._snapshot = None
        self._end = 0
