"""Captured tables as they are at one moment in, batches of routed rows out; bounded memory, whatever their size.

Each row is routed as an insert. A table's rows come in the order of its column ``seq``, else of its identity column,
else as the server reads them. A snapshot that was cut off begins again from its first row: at least once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.capture import Batch, Routed, Unroutable
from pipeline.errors import SourceError
from pipeline.headers import ORIGINAL_TIME
from pipeline.postgres.changes import Binding
from pipeline.postgres.pgoutput import Column, Relation
from pipeline.postgres.slot import Connection, quoted

__all__ = ["Snapshot", "SnapshotSettings"]

log = logging.getLogger(__name__)

_BATCH_ROWS = 1000
_BATCH_BYTES = 1_000_000
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_TRAILER = b"\xff\xff"
_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind, rn.nspname, r.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 2, 3
"""
_COLUMNS = (
    "SELECT quote_ident(a.attname), a.attname = 'seq' AND a.atttypid IN (20, 21, 23), a.attidentity <> '' "
    "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
    "WHERE a.attnum > 0 AND NOT a.attisdropped AND t.typsend <> 0 AND a.attrelid = "
)


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """``when``: at the first start, at each start; ``repairs``: also when rows may be missing.

    ``wanted`` tells whether schema and table are read, ``selects`` has an own SELECT of some: "schema.table" → SQL.
    ``stamp_now``: records have the present time, and their row's in a header. ``delay_s`` before the first row.
    ``may_be_empty``: that no table is wanted is no error. ``statements`` are run first.
    """

    when: Literal["first", "always"]
    wanted: Callable[[str, str], bool]
    wanted_text: str
    repairs: bool = False
    selects: Mapping[str, str] = field(default_factory=dict)
    stamp_now: bool = False
    delay_s: float = 0.0
    lock_timeout_s: float = 10.0
    may_be_empty: bool = False
    statements: tuple[str, ...] = ()


