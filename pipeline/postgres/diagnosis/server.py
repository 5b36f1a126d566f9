"""A database server in, what keeps it from logical decoding, or will, out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pipeline.finding import Finding
from pipeline.postgres.diagnosis.look import Look, judged

__all__ = ["examine"]

_OLDEST_VERSION = 140000
_SKEW_S = 2.0
_LONG_TRANSACTION_S = 300.0


def examine(look: Look, now: Callable[[], float]) -> Iterator[Finding]:
    """Yield findings about the connection, the server and its settings. ``now`` is this machine's clock."""
    before = now()
    row = look.one(_SERVER)
    skew = row["clock"] - (before + now()) / 2
    info = look.conn.info
    pooled = row["pid"] != info.backend_pid or look.provider.is_pooler(info.host, info.port)
    yield judged(
        "connection",
        "problem" if pooled else "ok",
        "through a pooler" if pooled else "direct",
        "let database.hostname and database.port name the server itself: poolers "
        + ("give the lock of who polls to others" if look.capture.polls else "cannot replicate"),
    )
    for check, text in look.provider.notes:
        yield judged(f"{look.provider.name}: {check}", "note", text)
    old = look.version < _OLDEST_VERSION
    yield judged("version", "problem" if old else "ok", row["version"], "upgrade to PostgreSQL 14 or newer")
    yield judged(
        "role of the server",
        "problem" if row["standby"] else "ok",
        "standby" if row["standby"] else "primary",
        "name the primary, or promote this one: SELECT pg_promote();",
    )
    yield judged(
        "clock",
        "ok" if abs(skew) < _SKEW_S else "warning",
        f"{skew:+.1f} s from this machine's" if abs(skew) >= _SKEW_S else "as this machine's",
        "let both follow the same NTP servers",
    )
    if not look.capture.polls:
        yield from _decoding(look, row)
    yield from _long(look)


def _decoding(look: Look, row: dict[str, Any]) -> Iterator[Finding]:
    """Settings that only logical decoding needs."""
    logical = row["wal_level"] == "logical"
    yield judged("wal_level", "ok" if logical else "problem", row["wal_level"], look.provider.wal_level)
    unlimited = row["keep"] == "-1"
    yield judged(
        "max_slot_wal_keep_size",
        "warning" if unlimited else "ok",
        "unlimited: a relay that is stopped lets WAL fill the disk" if unlimited else row["keep"],
        look.provider.set("max_slot_wal_keep_size", "20GB"),
    )
    if (idle := look.setting("idle_replication_slot_timeout")) not in {"", "0"}:
        yield judged(
            "idle_replication_slot_timeout",
            "warning",
            f"a relay that is stopped for {idle} loses its slot",
            look.provider.set("idle_replication_slot_timeout", "0"),
        )
    if row["senders"] <= 0:
        yield judged("max_wal_senders", "problem", "all are taken", "raise max_wal_senders, and restart the server")


def _long(look: Look) -> Iterator[Finding]:
    """Old transactions hold back the creation of slots, and pruning."""
    row = look.row(_OLD)
    age = row["age_s"] if row else 0.0
    end = f"SELECT pg_terminate_backend({row['pid']});" if row else ""
    yield judged(
        "long transactions",
        "warning" if age > _LONG_TRANSACTION_S else "ok",
        f"the oldest that writes is {age:.0f} s old: it holds back slot creation and pruning" if row else "none",
        end,
    )
    for one in look.rows(_PREPARED, _LONG_TRANSACTION_S):
        yield judged(
            f"prepared transaction {one['gid']}",
            "warning",
            f"{one['age_s']:.0f} s old, in database {one['database']}: it holds back slot creation and pruning",
            f"ROLLBACK PREPARED {one['quoted']};",
        )


_SERVER = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS clock, pg_backend_pid() AS pid,
       current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
       current_setting('wal_level') AS wal_level, current_setting('max_slot_wal_keep_size') AS keep,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication) AS senders
"""
_OLD = """
SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1
"""
_PREPARED = """
SELECT gid, quote_literal(gid) AS quoted, database,
       extract(epoch FROM clock_timestamp() - prepared)::float8 AS age_s
FROM pg_prepared_xacts WHERE clock_timestamp() - prepared > make_interval(secs => %s) ORDER BY prepared
"""
