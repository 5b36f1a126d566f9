"""A connector's tables in, the rows that capture must have published out: their ids first, whole rows by id later.

The ids are those of one snapshot. ``await_passed`` tells when capture has confirmed a position of the WAL that was read
after it: from then on each of these rows is on its topic, or was lost. Works for any table: it needs no column of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from pipeline.capture import Routed, Unroutable
from pipeline.errors import SourceError
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.poll_position import ACTIVE
from pipeline.postgres.table import identifier, rows_of, type_name

__all__ = ["Range", "Retained", "Source"]

_FETCH = 5000
_LOOK_S = 0.2
_NAME = "pipeline-reconcile"

Route = tuple[Sequence[str], Callable[..., Routed]]
"""The columns that are needed, and what makes a record of their bytes; raises Unroutable."""


@dataclass(frozen=True, slots=True)
class Source:
    """One table. ``names`` routes without the value, ``whole`` with it; ``order`` sorts rows, empty: as they come."""

    relation: Relation
    names: Route
    whole: Route
    event_id: str
    time: str
    order: str


@dataclass(frozen=True, slots=True)
class Range:
    """Rows of at or after ``since`` and before ``until``, by the time column of their table."""

    since: datetime | None = None
    until: datetime | None = None


class Retained:
    """The rows of ``sources`` within ``range_``, behind all of ``slots``. Raises SourceError. Close it."""

    def __init__(self, dsn: str, slots: Sequence[str], sources: Sequence[Source], range_: Range) -> None:
        self._slots = slots
        self._sources = sources
        self._range = range_
        self._lsn = self._snapshot = ""
        try:
            self._conn = psycopg.connect(alive(dsn, "pipeline-reconcile"), autocommit=True)
        except psycopg.Error as error:
            raise translated(error) from error

    def close(self) -> None:
        """End the connection."""
        self._conn.close()

    def ids(self) -> Iterator[list[tuple[str, str, int]]]:
        """Give event id, topic and time in ms of each row that is committed now, some thousand at a time.

        The topic is empty where the row names no possible one, the time 0 where the table has none.
        """
        try:
            with self._conn.transaction():
                self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                row = self._conn.execute("SELECT pg_current_snapshot()::text").fetchone()
                self._snapshot = str(row[0]) if row else ""  # from here on nothing new is seen …
                row = self._conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
                self._lsn = str(row[0]) if row else ""  # … and all that is seen was committed before this
                for source in self._sources:
                    self._conn.execute(sql.SQL("DECLARE ids NO SCROLL CURSOR FOR {}").format(self._query(source)))
                    fetch = f"FETCH {_FETCH} FROM ids".encode()
                    while found := [_named(source, row) for row in self._rows(fetch)]:
                        yield found
                    self._conn.execute("CLOSE ids")
        except psycopg.Error as error:
            raise translated(error) from error

    def await_passed(self, wait_s: float) -> None:
        """Wait until capture has passed what ``ids`` gave. Raises SourceError where it has not, and nobody knows."""
        deadline = time.monotonic() + wait_s
        while waited_for := [slot for slot in self._slots if not self._passed(slot)]:
            if time.monotonic() > deadline:
                raise SourceError(
                    f"slot {waited_for[0]}: {self._lsn} was not confirmed within {wait_s:.0f} s: what is not published "
                    "yet cannot be told from what is lost",
                    remedy="let the relay catch up (pipeline outbox status), or give it longer with --wait",
                    retryable=True,
                )
            time.sleep(_LOOK_S)

    def _passed(self, slot: str) -> bool:
        """Tell whether a slot is past what ``ids`` gave. Raises SourceError where nobody reads it."""
        try:
            values = {"lsn": self._lsn, "snapshot": self._snapshot, "slot": slot}
            row = self._conn.execute(_PASSED, values).fetchone()
        except psycopg.Error as error:
            raise translated(error) from error
        passed, active = row or (False, False)
        if not passed and not active:
            raise SourceError(
                f"slot {slot} {'does not exist' if row is None else 'is read by nobody'}: what is not "
                "published yet cannot be told from what is lost",
                remedy="start the relay, or Debezium, on this slot, and compare while it runs",
            )
        return bool(passed)

    def fetch(self, ids: Sequence[str]) -> dict[str, Routed | Unroutable]:
        """Return the records of rows that are still there, by their ids."""
        found: dict[str, Routed | Unroutable] = {}
        try:
            for source in self._sources:
                kind = sql.SQL(type_name(self._conn, source.relation, source.event_id).replace("%", "%%"))
                query = sql.SQL("SELECT {} FROM {} WHERE {} = ANY(CAST(%s AS {}[]))").format(
                    _list(source.whole[0]), identifier(source.relation), sql.Identifier(source.event_id), kind
                )
                for row in self._rows(query, (list(ids),)):
                    record = _routed(source.whole, row)
                    event_id = _id(record.record if isinstance(record, Unroutable) else record)
                    found.setdefault(event_id, record)
        except psycopg.Error as error:
            raise translated(error) from error
        return found

    def _query(self, source: Source) -> sql.Composed:
        bounds = [
            sql.SQL("{} {} {}").format(sql.Identifier(source.time), sql.SQL(sign), sql.Literal(_naive(at)))
            for sign, at in ((">=", self._range.since), ("<", self._range.until))
            if at is not None
        ]
        return sql.SQL("SELECT {} FROM {}{}{}").format(
            _list(source.names[0]),
            identifier(source.relation),
            sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(bounds)) if bounds else sql.SQL(""),
            sql.SQL(" ORDER BY {}").format(sql.Identifier(source.order)) if source.order else sql.SQL(""),
        )

    def _rows(self, query: bytes | sql.Composed, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        return rows_of(self._conn.execute(query, values or None, binary=True).pgresult)


def _named(source: Source, row: tuple[Any, ...]) -> tuple[str, str, int]:
    record = _routed(source.names, row)
    if isinstance(record, Unroutable):
        return _id(record.record), "", record.record[4] if source.time else 0
    return _id(record), record[0], record[4] if source.time else 0


def _routed(route: Route, row: tuple[Any, ...]) -> Routed | Unroutable:
    try:
        return route[1](*row)
    except Unroutable as error:
        return error


def _id(record: Routed) -> str:
    found = next(value for name, value in record[3] if name == "id")
    return found.decode(errors="replace") if isinstance(found, bytes) else found or ""


def _list(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _naive(at: datetime) -> datetime:
    """Return a moment as a column without zone has it: in UTC."""
    return at.astimezone(UTC).replace(tzinfo=None)


# A poller has passed a snapshot when it has taken all that the snapshot sees.
# The way that somebody reads now counts; a snapshot alone has passed when it is published.
_PASSED = f"""
SELECT passed, active FROM (
SELECT pg_snapshot_xmax(taken) >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot) AND NOT EXISTS (
           SELECT FROM pg_snapshot_xip(taken) AS xid WHERE pg_visible_in_snapshot(xid, %(snapshot)s::pg_snapshot))
       AS passed, {ACTIVE} AS active, 1 AS way
FROM pipeline.poll_position WHERE slot = %(slot)s
UNION ALL
SELECT confirmed_flush_lsn >= %(lsn)s::pg_lsn, active, 2 FROM pg_replication_slots
WHERE slot_name = %(slot)s AND database = current_database()
UNION ALL
SELECT true, false, 3 FROM pipeline.relay_position WHERE slot = %(slot)s AND starts_with(slot, 'snapshot:')
) AS found ORDER BY active DESC, way LIMIT 1
"""  # noqa: S608 — of constants
