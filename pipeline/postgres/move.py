"""A table captured in one way in, the place where the other way goes on out; while it is moved it is read on.

Nothing is lost: polling begins at a snapshot of which the slot was read past the end, and a slot is read from where it
was made once polling has passed the snapshot of that moment. What commits in between comes twice. A row of
``pipeline.poll_position`` counts wherever there is one, so a move that is cut off begins again. A slot is made and
dropped by who holds the pollers' lock, and dropped only where ``pipeline.relay_position`` says that it is a relay's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from pipeline.capture import Batch, lsn_text
from pipeline.errors import PipelineError, SourceError
from pipeline.postgres import poll_position
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.poll_position import Elsewhere, Line, Reached
from pipeline.postgres.polling import PollingSource, Prepare
from pipeline.postgres.slot import ReplicationConnection, SlotBusy, drop_slot
from pipeline.postgres.wal import WalSource

__all__ = ["ToPolling", "ToWal", "settle"]

log = logging.getLogger(__name__)

_DROP_S = 5.0
_LOCK_S = 2.0


class _Point(NamedTuple):
    """A snapshot, and a place in the WAL behind all that it sees; of which server."""

    snapshot: str
    lsn: int
    line: Line


class ToPolling:
    """A slot's stream, from which a relay goes over to polling. ``done`` says when it may end, ``finish`` moves."""

    def __init__(self, dsn: str, slot: str, source: WalSource) -> None:
        self._dsn = dsn
        self._slot = slot
        self._source = source
        self._point: _Point | None = None
        self.read = source.read
        self.confirm = source.confirm
        self.close = source.close

    @property
    def done(self) -> bool:
        """Tell whether all that the snapshot sees was handed out."""
        return self._point is not None and self._source.handed_out >= self._point.lsn

    def start(self) -> bool:
        """Stream, and take the snapshot as late as can be. False where another reads the slot. Raises SourceError."""
        active = self._source.start()
        if not active:
            self._point = None
        elif self._point is None:
            with _connected(self._dsn) as conn:
                self._point = _point(conn)
            log.info(
                "moving from slot %s to polling at %s", self._slot, lsn_text(self._point.lsn),
                extra={"action": "move.begin", "slot": self._slot},
            )  # fmt: skip
        return active

    def finish(self) -> bool:
        """Store the snapshot as what was published, and drop the slot. False: another was quicker, or not all is.

        Raises SourceError.
        """
        if self._point is None:
            return False
        with _connected(self._dsn) as conn:
            past = conn.execute(_PASSED, {"slot": self._slot, "lsn": lsn_text(self._point.lsn)}).fetchone()
            if past is None or poll_position.line(conn) != self._point.line:
                return False
            if not _lock(conn, self._slot) or poll_position.load(conn, self._slot) is not None:
                return False
            poll_position.begin(conn, self._slot, self._point.snapshot)
            try:
                _drop(conn, self._dsn, self._slot)
            except SlotBusy:  # a relay by the WAL that stood by: it goes on
                poll_position.forget(conn, self._slot)
                return False
        log.info("slot %s is dropped: polling", self._slot, extra={"action": "move.end", "slot": self._slot})
        return True

    def abandon(self) -> None:
        """Leave it as it is: the slot is where it was."""


