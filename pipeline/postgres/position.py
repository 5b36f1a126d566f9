"""Confirmed positions in, one durable row per slot in ``pipeline.relay_position`` out.

The row is written before the server hears of a position, so that it is never behind the slot: a slot that is ahead of
its row was recreated, or moved by somebody else. Writing does not wait: the stream goes on meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import pq

from pipeline.capture import lsn_text
from pipeline.errors import PipelineError, SourceError
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.poll_position import Elsewhere
from pipeline.postgres.slot import Identity, Slot

__all__ = ["Position", "PositionStore", "resume_at"]

_STORE = b"""
INSERT INTO pipeline.relay_position (slot, system_id, timeline, lsn) VALUES ($1, $2, $3::integer, $4::pg_lsn)
ON CONFLICT (slot) DO UPDATE
SET system_id = excluded.system_id, timeline = excluded.timeline, lsn = excluded.lsn, updated_at = now()
WHERE relay_position.system_id <> excluded.system_id OR relay_position.timeline < excluded.timeline
   OR (relay_position.timeline = excluded.timeline AND relay_position.lsn <= excluded.lsn)
"""
"""One that was frozen while another took over writes late: it does not move the position back."""


_RESET = "UPDATE pipeline.relay_position SET system_id = %s, timeline = %s, lsn = '0/0' WHERE slot = %s"


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where everything was acknowledged, and in which server's WAL."""

    system_id: str
    timeline: int
    lsn: int


class PositionStore:
    """The row of one slot. One write is under way at most."""

    def __init__(self, dsn: str, slot: str) -> None:
        self._slot = slot
        try:
            self._conn = psycopg.connect(alive(dsn, "pipeline-relay"), autocommit=True)
        except psycopg.Error as error:
            raise translated(error) from error
        self._busy = False

    def load(self) -> Position | None:
        """Return what was stored, None before the first time and after ``reset``.

        Raises Elsewhere where the table was polled last, SourceError.
        """
        try:
            polled = self._conn.execute("SELECT FROM pipeline.poll_position WHERE slot = %s", (self._slot,))
            if polled.fetchone() is not None:
                raise Elsewhere(f"slot {self._slot}: the table was polled until now")
            row = self._conn.execute(
                "SELECT system_id, timeline, lsn - '0/0'::pg_lsn FROM pipeline.relay_position WHERE slot = %s",
                (self._slot,),
            ).fetchone()
        except psycopg.Error as error:
            raise translated(error) from error
        return Position(str(row[0]), int(row[1]), int(row[2])) if row and row[2] else None

    def reset(self, server: Identity) -> None:
        """Forget how far the slot was read: all begins anew on ``server``. Raises SourceError."""
        try:
            self._conn.execute(_RESET, (server.system_id, server.timeline, self._slot))
        except psycopg.Error as error:
            raise translated(error) from error

    def begin(self, position: Position) -> None:
        """Start to write. Only when ``done``."""
        values = (self._slot, position.system_id, str(position.timeline), lsn_text(position.lsn))
        try:
            self._conn.pgconn.send_query_params(_STORE, [value.encode() for value in values])
            self._conn.pgconn.flush()
        except psycopg.Error as error:
            raise self._failed(str(error)) from error
        self._busy = True

    def done(self) -> bool:
        """Tell whether nothing is under way. Raises SourceError when the write failed."""
        if not self._busy:
            return True
        connection = self._conn.pgconn
        try:
            connection.consume_input()
            if connection.is_busy():
                return False
            failed = ""
            while (result := connection.get_result()) is not None:
                if result.status != pq.ExecStatus.COMMAND_OK:
                    failed = result.get_error_message()
        except psycopg.Error as error:
            raise self._failed(str(error)) from error
        self._busy = False
        if failed:
            raise self._failed(failed)
        return True

    def close(self) -> None:
        """End the connection."""
        self._conn.close()

    def _failed(self, text: str) -> SourceError:
        self._busy = False
        return SourceError(f"PostgreSQL: storing the relay's position: {' '.join(text.split())}", retryable=True)


def resume_at(stored: Position | None, slot: Slot, server: Identity, *, trust_slot: bool) -> tuple[int, str]:
    """Compare what was stored with slot and server: return the LSN to stream after and a warning ("": none).

    The server silently moves a request below ``confirmed_flush_lsn`` forward, so a gap must be found here. Raises
    SourceError, with what may be missing, where the stored position belongs to another server, or lies before the
    slot's (unless ``trust_slot``) or beyond the end of the server's WAL.

    On a promoted standby the slot is where it was when it was copied last, and the stored position may be older than
    that: its row is replicated for itself.
    """
    if stored is None:
        return slot.confirmed, ""
    between = f"{lsn_text(stored.lsn)} (stored) and {lsn_text(slot.confirmed)} (slot)"
    if stored.system_id != server.system_id:
        raise _gap(
            f"slot {slot.name}: the stored position is of server {stored.system_id}, this is {server.system_id}", slot
        )
    if stored.timeline > server.timeline or stored.lsn > server.lsn:
        raise _gap(
            f"slot {slot.name}: the stored position {lsn_text(stored.lsn)} on timeline {stored.timeline} is not in this"
            f" server's WAL, which ends at {lsn_text(server.lsn)} on timeline {server.timeline}: was it restored?",
            slot,
        )
    promoted = stored.timeline < server.timeline
    if promoted and (slot.synced or slot.confirmed <= stored.lsn):
        return slot.confirmed, (
            f"the server was promoted to timeline {server.timeline}: rows after {lsn_text(slot.confirmed)} come again"
        )
    if slot.confirmed > stored.lsn:
        if not trust_slot:
            raise _gap(f"slot {slot.name}: it was recreated or moved by somebody else between {between}", slot)
        return slot.confirmed, f"rows between {between} were published by somebody else, or are missing"
    return stored.lsn, ""


def _gap(what: str, slot: Slot) -> PipelineError:
    return SourceError(
        what,
        remedy="rows may be missing on the topics: accept the slot's position by deleting the row "
        f"'{slot.name}' of pipeline.relay_position, or by offset.mismatch.strategy=trust_slot where the slot was moved "
        "on purpose; start again, and publish what is missing: pipeline connector reconcile FILE --execute",
    )
