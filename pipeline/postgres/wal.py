"""An outbox's write-ahead log in, batches of routed rows out; confirmed positions go back to the slot.

At least once: the server forgets a row only after ``confirm`` was called with a position at or past its commit, and
that position was stored. After a lost connection the stream goes on behind the last batch handed out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.capture import Batch, lsn_text
from pipeline.errors import SourceError
from pipeline.postgres.changes import Binding, Changes, Messages
from pipeline.postgres.checks import (
    check_not_older,
    check_publication,
    check_slot,
    check_tables,
    slot_gone,
    status_every_s,
)
from pipeline.postgres.position import Position, PositionStore, resume_at
from pipeline.postgres.publication import Mode, ensure
from pipeline.postgres.slot import Identity, ReplicationConnection, Slot, SlotBusy, drop_slot
from pipeline.postgres.snapshot import Snapshot, SnapshotSettings

__all__ = ["WalSettings", "WalSource"]

log = logging.getLogger(__name__)

_STREAM = {"proto_version": "2", "binary": "true", "streaming": "off"}
_BATCH_ROWS = 1000
_BATCH_BYTES = 1_000_000
_FLOOD_ROWS = 16  # a batch of so many: rows come faster than they are looked for …
_FLOOD_S = 0.001  # … so let them gather before the next look: a wake-up for each row costs more than the row
_STORE_EVERY_S = 0.25
_IDLE_STORE_S = 60.0  # an idle position is stored at most so often: storing writes WAL itself
_IDLE_STORE_BYTES = 16_000_000
_DROP_S = 5.0
_UNREAD_S = 1.0  # how often the server is told that this lives, while its frames are not read


@dataclass(frozen=True, slots=True)
class WalSettings:
    """What to read. ``wanted`` tells whether schema and table are captured.

    ``drops``: the slot, in the end. ``stream``: more parameters of START_REPLICATION.
    """

    slot: str
    publication: str
    wanted: Callable[[str, str], bool]
    wanted_text: str
    creates: Mode = "disabled"  # the publication
    by_root: bool = False
    failover: bool = False
    trust_slot: bool = False
    snapshot: SnapshotSettings | None = None
    drops: bool = False
    stream: Mapping[str, str] = field(default_factory=dict)
    status_every_s: float = 10.0
    liveness_s: float = 30.0


class WalSource:
    """The slot of one connector. One thread only."""

    def __init__(
        self,
        dsn: str,
        settings: WalSettings,
        bind: Binding,
        *,
        messages: Messages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dsn = dsn
        self._settings = settings
        self._bind = bind
        self._messages = messages
        self._clock = clock
        self._conn: ReplicationConnection | None = None
        self._store: PositionStore | None = None
        self._changes = Changes(bind, messages)
        self._server: Identity | None = None
        self._handed_out = 0  # end of the last transaction in a batch
        self._acknowledged = 0  # the newest position that may be confirmed
        self._storing = 0
        self._stored = 0
        self._told = 0
        self._stored_at = self._told_at = 0.0
        self._idle = 0  # acknowledged without a row since `_stored`: no hurry
        self._asked = False
        self._snapshot: Snapshot | None = None
        self._snapshotted = False
        self._flood = False
        self._status_every_s = settings.status_every_s

    @property
    def handed_out(self) -> int:
        """The LSN up to which all was handed out."""
        return self._handed_out

    def start(self) -> bool:
        """Connect and stream; False where another process reads the slot. Raises SourceError."""
        self.close()
        started = False
        try:
            started = self._start()
        finally:
            if not started:
                self.close()
        return started

    def read(self, wait_s: float) -> Batch:
        """Return what has come, waiting at most ``wait_s`` for the first of it; empty where nothing came.

        Raises SourceError, retryable where ``start`` can help.
        """
        conn = self._connection()
        batch = Batch(lsn=self._handed_out)
        if self._snapshot is not None:
            return self._read(self._snapshot, wait_s, batch)
        frames_of, feed = conn.frames, self._changes.feed
        records = batch.records
        size = 0
        received = waited = False
        while len(records) < _BATCH_ROWS and size < _BATCH_BYTES:
            frames = frames_of(_BATCH_ROWS - len(records), _BATCH_BYTES - size)
            if frames:
                for frame in frames:
                    if frame[0] == 119:  # 'w': XLogData
                        feed(frame, batch)
                        size += len(frame)
                    else:
                        self._keepalive(frame, batch)
                received = False
            elif received:  # nothing more on the socket just now
                if waited or size or batch.position:
                    break
                waited = True
                if self._flood:
                    time.sleep(min(_FLOOD_S, wait_s))
                if not conn.receive(wait_s):
                    break
            else:
                received = conn.receive(0)
        else:
            batch.more = True
        self._flood = len(records) >= _FLOOD_ROWS
        batch.more |= self._flood
        if size or batch.position:
            conn.heard()
        batch.size = size
        batch.open = self._changes.within
        if batch.position:
            self._handed_out = batch.position
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Take note that all up to ``position`` is acknowledged (0: nothing new), and answer the server.

        To be called at least every second. ``final`` waits until the position is stored and the server has it, and
        ends the stream.
        Raises SourceError.
        """
        now = self._clock()
        conn, store = self._connection(), self._store
        if store is None or self._server is None:
            return
        self._acknowledged = max(self._acknowledged, position)
        self._write(store, self._server, now, final=final)
        while final and self._storing:  # this one, and then a newer one
            time.sleep(0.001)
            self._write(store, self._server, now, final=True)
        every_s = self._status_every_s
        if self._snapshot is not None:
            every_s = min(every_s, _UNREAD_S)
        if self._stored > self._told or self._asked or now - self._told_at >= every_s or final:
            self._told = max(self._told, self._stored)
            conn.confirm(self._told)
            self._told_at = now
            self._asked = False
        if final:
            conn.end()
            if self._settings.drops:
                self._drop(store, self._server)

    def _drop(self, store: PositionStore, server: Identity) -> None:
        """Remove the slot, unless another relay has taken it over meanwhile."""
        store.reset(server)
        self.close()
        name = self._settings.slot
        try:
            drop_slot(self._dsn, name, within_s=_DROP_S, clock=self._clock)
            log.info("slot %s is dropped", name, extra={"action": "slot.drop", "slot": name})
        except SourceError as error:
            log.warning("%s", error.what, extra={"action": "slot.not_dropped", "slot": name})

    def close(self) -> None:
        """End the stream and all connections."""
        if self._conn is not None:
            self._conn.close()
        if self._store is not None:
            self._store.close()
        if self._snapshot is not None:
            self._snapshot.close()
        self._conn = self._store = self._snapshot = None

    def _start(self) -> bool:
        settings = self._settings
        conn = self._conn = ReplicationConnection(self._dsn, liveness_s=settings.liveness_s, clock=self._clock)
        server = conn.identify()
        check_not_older(server, self._server)
        slot = conn.slot(settings.slot)
        if not (slot and slot.active):
            ensure(conn, settings.publication, settings.creates, settings.wanted, by_root=settings.by_root)
        check_publication(conn, settings.publication)  # a standby too
        if self._messages is None:
            check_tables(conn, settings.publication, settings.wanted, settings.wanted_text)
        if slot and slot.active:
            return self._begin_anew()
        self._store = PositionStore(self._dsn, settings.slot)
        stored = self._store.load()
        if missing := self._missing(stored, slot, server):
            if self._server:
                self._server = None
                return self._begin_anew()
            slot, stored = self._recover(conn, slot, missing), None
            self._store.reset(server)
        slot = slot or self._create(conn, stored, server)
        check_slot(slot, conn)
        self._status_every_s = status_every_s(conn, settings.status_every_s)
        after, warning = resume_at(stored, slot, server, trust_slot=settings.trust_slot)
        if self._server and (server.system_id, server.timeline) != (self._server.system_id, self._server.timeline):
            self._server = None  # LSNs of another WAL: what is under way is dropped, and all begins from what is stored
            return self._begin_anew()
        if self._server:
            after, warning = max(after, self._handed_out), ""
        else:
            self._acknowledged = after
        self._handed_out = after
        snapshot = self._snapshot is not None or self._wants_snapshot(stored)
        try:
            conn.start(settings.slot, settings.publication, after, self._options())
        except SlotBusy:
            return self._begin_anew()
        if snapshot:
            self._acknowledged = 0  # until the snapshot is published too
            self._snapshot = self._snapshot or self._of_now()
        if warning:
            log.warning(warning, extra={"action": "slot.position", "slot": settings.slot})
        log.info(
            "reading slot %s after %s", settings.slot, lsn_text(after), extra={"action": "slot.read", "slot": slot.name}
        )
        self._server = server
        self._changes = Changes(self._bind, self._messages)
        same_wal = stored is not None and (stored.system_id, stored.timeline) == (server.system_id, server.timeline)
        self._stored = stored.lsn if stored and same_wal else after if stored else 0
        self._storing = 0
        self._told = slot.confirmed
        return True

    def _options(self) -> dict[str, str]:
        """Return the parameters of the stream."""
        return {**_STREAM, "messages": "false" if self._messages is None else "true", **self._settings.stream}

    def _begin_anew(self) -> bool:
        """Forget what was handed out: the caller drops what of it was not acknowledged. Returns False."""
        self._handed_out = 0
        self._snapshotted = False
        return False

    def _check_store(self, now: float) -> None:
        """Give up on a write that gets no answer: the slot would hold back WAL, and nobody be told."""
        if self._storing and now - self._stored_at > self._settings.liveness_s:
            raise SourceError(
                f"PostgreSQL: the relay's position was not stored within {self._settings.liveness_s:.0f} s",
                remedy="is the connection cut?",
                retryable=True,
            )

    def _write(self, store: PositionStore, server: Identity, now: float, *, final: bool) -> None:
        """See whether a position was written, and begin with the next one when it is time, or at once if ``final``."""
        if self._storing and store.done():
            self._stored, self._storing = self._storing, 0
        self._check_store(self._clock())
        if not self._storing and self._acknowledged > self._stored and (final or self._due(now)):
            self._storing, self._stored_at = self._acknowledged, now
            store.begin(Position(server.system_id, server.timeline, self._storing))

    def _due(self, now: float) -> bool:
        """Tell whether to store now: at once after rows, seldom while idle."""
        if self._acknowledged > self._idle:
            return now - self._stored_at >= _STORE_EVERY_S
        return (
            self._asked
            or now - self._stored_at >= _IDLE_STORE_S
            or self._acknowledged - self._stored >= _IDLE_STORE_BYTES
        )

    def _keepalive(self, frame: bytes, batch: Batch) -> None:
        """Take the end of the server's WAL as a position, unless a transaction is under way."""
        self._connection().heard()
        end = int.from_bytes(frame[1:9], "big")
        if frame[17]:
            self._asked = True
        if not self._changes.within and end > max(self._handed_out, batch.position or 0):
            if not batch.records and batch.position is None and self._handed_out <= max(self._idle, self._stored):
                self._idle = end
            batch.position = end

    def _connection(self) -> ReplicationConnection:
        if self._conn is None:
            raise SourceError("PostgreSQL: not connected", retryable=True)
        return self._conn

    def _create(self, conn: ReplicationConnection, stored: Position | None, server: Identity) -> Slot:
        settings = self._settings
        if stored is not None:
            raise slot_gone(settings.slot, stored, server)
        log.info("creating slot %s", settings.slot, extra={"action": "slot.create", "slot": settings.slot})
        if settings.snapshot is None:
            conn.create_slot(settings.slot, failover=settings.failover)
        else:
            exported = conn.export_slot(settings.slot, failover=settings.failover)
            self._snapshot = Snapshot(self._dsn, settings.snapshot, self._bind, exported=exported, clock=self._clock)
            log.info("snapshot of what the slot does not have", extra={"action": "snapshot.begin"})
        made = conn.slot(settings.slot)
        if made is None:
            raise SourceError(
                f"slot {settings.slot} vanished while it was created",
                remedy="who drops slots here? it is tried again",
                retryable=True,
            )
        return made

    def _wants_snapshot(self, stored: Position | None) -> bool:
        """Tell whether to take one where the slot was there before."""
        settings = self._settings.snapshot
        return settings is not None and not self._snapshotted and (stored is None or settings.when == "always")

    def _of_now(self) -> Snapshot:
        """Take a snapshot of now. The slot is held already, so whatever commits later comes by the stream."""
        assert self._settings.snapshot is not None
        log.info(
            "snapshot of now: rows that committed since the slot's position come twice",
            extra={"action": "snapshot.begin"},
        )
        return Snapshot(self._dsn, self._settings.snapshot, self._bind, clock=self._clock)

    def _read(self, snapshot: Snapshot, wait_s: float, batch: Batch) -> Batch:
        """Return rows of the snapshot; behind the last one the position where the stream begins."""
        if not snapshot.read(wait_s, batch):
            batch.position = self._handed_out
            log.info("snapshot is read: %d rows", snapshot.count, extra={"action": "snapshot.end"})
            snapshot.close()
            self._snapshot, self._snapshotted = None, True
            self._connection().heard()
        return batch

    def _missing(self, stored: Position | None, slot: Slot | None, server: Identity) -> str:
        """Tell why rows may be missing behind the stored position, where a snapshot is to bring them; else ""."""
        if stored is None or self._settings.snapshot is None or not self._settings.snapshot.repairs:
            return ""
        if slot is None:
            return f"slot {self._settings.slot} is gone"
        if slot.wal_status == "lost":
            return f"slot {slot.name} is lost"
        try:
            resume_at(stored, slot, server, trust_slot=self._settings.trust_slot)
        except SourceError as error:
            return error.what
        return ""

    def _recover(self, conn: ReplicationConnection, slot: Slot | None, why: str) -> Slot | None:
        """Begin anew, with a snapshot; a slot that can never be read again is dropped."""
        log.warning("%s: a snapshot is needed", why, extra={"action": "snapshot.needed", "slot": self._settings.slot})
        if slot and slot.wal_status == "lost":
            conn.drop_slot(slot.name)
            return None
        return slot
