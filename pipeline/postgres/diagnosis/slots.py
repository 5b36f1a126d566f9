"""A slot's name in, whether it is read, how far behind, and when the server would give it up, out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg

from pipeline.finding import Finding, Level
from pipeline.postgres.diagnosis.look import Look, judged
from pipeline.postgres.liveness import alive

__all__ = ["examine", "reader"]

_RATE_OVER_S = 0.5
_SOON_S = 3600.0


def examine(look: Look) -> Iterator[Finding]:
    """Yield findings about the connector's slot, and about others that nobody reads."""
    name = look.capture.slot
    row = look.row(_SLOT, name)
    check, drop = f"slot {name}", f"SELECT pg_drop_replication_slot('{name}');"
    if row is None:
        yield _missing(look, check)
    elif row["wal_status"] == "lost":
        why = f" ({row['reason']})" if row["reason"] else ""
        yield judged(
            check, "problem", f"was invalidated{why}: its WAL is gone", f"{drop} then pipeline connector reconcile FILE"
        )
    elif row["elsewhere"] or row["plugin"] != "pgoutput":
        text = f"is of database {row['database']} with {row['plugin']}"
        yield judged(check, "problem", text, "give slot.name another value")
    else:
        yield _health(look, check, row)
    yield from _others(look)


def reader(dsn: str, slot: str) -> str:
    """Return the application's name of who reads a slot; empty where nobody does, or the server is away."""
    try:
        with psycopg.connect(alive(dsn, "pipeline-doctor"), autocommit=True) as conn:
            row = conn.execute(_READER, (slot,)).fetchone()
    except psycopg.Error:  # which other findings say
        return ""
    return str(row[0]) if row else ""


def _missing(look: Look, check: str) -> Finding:
    free = look.one(_FREE)["free"]
    if free <= 0:
        fix = "raise max_replication_slots and restart the server, or drop a slot that nobody needs"
        return judged(check, "problem", "is not there, and all slots are taken", fix)
    fix = "start the connector before the first writer: it captures from then on"
    return judged(check, "warning", "is not there", fix)


def _health(look: Look, check: str, row: dict[str, Any]) -> Finding:
    idle = f" for {row['idle_s']:.0f} s" if row["idle_s"] else ""
    reader = f"read by {row['reader'] or 'somebody'}" if row["active"] else f"read by nobody{idle}"
    text, left = f"{reader}, {row['lag']} bytes behind", row["left"]
    level: Level = "ok" if row["active"] else "warning"
    fix = f"start its connector; if nobody needs it: {_drop(look.capture.slot)}"
    rate = _wal_rate(look)
    if left is None:
        hour = f", {rate * 3600 / 1e6:.0f} MB more each hour at this rate" if rate and not row["active"] else ""
        text += f", {row['retained']} bytes of WAL kept, without a bound{hour}"
    else:
        seconds = left / rate if rate else None
        text += f", {left} bytes to invalidation" + (f": {seconds:.0f} s at this rate" if seconds is not None else "")
        if row["wal_status"] == "unreserved":
            level = "problem"
        elif seconds is not None and seconds < _SOON_S:
            level = "warning"
        if row["active"]:
            fix = look.provider.set("max_slot_wal_keep_size", f"{max(2 * row['retained'] // 2**20, 1024)}MB")
    return judged(check, level, text, fix)


def _others(look: Look) -> Iterator[Finding]:
    """Slots that nobody reads keep WAL of the whole server, whoever's they are."""
    for row in look.rows(_UNREAD, look.capture.slot):
        yield judged(
            f"slot {row['slot_name']}",
            "warning",
            f"read by nobody, keeps {row['retained']} bytes of WAL",
            f"start its reader; if nobody needs it: {_drop(row['slot_name'])}",
        )


def _drop(name: str) -> str:
    return f"SELECT pg_drop_replication_slot('{name}');"


def _wal_rate(look: Look) -> float:
    """Bytes of WAL per second."""
    first, begun = look.one(_WAL), time.monotonic()
    look.conn.execute("SELECT pg_sleep(%s)", (_RATE_OVER_S,))
    last = look.one(_WAL)
    return float(last["bytes"] - first["bytes"]) / (time.monotonic() - begun)


# servers of before PostgreSQL 17 have neither "inactive_since" nor "invalidation_reason"
_SLOT = """
SELECT s.active, s.wal_status, s.safe_wal_size AS left, s.plugin, s.database,
       s.database IS DISTINCT FROM current_database() AS elsewhere,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint AS lag,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS retained,
       to_jsonb(s) ->> 'invalidation_reason' AS reason,
       extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8 AS idle_s,
       (SELECT application_name || coalesce(' at ' || host(client_addr), '') FROM pg_stat_activity
        WHERE pid = s.active_pid) AS reader
FROM pg_replication_slots s WHERE s.slot_name = %s
"""
_READER = """
SELECT application_name FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
WHERE slot_name = %s AND application_name IS NOT NULL
"""
_FREE = """
SELECT current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS free
"""
_UNREAD = """
SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained FROM pg_replication_slots
WHERE NOT active AND NOT temporary AND restart_lsn IS NOT NULL AND slot_name <> %s
  AND (database = current_database() OR database IS NULL)
ORDER BY slot_name
"""
_WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS bytes"
