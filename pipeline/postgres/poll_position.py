"""How far a polling relay is in, one durable row per slot name in ``pipeline.poll_position`` out.

Written on the session that holds the advisory lock: whoever has lost the lock cannot write. Where there is a row, it
counts, and not what a relay by the WAL has stored of a slot of that name: see pipeline.postgres.move.

A row is true wherever it is: it was written after all that its snapshots see, so that a server that has the row, a
promoted standby or a copy that was restored, has those transactions too, and gives their numbers to no others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from pipeline.errors import SourceError

__all__ = [
    "ACTIVE", "Elsewhere", "Line", "Reached", "begin", "covers", "forget", "in_progress", "line", "load", "store",
    "try_lock", "xmax",
]  # fmt: skip

_LOCK = 0x706F6C6C  # "poll"
_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"  # also before its first checkpoint
ACTIVE = f"""EXISTS (
    SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND d.datname = current_database()
    AND l.classid::bigint = {_LOCK} AND l.objid::bigint = hashtext(slot)::bigint & 4294967295)"""
"""SQL: whether somebody polls by the position ``slot``."""


class Elsewhere(SourceError):
    """How far a table is published is told by the other way of capture, which was the last one: it has to be moved."""


class Reached(NamedTuple):
    """All that ``taken`` sees; and of what only ``target`` sees, rows up to number ``seq``. Snapshots as text."""

    taken: str
    target: str | None = None
    seq: int | None = None


class Line(NamedTuple):
    """Which server, and which of its histories: a promotion and a restored copy begin a new one."""

    system_id: str
    timeline: int


def covers(snapshot: str, other: str) -> bool:
    """Tell whether a snapshot sees all that another one sees."""
    end, known = int(xmax(other)), set(in_progress(other))
    return int(xmax(snapshot)) >= end and all(int(xid) >= end or xid in known for xid in in_progress(snapshot))


def xmax(snapshot: str) -> str:
    """Return the first transaction that had not begun when the snapshot was taken."""
    return snapshot.split(":")[1]


def in_progress(snapshot: str) -> list[str]:
    """Return the transactions that were in progress when the snapshot was taken."""
    return [xid for xid in snapshot.split(":")[2].split(",") if xid]


def try_lock(conn: psycopg.Connection[Any], slot: str) -> bool:
    """Try to become the active one, until the session ends. Raises SourceError behind a pooler; psycopg.Error."""
    pid, standby = conn.execute("SELECT pg_backend_pid(), pg_is_in_recovery()").fetchone() or (0, False)
    if standby:
        raise SourceError(
            "PostgreSQL: the server is in recovery: a standby that is not promoted, or not yet",
            remedy="promote it, or let database.hostname name the primary",
            retryable=True,
        )
    if pid != conn.info.backend_pid:
        raise SourceError(
            "PostgreSQL: this connection goes through a pooler, which can give its session to others: the advisory "
            "lock that lets one relay poll would be anybody's",
            remedy="let database.hostname and database.port name the server itself; writers may use the pooler",
        )
    row = conn.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LOCK, slot)).fetchone()
    return row == (True,)


def line(conn: psycopg.Connection[Any]) -> Line:
    """Return the server's. Raises psycopg.Error."""
    row = conn.execute(_LINE).fetchone()
    assert row is not None
    return Line(*row)


def load(conn: psycopg.Connection[Any], slot: str) -> Reached | None:
    """Return what was stored, None before the first time. Raises SourceError where it is not of this server's line."""
    row = conn.execute(_LOAD, (slot,)).fetchone()
    if row is None:
        return None
    taken, target, seq, doubt = row
    if doubt:
        raise SourceError(
            f"the polling position of {slot} {doubt}: transactions have other numbers here",
            remedy="rows may be missing on the topics: delete the row "
            f"'{slot}' of pipeline.poll_position, which lets polling begin at what commits from then on; start again, "
            "and publish what is missing: pipeline connector reconcile FILE --execute",
        )
    return Reached(taken, target, seq)


def begin(conn: psycopg.Connection[Any], slot: str, taken: str | None = None) -> Reached:
    """Store the first position: the given snapshot, or the present one. Raises psycopg.Error."""
    row = conn.execute(_BEGIN, {"slot": slot, "taken": taken}).fetchone()
    assert row is not None
    return Reached(row[0])


def forget(conn: psycopg.Connection[Any], slot: str) -> None:
    """Delete a position: a slot counts from now on. Raises psycopg.Error."""
    conn.execute("DELETE FROM pipeline.poll_position WHERE slot = %s", (slot,))


def store(conn: psycopg.Connection[Any], slot: str, reached: Reached) -> None:
    """Store how far all is acknowledged. Raises SourceError where somebody deleted the row; psycopg.Error."""
    if conn.execute(_STORE, (*reached, slot)).rowcount != 1:
        raise SourceError(
            f"the row '{slot}' of pipeline.poll_position was deleted", remedy="start again: polling begins anew"
        )


_LINE = f"SELECT system_identifier::text, {_TIMELINE} FROM pg_control_system()"  # noqa: S608 — of constants
_LOAD = f"""
SELECT taken::text, target::text, seq, CASE
    WHEN system_id <> (SELECT system_identifier::text FROM pg_control_system()) THEN 'is of another server'
    WHEN timeline > {_TIMELINE} THEN 'is of a later timeline'
    WHEN pg_snapshot_xmax(coalesce(target, taken)) > pg_snapshot_xmax(pg_current_snapshot()) THEN 'lies in the future'
    END
FROM pipeline.poll_position WHERE slot = %s
"""  # noqa: S608 — of constants
_BEGIN = f"""
INSERT INTO pipeline.poll_position (slot, system_id, timeline, taken)
SELECT %(slot)s, (SELECT system_identifier::text FROM pg_control_system()),
       {_TIMELINE}, coalesce(%(taken)s::pg_snapshot, pg_current_snapshot())
RETURNING taken::text
"""  # noqa: S608 — of constants
_STORE = f"""
UPDATE pipeline.poll_position SET taken = %s, target = %s, seq = %s, updated_at = now(),
       timeline = {_TIMELINE}
WHERE slot = %s
"""  # noqa: S608 — of constants
