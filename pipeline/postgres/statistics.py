"""A slot's name in, its lag and the WAL kept for it out, over a connection of its own."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from pipeline.errors import SourceError
from pipeline.postgres.errors import translated

__all__ = ["SlotStatistics", "measure"]


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """Bytes of WAL: written and not confirmed, and kept by the server for the slot."""

    lag_bytes: int
    retained_bytes: int


def measure(dsn: str, slot: str) -> SlotStatistics | None:
    """Return the slot's statistics, None where there is no such slot. Raises SourceError."""
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="pipeline-relay") as conn:
            row = conn.execute(
                "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,"
                " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint"
                " FROM pg_replication_slots WHERE slot_name = %s",
                (slot,),
            ).fetchone()
    except psycopg.Error as error:
        found = translated(error)
        raise SourceError(found.what, remedy=found.remedy, retryable=found.retryable) from error
    return None if row is None else SlotStatistics(int(row[0]), int(row[1]))
