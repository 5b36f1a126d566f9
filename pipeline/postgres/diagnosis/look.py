"""A connection and what a connector captures in, rows to judge out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.finding import Finding, Level
from pipeline.postgres.diagnosis.providers import Provider, provider_of

__all__ = ["Capture", "Look", "judged"]


@dataclass(frozen=True, slots=True)
class Capture:
    """What a connector reads. ``tables`` are ``schema.table``; ``creates`` where it makes its publication itself.

    ``columns`` are those of the tables that it names, ``timestamp`` the one of a record's time, by names as ``adjust``
    makes them of the tables'; ``failover`` is its ``slot.failover``, ``snapshot`` its mode.
    ``shards`` has the publications of all shards where it is one of them, by the column ``key``.
    ``polls``: by queries, with the columns ``seq`` and ``xid``, and needs neither slot nor publication.
    """

    slot: str
    publication: str
    tables: tuple[str, ...]
    creates: bool = False
    columns: tuple[str, ...] = ()
    timestamp: str = ""
    failover: bool = False
    snapshot: str = "no_data"
    polls: bool = False
    seq: str = "seq"
    xid: str = "xid"
    shards: tuple[str, ...] = ()
    key: str = ""
    adjust: Callable[[str], str] = str

    def own(self, column: str, there: Iterable[str]) -> str:
        """Return the table's own name of a column that is named as ``adjust`` makes it."""
        return next((name for name in there if self.adjust(name) == column), column)

    def without(self, there: Iterable[str]) -> list[str]:
        """Return which of its columns are not among those."""
        names = {self.adjust(name) for name in there}
        return [column for column in self.columns if column not in names]


class Look:
    """One connection, and what is looked at by it. Raises psycopg.Error."""

    def __init__(self, conn: psycopg.Connection[Any], capture: Capture, provider: str) -> None:
        self.conn = conn
        self.capture = capture
        self.provider: Provider = provider_of(provider, conn.info.host)
        self.version = conn.info.server_version

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql.encode(), values).fetchall()

    def row(self, sql: str, *values: object) -> dict[str, Any] | None:
        """Return the first row of a query, None where there is none."""
        return next(iter(self.rows(sql, *values)), None)

    def one(self, sql: str, *values: object) -> dict[str, Any]:
        """Return the row of a query that always has one."""
        found = self.row(sql, *values)
        assert found is not None
        return found

    def reads(self, table: str) -> bool:
        """Tell whether "schema.table" is there, and may be read."""
        return self.row(_READS, table) is not None

    def setting(self, name: str) -> str:
        """Return a setting of the server; empty where this version has it not."""
        return str(self.one("SELECT coalesce(current_setting(%s, true), '') AS value", name)["value"])


_READS = """
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = %s
AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
"""


def judged(check: str, level: Level, found: str, fix: str = "") -> Finding:
    """Return a finding about the database: with a remedy unless it is well."""
    return Finding("postgres", check, level, found, "" if level in {"ok", "note"} else fix)
