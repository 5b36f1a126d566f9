"""The slots of a server in, how far behind each is and when it would be given up out, look after look.

Over a connection of its own, so that it can be looked at from any process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg.rows import dict_row

from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["SlotStatistics", "SlotWatch"]


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """One slot. ``lag_bytes`` of WAL are written and not confirmed, ``retained_bytes`` are kept for it.

    ``invalidation_s`` is how long until the server gives it up, at the rate at which WAL was written since the look
    before: infinite while none is written, 0 where it was given up, None without a bound (max_slot_wal_keep_size) or
    at the first look. ``unpublished_s`` is the age of the oldest outbox row that was not published, 0 where all are,
    None where no native relay reads it.
    """

    slot: str
    active: bool
    lag_bytes: int
    retained_bytes: int
    invalidation_s: float | None
    unpublished_s: float | None


class SlotWatch:
    """Looks at one slot, or at all that the server has. ``look`` belongs to one thread."""

    def __init__(self, dsn: str, slot: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._dsn = alive(dsn, "pipeline-slots")
        self._slot = slot
        self._clock = clock
        self._before: tuple[float, int] | None = None  # when, and where WAL ended

    def look(self) -> list[SlotStatistics]:
        """Return what is there now. Raises SourceError."""
        try:
            with psycopg.connect(self._dsn, autocommit=True, row_factory=dict_row) as conn:
                rows = conn.execute(_SLOTS, {"slot": self._slot}).fetchall()
                ages = self._ages(conn)
        except psycopg.Error as error:
            raise translated(error) from error
        now = self._clock()
        rate = self._rate(now, int(rows[0]["wal"])) if rows else None
        return [
            SlotStatistics(
                slot=row["slot_name"],
                active=row["active"],
                lag_bytes=row["lag"],
                retained_bytes=row["retained"],
                invalidation_s=_left(row["wal_status"], row["left"], rate),
                unpublished_s=ages.get(row["slot_name"]),
            )
            for row in rows
        ]

    def _ages(self, conn: psycopg.Connection[dict[str, object]]) -> dict[str, float]:
        try:
            return {str(row["slot"]): float(str(row["age"])) for row in conn.execute(_AGES, {"slot": self._slot})}
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.InsufficientPrivilege):
            return {}  # a table of the user's own, or a role that may not see it

    def _rate(self, now: float, wal: int) -> float | None:
        """Return the bytes of WAL per second since the look before."""
        before, self._before = self._before, (now, wal)
        if before is None or now <= before[0]:
            return None
        return max(wal - before[1], 0) / (now - before[0])


def _left(status: str | None, left: int | None, rate: float | None) -> float | None:
    if status == "lost":
        return 0.0
    if left is None or rate is None:
        return None
    return max(left, 0) / rate if rate else float("inf")


_SLOTS = """
SELECT slot_name, active, wal_status, safe_wal_size AS left, pg_current_wal_lsn() - '0/0'::pg_lsn AS wal,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(confirmed_flush_lsn, restart_lsn)), 0)::bigint AS lag,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint AS retained
FROM pg_replication_slots
WHERE NOT temporary AND (%(slot)s::text IS NULL OR slot_name = %(slot)s) ORDER BY slot_name
"""
# Rows that were committed since the relay's position was stored; of more than a thousand, the time since then counts.
_AGES = """
WITH newest AS MATERIALIZED (SELECT created_at FROM pipeline.outbox ORDER BY seq DESC LIMIT 1000),
     position AS (SELECT slot, updated_at AT TIME ZONE 'UTC' AS at FROM pipeline.relay_position
                  WHERE %(slot)s::text IS NULL OR slot = %(slot)s),
     waiting AS (SELECT slot, at, count(created_at) AS rows, min(created_at) AS oldest
                 FROM position LEFT JOIN newest ON created_at > at GROUP BY slot, at)
SELECT slot, CASE WHEN rows = 0 THEN 0 ELSE greatest(0, extract(epoch FROM (clock_timestamp() AT TIME ZONE 'UTC')
       - CASE WHEN rows < 1000 THEN oldest ELSE at END)) END::float8 AS age
FROM waiting
"""