class Snapshot:
    """One transaction that reads. ``exported`` is the name of the snapshot to take over, "" for one of now.

    ``lsn`` is where the WAL was before a snapshot of now: what commits behind it comes by the stream.
    """

    def __init__(
        self,
        dsn: str,
        settings: SnapshotSettings,
        bind: Binding,
        *,
        exported: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._bind = bind
        self._clock = clock
        self._now = now
        self._begin_at = clock() + settings.delay_s
        self._conn = Connection(dsn, name="pipeline-snapshot")
        try:
            for statement in settings.statements:
                self._conn.rows(statement)
            self.lsn = int(self._conn.rows("SELECT pg_current_wal_lsn() - '0/0'")[0][0] or 0)
            self._conn.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if exported:
                self._conn.rows(f"SET TRANSACTION SNAPSHOT {quoted(exported)}")
            self._conn.rows("SET LOCAL row_security = off")  # hidden rows are an error, not left out
            self._conn.rows("SET LOCAL statement_timeout = 0")
            self._conn.rows(f"SET LOCAL lock_timeout = {int(settings.lock_timeout_s * 1000)}")
            self._tables = self._found()
        except BaseException:
            self._conn.close()
            raise
        self._next: Iterator[bytes | None] = self._rows()
        self._insert: Callable[[bytes, int], Routed] | None = None
        self.count = 0
        """Rows that were read."""

    def read(self, wait_s: float, batch: Batch) -> bool:
        """Add what has come, waiting at most ``wait_s`` for the first of it; False behind the last row."""
        if (left := self._begin_at - self._clock()) > 0:
            time.sleep(min(left, wait_s))
            return True
        records = batch.records
        received = waited = False
        while len(records) < _BATCH_ROWS and batch.size < _BATCH_BYTES:
            row = next(self._next, b"")
            if row == b"":
                return False
            if row is not None:
                self._take(row, batch)
                received = False
            elif not received:
                received = self._conn.receive(0)
            elif waited or records or not self._conn.receive(wait_s):
                break
            else:
                waited = True
        else:
            batch.more = True
        return True

    def close(self) -> None:
        """End the transaction."""
        self._conn.close()

    def _take(self, row: bytes, batch: Batch) -> None:
        assert self._insert is not None
        batch.size += len(row)
        self.count += 1
        try:
            record = self._insert(_tuple(row), 0)
        except Unroutable as error:
            batch.dead[len(batch.records)] = (error, batch.lsn)
            batch.records.append(error.record)
            return
        if self._settings.stamp_now:
            topic, key, value, headers, at_ms, partition = record
            headers = [*headers, (ORIGINAL_TIME, str(at_ms))]
            record = (topic, key, value, headers, int(self._now() * 1000), partition)
        batch.records.append(record)

    def _found(self) -> list[tuple[str, str, str, str]]:
        """Return the tables to read: oid, schema, table, kind; of a partitioned one that is wanted, not its parts."""
        wanted = self._settings.wanted
        found = [
            (str(oid), str(schema), str(table), str(kind))
            for oid, schema, table, kind, root_schema, root in self._conn.rows(_TABLES)
            if wanted(str(schema), str(table)) and not (root and wanted(str(root_schema), str(root)))
        ]
        if not found and not self._settings.may_be_empty:
            raise SourceError(
                f"snapshot: there is no table that {self._settings.wanted_text} takes",
                remedy="create the table, or correct the list",
            )
        return found

    def _rows(self) -> Iterator[bytes | None]:
        """Go through all tables: a row, or None where it has not come yet."""
        for oid, schema, table, kind in self._tables:
            name = f"{_identifier(schema)}.{_identifier(table)}"
            self._conn.rows(f"LOCK TABLE {name} IN ACCESS SHARE MODE")
            select = self._settings.selects.get(f"{schema}.{table}") or self._select(oid, name, kind)
            layout = self._conn.columns(f"SELECT * FROM ({select}) AS s LIMIT 0")  # noqa: S608
            bound = self._bind(Relation(int(oid), schema, table, tuple(Column(*one, in_key=False) for one in layout)))
            if bound is None:
                continue
            self._insert, before = bound[0], self.count
            self._conn.copy(f"COPY ({select}) TO STDOUT (FORMAT binary)")
            first = True
            while (frame := self._conn.frame()) != b"":
                if frame is None:
                    yield None
                    continue
                row, first = _headless(frame) if first else frame, False
                if row != _TRAILER:
                    yield row
            log.info(
                "snapshot of %s.%s: %d rows", schema, table, self.count - before, extra={"action": "snapshot.table"}
            )

    def _select(self, oid: str, name: str, kind: str) -> str:
        columns = self._conn.rows(_COLUMNS + oid + " ORDER BY a.attnum")
        by = next((column for place in (1, 2) for column in columns if column[place] == "t"), None)
        names = ", ".join(str(column[0]) for column in columns)
        only = "ONLY " if kind == "r" else ""  # rows of children are their own tables'
        return f"SELECT {names} FROM {only}{name}" + (f" ORDER BY {by[0]}" if by else "")  # noqa: S608


def _headless(frame: bytes) -> bytes:
    """Take away what stands before the first row of a binary COPY. Raises SourceError."""
    if not frame.startswith(_SIGNATURE):
        raise SourceError("PostgreSQL: COPY: not in binary format", remedy="report it with the server's version")
    return frame[len(_SIGNATURE) + 8 :]


def _tuple(row: bytes) -> bytes:
    """Return a row of a binary COPY as pgoutput has it in an Insert."""
    parts, at = [row[:2]], 2
    while at < len(row):
        size = int.from_bytes(row[at : at + 4], "big", signed=True)
        end = at + 4 + max(size, 0)
        parts += (b"n",) if size < 0 else (b"b", row[at:end])
        at = end
    return b"".join(parts)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