class ToWal:
    """A table that is polled until a slot takes over. ``done`` says when polling may end, ``finish`` moves.

    ``source`` makes the poller, of what it has to do once it holds the lock; ``failover`` is of the slot.
    """

    def __init__(
        self,
        dsn: str,
        slot: str,
        source: Callable[[Prepare], PollingSource],
        *,
        failover: bool,
    ) -> None:
        self._dsn = dsn
        self._slot = slot
        self._failover = failover
        self._source = source(self._prepare)
        self._made: _Made | None = None
        self.confirm = self._source.confirm
        self.close = self._source.close

    @property
    def done(self) -> bool:
        """Tell whether all that is not in the slot was handed out."""
        snapshot = "" if self._made is None else self._made.snapshot
        return bool(snapshot) and poll_position.covers(self._source.taken, snapshot)

    def start(self) -> bool:
        """Poll, while the slot is made. False where another polls. Raises SourceError."""
        active = self._source.start()
        if not active:
            self._made = None
        elif self._made is None:
            self._made = _Made(self._dsn, self._slot, failover=self._failover)
        return active

    def read(self, wait_s: float) -> Batch:
        """Return the next rows. Raises SourceError, also where the slot cannot be made."""
        if self._made is not None and self._made.error is not None:
            error, self._made = self._made.error, None
            raise error
        return self._source.read(wait_s)

    def finish(self) -> bool:
        """Let the slot count from now on. False: another was quicker, or not all is published. Raises SourceError."""
        made = self._made
        if made is None or not self.done:
            return False
        with _connected(self._dsn) as conn:
            if not _lock(conn, self._slot):
                return False
            stored = poll_position.load(conn, self._slot)
            if stored is None or not poll_position.covers(stored.taken, made.snapshot):
                return False
            with conn.transaction():
                if conn.execute(_TAKE_OVER, {"slot": self._slot, "lsn": lsn_text(made.lsn)}).rowcount != 1:
                    return False
                poll_position.forget(conn, self._slot)
        log.info("polling ends: slot %s", self._slot, extra={"action": "move.end", "slot": self._slot})
        return True

    def abandon(self) -> None:
        """Drop the slot that was made, or is being made. Raises SourceError."""
        if self._made is None:
            return
        with _connected(self._dsn) as conn:
            if _lock(conn, self._slot) and poll_position.load(conn, self._slot) is not None:
                if not self._made.snapshot:  # a server that waits does not see that nobody waits for it
                    conn.execute(_END, (self._slot,))
                _drop(conn, self._dsn, self._slot)

    def _prepare(self, conn: psycopg.Connection[Any], stored: Reached | None) -> bool:
        if self._made is not None:
            return True
        if stored is None:
            raise Elsewhere(f"slot {self._slot}: another relay has moved it meanwhile")
        row = conn.execute(_STATE, (self._slot,)).fetchone()
        assert row is not None
        position, slot, _ = row
        if slot and position is None:
            raise SourceError(
                f"slot {self._slot} is there, and so is a position of polling: only one of them can be how far the "
                "table is published",
                remedy=f"SELECT pg_drop_replication_slot('{self._slot}'), where the table was polled last; where the "
                f"slot was read last, by Debezium say, delete the row '{self._slot}' of pipeline.poll_position",
            )
        if not settle(self._dsn, self._slot, conn, stored):
            return False
        conn.execute(_MARK, (self._slot, *poll_position.line(conn)))
        log.info(
            "moving from polling to slot %s, which is made once transactions of before have ended", self._slot,
            extra={"action": "move.begin", "slot": self._slot},
        )  # fmt: skip
        return True


class _Made:
    """A slot that is being made, by a thread: the server waits for the end of all transactions that write.

    ``snapshot`` sees all that the slot does not have, and none of what it has; "" until there is one. ``lsn`` is where
    the slot begins.
    """

    def __init__(self, dsn: str, slot: str, *, failover: bool) -> None:
        self.snapshot = ""
        self.lsn = 0
        self.error: PipelineError | None = None
        threading.Thread(target=self._run, args=(dsn, slot, failover), name="make-slot", daemon=True).start()

    def _run(self, dsn: str, slot: str, failover: bool) -> None:
        try:
            conn = ReplicationConnection(dsn)
            try:
                exported = conn.export_slot(slot, failover=failover)
                snapshot = _seen(dsn, exported)
                found = conn.slot(slot)
            finally:
                conn.close()
        except PipelineError as error:
            self.error = error
            return
        if found is None:
            self.error = SourceError(f"slot {slot} vanished while it was made", retryable=True)
            return
        self.lsn = found.confirmed
        self.snapshot = snapshot


