"""Settings in, what stands in the database out: migrations, and the state of outbox and slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.config import Settings
from pipeline.endpoints import postgres_dsn
from pipeline.postgres import migrations
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.poll_position import ACTIVE

__all__ = ["connect", "migrate", "migration_script", "migrations_of", "outbox_status"]


@contextmanager
def connect(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection to the application's database, in autocommit mode. Raises SourceError."""
    try:
        with psycopg.connect(alive(postgres_dsn(settings), "pipeline"), autocommit=True) as conn:
            yield conn
    except psycopg.Error as error:
        raise translated(error) from error


def migrate(settings: Settings) -> list[migrations.Migration]:
    """Apply what is pending and return it."""
    with connect(settings) as conn:
        return migrations.migrate(conn)


def migration_script() -> str:
    """Return all migrations, roles and grants as SQL."""
    return migrations.script()


def migrations_of(settings: Settings) -> list[dict[str, object]]:
    """Return every migration with its state, ``applied`` or ``pending``."""
    with connect(settings) as conn:
        done = migrations.applied(conn)
    return [
        {"number": m.number, "name": m.name, "state": "applied" if m.number in done else "pending"}
        for m in migrations.available()
    ]


def outbox_status(settings: Settings) -> dict[str, object]:
    """Return what is in the outbox and how far each of its slots is. Bytes, seconds; nothing is counted by scan."""
    with connect(settings) as conn, conn.cursor(row_factory=dict_row) as cursor:
        table = cursor.execute(_TABLE).fetchone() or {}
        slots = cursor.execute(_SLOTS).fetchall()
        pollers = cursor.execute(_POLLERS).fetchall()
    return {**_utc(table), "slots": [_utc(slot) for slot in slots], "pollers": [_utc(poller) for poller in pollers]}


def _utc(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row with its times as ISO 8601, in UTC."""
    return {
        name: value.astimezone(UTC).isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
        for name, value in row.items()
    }


_TABLE = """
SELECT greatest(c.reltuples, 0)::bigint AS rows_estimated,
       pg_total_relation_size(c.oid) AS table_bytes,
       (SELECT created_at AT TIME ZONE 'UTC' FROM pipeline.outbox ORDER BY seq LIMIT 1) AS oldest_row,
       (SELECT created_at AT TIME ZONE 'UTC' FROM pipeline.outbox ORDER BY seq DESC LIMIT 1) AS newest_row,
       extract(epoch FROM clock_timestamp() - old.xact_start)::float8 AS oldest_write_transaction_s,
       old.pid AS oldest_write_transaction_pid,
       (SELECT count(*) FROM pipeline.refused_row) AS refused_rows
FROM pg_class c LEFT JOIN (
    SELECT pid, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database()
    ORDER BY xact_start LIMIT 1
) AS old ON true
WHERE c.oid = 'pipeline.outbox'::regclass
"""

_POLLERS = f"""
SELECT slot, {ACTIVE} AS active, taken::text AS taken, target IS NOT NULL AS half_read, updated_at AS stored_at
FROM pipeline.poll_position ORDER BY slot
"""  # noqa: S608 — of constants

_SLOTS = """
SELECT s.slot_name AS slot, s.active, s.wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint AS lag_bytes,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint AS wal_retained_bytes,
       s.safe_wal_size AS bytes_to_invalidation,
       s.confirmed_flush_lsn::text AS confirmed_lsn, p.lsn::text AS stored_lsn, p.updated_at AS stored_at
FROM pg_replication_slots s LEFT JOIN pipeline.relay_position p ON p.slot = s.slot_name
WHERE s.slot_type = 'logical' AND s.database = current_database()
ORDER BY s.slot_name
"""
