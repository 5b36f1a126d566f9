"""A relay's DSN, slot, publication and table in, what is wrong with the database and how to mend it out.

Only looks: nothing is created, moved or locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.finding import Finding, Level
from pipeline.postgres.errors import translated

__all__ = ["Capture", "examine"]

_OLDEST_VERSION = 140000
_SKEW_S = 2.0
_RATE_OVER_S = 0.5
_LONG_TRANSACTION_S = 300.0

# provider → (how wal_level becomes logical, how a role may replicate)
_PROVIDERS: dict[str, tuple[str, str]] = {
    "": ("ALTER SYSTEM SET wal_level = logical; then restart the server", "ALTER ROLE {role} REPLICATION;"),
    "rds": ("set rds.logical_replication = 1 in the parameter group, then reboot", "GRANT rds_replication TO {role};"),
    "cloudsql": ("set the flag cloudsql.logical_decoding = on (restarts)", "ALTER USER {role} WITH REPLICATION;"),
    "azure": ("set the server parameter wal_level = logical, then restart", "ALTER ROLE {role} REPLICATION;"),
}


@dataclass(frozen=True, slots=True)
class Capture:
    """What a connector reads. ``tables`` are ``schema.table``; ``creates`` where it makes its publication itself."""

    slot: str
    publication: str
    tables: tuple[str, ...]
    creates: bool = False


def examine(
    dsn: str, capture: Capture, *, provider: str = "", now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Yield what was found, first the connection. ``now`` is this machine's clock, in Unix time."""
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="pipeline-doctor") as conn:
            yield from _Examination(conn, capture, provider, now).all()
    except psycopg.Error as error:
        found = translated(error)
        yield Finding("postgres", "connection", "problem", found.what, found.remedy)