def settle(dsn: str, slot: str, conn: psycopg.Connection[Any], stored: Reached | None) -> bool:
    """See to what a move left, before a table is polled, under the lock; False while somebody reads the slot.

    Raises Elsewhere where the table is to be moved first, SourceError where rows may be missing; psycopg.Error.
    """
    row = conn.execute(_STATE, (slot,)).fetchone()
    assert row is not None
    position, there, active = row
    if stored is not None:
        if position is None:
            return True  # a slot of this name is somebody else's
        if active:
            return False
        try:
            _drop(conn, dsn, slot)
        except SlotBusy:
            return False
        return True
    if there:
        raise Elsewhere(f"slot {slot} was read until now")
    if position == "":
        _drop(conn, dsn, slot)
    elif position:
        raise SourceError(
            f"slot {slot} is gone, but rows up to {position} were published from it",
            remedy="rows committed since then may be missing on the topics: delete the row "
            f"'{slot}' of pipeline.relay_position, start again, which polls what commits from then on, and publish "
            "what is missing: pipeline connector reconcile FILE --execute",
        )
    return True


def _lock(conn: psycopg.Connection[Any], slot: str) -> bool:
    """Take the pollers' lock, which the session of before has for as long as the server does not see that it ended."""
    until = time.monotonic() + _LOCK_S
    while not poll_position.try_lock(conn, slot):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _drop(conn: psycopg.Connection[Any], dsn: str, slot: str) -> None:
    """Drop a relay's slot, where there is one, and forget its position. Raises SlotBusy, SourceError; psycopg.Error."""
    row = conn.execute(_STATE, (slot,)).fetchone()
    assert row is not None
    if row[0] is None:
        return
    if row[1]:
        drop_slot(dsn, slot, within_s=_DROP_S)
    conn.execute("DELETE FROM pipeline.relay_position WHERE slot = %s", (slot,))


def _point(conn: psycopg.Connection[Any]) -> _Point:
    """Take a snapshot and then, in a statement of its own, the end of the WAL, and let there be WAL behind it."""
    snapshot = conn.execute("SELECT pg_current_snapshot()::text").fetchone()
    lsn = conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    conn.execute("SELECT pg_current_xact_id()")  # its commit is a record behind that end, so the slot gets there
    assert snapshot is not None
    assert lsn is not None
    return _Point(str(snapshot[0]), int(lsn[0]), poll_position.line(conn))


def _seen(dsn: str, exported: str) -> str:
    """Return what an exported snapshot sees, as a pg_snapshot."""
    with _connected(dsn) as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute(f"SET TRANSACTION SNAPSHOT '{exported}'".encode())
        row = conn.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def _connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(alive(dsn, "pipeline-move"), autocommit=True) as conn:
            yield conn
    except psycopg.Error as error:
        raise translated(error) from error


# position of the slot's relay (NULL: no row; empty: it never stored one), whether there is a slot, whether it is read
_STATE = """
SELECT CASE WHEN p.lsn = '0/0' THEN '' ELSE p.lsn::text END, s.slot_name IS NOT NULL, coalesce(s.active, false)
FROM (VALUES (%s::text)) AS wanted (slot)
LEFT JOIN pipeline.relay_position p USING (slot)
LEFT JOIN pg_replication_slots s ON s.slot_name = wanted.slot AND s.database = current_database()
"""
_END = """
SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s AND active
"""
_PASSED = """
SELECT FROM pipeline.relay_position WHERE slot = %(slot)s AND lsn >= %(lsn)s::pg_lsn
"""
_MARK = """
INSERT INTO pipeline.relay_position (slot, system_id, timeline, lsn) VALUES (%s, %s, %s, '0/0')
"""
_TAKE_OVER = """
UPDATE pipeline.relay_position p SET lsn = %(lsn)s::pg_lsn, updated_at = now() FROM pg_replication_slots s
WHERE p.slot = %(slot)s AND s.slot_name = p.slot AND s.database = current_database()
AND NOT s.active AND s.confirmed_flush_lsn = %(lsn)s::pg_lsn
"""