class _Examination:
    def __init__(
        self, conn: psycopg.Connection[Any], capture: Capture, provider: str, now: Callable[[], float]
    ) -> None:
        self._conn = conn
        self._capture = capture
        self._now = now
        self._wal_level, self._replication = _PROVIDERS[provider]

    def all(self) -> Iterator[Finding]:
        yield from self._server()
        yield from self._role()
        yield from self._tables()
        yield from self._publication()
        yield from self._slot()

    def _row(self, sql: str, *values: object) -> dict[str, Any] | None:
        with self._conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql.encode(), values).fetchone()

    def _server(self) -> Iterator[Finding]:
        before = self._now()
        row = self._row(_SERVER)
        assert row is not None
        skew = row["clock"] - (before + self._now()) / 2
        pooled = row["pid"] != self._conn.info.backend_pid
        yield _judged(
            "connection",
            "problem" if pooled else "ok",
            "through a pooler" if pooled else "direct",
            "let database.hostname and database.port name the server itself: poolers cannot replicate",
        )
        old = self._conn.info.server_version < _OLDEST_VERSION
        yield _judged("version", "problem" if old else "ok", row["version"], "upgrade to PostgreSQL 14 or newer")
        yield _judged(
            "role of the server",
            "problem" if row["standby"] else "ok",
            "standby" if row["standby"] else "primary",
            "name the primary, or promote this one",
        )
        yield _judged(
            "wal_level", "ok" if row["wal_level"] == "logical" else "problem", row["wal_level"], self._wal_level
        )
        yield _judged(
            "clock",
            "ok" if abs(skew) < _SKEW_S else "warning",
            f"{skew:+.1f} s from this machine's" if abs(skew) >= _SKEW_S else "as this machine's",
            "let both follow the same NTP servers",
        )
        yield _judged(
            "max_slot_wal_keep_size",
            "warning" if row["keep"] == "-1" else "ok",
            "unlimited" if row["keep"] == "-1" else row["keep"],
            "ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; else a stopped relay fills the disk",
        )
        age = row["transaction_s"] or 0.0
        yield _judged(
            "long transactions",
            "warning" if age > _LONG_TRANSACTION_S else "ok",
            f"the oldest that writes is {age:.0f} s old",
            f"SELECT pg_terminate_backend({row['transaction_pid']}); it holds back slot creation and pruning",
        )

    def _role(self) -> Iterator[Finding]:
        row = self._row(_ROLE)
        assert row is not None
        yield _judged(
            "replication",
            "ok" if row["may"] else "problem",
            f"{row['role']} {'may' if row['may'] else 'may not'} replicate",
            self._replication.format(role=row["role"]),
        )
        position = self._row("SELECT to_regclass('pipeline.relay_position') IS NOT NULL AS there")
        if position and position["there"]:
            may = self._row(
                "SELECT has_table_privilege('pipeline.relay_position', 'SELECT') AND "
                "has_table_privilege('pipeline.relay_position', 'INSERT') AND "
                "has_table_privilege('pipeline.relay_position', 'UPDATE') AS ok"
            )
            yield _judged(
                "pipeline.relay_position",
                "ok" if may and may["ok"] else "problem",
                "readable and writable" if may and may["ok"] else "not readable and writable",
                f"GRANT SELECT, INSERT, UPDATE ON pipeline.relay_position TO {row['role']};",
            )
        else:
            yield _judged("pipeline.relay_position", "problem", "is not there", "pipeline db migrate")

    def _tables(self) -> Iterator[Finding]:
        for table in self._capture.tables:
            row = self._row(_TABLE, table)
            if row is None:
                yield _judged(
                    f"table {table}",
                    "problem",
                    "is not there, or its schema may not be used",
                    "pipeline db migrate; or correct table.include.list",
                )
                continue
            yield _judged(
                f"table {table}",
                "ok" if row["may"] else "problem",
                "readable" if row["may"] else "not readable",
                f"GRANT SELECT ON {table} TO {row['role']};",
            )

    def _publication(self) -> Iterator[Finding]:
        name = self._capture.publication
        row = self._row("SELECT * FROM pg_publication WHERE pubname = %s", name)
        if row is None:
            level: Level = "ok" if self._capture.creates else "problem"
            listed = ", ".join(self._capture.tables)
            yield _judged(
                f"publication {name}",
                level,
                "is not there",
                f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH (publish = 'insert');",
            )
            return
        yield _judged(
            f"publication {name}",
            "ok" if row["pubinsert"] else "problem",
            "publishes inserts" if row["pubinsert"] else "does not publish inserts",
            f"ALTER PUBLICATION {name} SET (publish = 'insert');",
        )
        for table in self._capture.tables:
            found = self._row(_PUBLISHED, name, table, table)
            if found is None:
                yield _judged(
                    f"{table} in {name}",
                    "problem",
                    "is not in the publication",
                    f"ALTER PUBLICATION {name} ADD TABLE {table};",
                )
            elif (row["pubupdate"] or row["pubdelete"]) and not found["identity"]:
                yield _judged(
                    f"{table} in {name}",
                    "problem",
                    "has no replica identity, so that UPDATE and DELETE on it fail",
                    f"ALTER TABLE {table} REPLICA IDENTITY FULL; or give it a primary key",
                )

    def _slot(self) -> Iterator[Finding]:
        name = self._capture.slot
        row = self._row(_SLOT, name)
        check = f"slot {name}"
        if row is None:
            free = self._row(_FREE)
            full = free is not None and free["free"] <= 0
            yield _judged(
                check,
                "problem" if full else "warning",
                "is not there" + (", and all slots are taken" if full else ""),
                "raise max_replication_slots, or drop a slot that nobody needs"
                if full
                else "start the connector before the first writer: it captures from then on",
            )
            return
        drop = f"SELECT pg_drop_replication_slot('{name}');"
        if row["wal_status"] == "lost":
            yield _judged(
                check, "problem", "was invalidated: its WAL is gone", f"{drop} then pipeline connector reconcile"
            )
        elif row["elsewhere"] or row["plugin"] != "pgoutput":
            yield _judged(
                check,
                "problem",
                f"is of database {row['database']} with {row['plugin']}",
                "give slot.name another value",
            )
        else:
            left = row["safe_wal_size"]
            text = f"{'read' if row['active'] else 'read by nobody'}, {row['lag']} bytes behind"
            if left is not None:
                rate = self._wal_rate()
                text += f", {left} bytes to invalidation" + (f": {left / rate:.0f} s at this rate" if rate else "")
            bad = row["wal_status"] == "unreserved"
            state: Level = "problem" if bad else "ok" if row["active"] else "warning"
            yield _judged(check, state, text, f"start its connector; if nobody needs it: {drop}")

    def _wal_rate(self) -> float:
        """Bytes of WAL per second."""
        first, begun = self._row(_WAL), time.monotonic()
        self._conn.execute("SELECT pg_sleep(%s)", (_RATE_OVER_S,))
        last = self._row(_WAL)
        assert first is not None
        assert last is not None
        return float(last["bytes"] - first["bytes"]) / (time.monotonic() - begun)


def _judged(check: str, level: Level, found: str, fix: str) -> Finding:
    return Finding("postgres", check, level, found, "" if level == "ok" else fix)


_SERVER = """
SELECT extract(epoch FROM clock_timestamp())::float8 AS clock, pg_backend_pid() AS pid,
       current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
       current_setting('wal_level') AS wal_level, current_setting('max_slot_wal_keep_size') AS keep,
       extract(epoch FROM clock_timestamp() - old.xact_start)::float8 AS transaction_s, old.pid AS transaction_pid
FROM (SELECT) AS one LEFT JOIN (
    SELECT pid, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1
) AS old ON true
"""
_ROLE = """
SELECT quote_ident(current_user) AS role, rolreplication OR rolsuper OR EXISTS (
    SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER')) AS may
FROM pg_roles WHERE rolname = current_user
"""
_TABLE = """
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS may,
       quote_ident(current_user) AS role
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = %s
"""
_PUBLISHED = """
SELECT c.relreplident IN ('f', 'i') OR (c.relreplident = 'd' AND EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)) AS identity
FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %s AND (t.schemaname || '.' || t.tablename = %s OR c.oid IN (
    SELECT p.relid FROM pg_class o JOIN pg_namespace m ON m.oid = o.relnamespace, pg_partition_tree(o.oid) p
    WHERE m.nspname || '.' || o.relname = %s))
"""
_SLOT = """
SELECT active, wal_status, safe_wal_size, plugin, database, database IS DISTINCT FROM current_database() AS elsewhere,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS lag
FROM pg_replication_slots WHERE slot_name = %s
"""
_FREE = """
SELECT current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots) AS free
"""
_WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS bytes"
