"""A captured table in, what its rows ask of the broker out: sizes, topics, and how old is what was not published yet.

Cheap on a table of any size: it looks at a sample of a few hundred pages, and at the newest rows by an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from pipeline.postgres.diagnosis.look import Capture
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["Retained", "retained"]

_PAGES = 500
_TIMEOUT_MS = 5000
_OVERHEAD_BYTES = 512  # headers, ids and the batch around a record


@dataclass(frozen=True, slots=True)
class Retained:
    """What was seen. ``routes`` are values of the routing column, each with the size of its largest record.

    ``unpublished_s`` is the age of the oldest row that was not published yet, at most; None where it is not known.
    """

    routes: Mapping[str, int] = field(default_factory=dict)
    whole: bool = True  # all rows were looked at
    unpublished_s: float | None = None

    @property
    def largest_bytes(self) -> int:
        """The size of the largest record."""
        return max(self.routes.values(), default=0)


def retained(dsn: str, capture: Capture, *, route: str, key: str, payload: str) -> Retained:
    """Look at the first captured table by its columns. Empty where it is not as the file has it. Raises SourceError."""
    if not capture.tables:
        return Retained()
    schema, _, name = capture.tables[0].partition(".")
    table = sql.Identifier(schema, name)
    try:
        with psycopg.connect(alive(dsn, "pipeline-doctor"), autocommit=True) as conn:
            conn.execute(f"SET statement_timeout = {_TIMEOUT_MS}".encode())
            pages = conn.execute("SELECT pg_relation_size(%s::regclass) / 8192", (table.as_string(conn),)).fetchone()
            total = int(pages[0]) if pages else 0
            percent = min(100.0, 100 * _PAGES / total) if total else 100.0
            there = [str(one) for (one,) in conn.execute(_COLUMNS, (table.as_string(conn),))]
            route, key, payload = (capture.own(one, there) for one in (route, key, payload))
            columns: dict[str, sql.Composable] = {
                "route": sql.Identifier(route),
                "key": sql.Identifier(key),
                "payload": sql.Identifier(payload),
            }
            kind = conn.execute(_TYPE, (table.as_string(conn), payload)).fetchone()
            if kind is not None and not kind[0]:  # of text and bytes alone the length is known without reading them
                columns["payload"] = sql.SQL("{}::text").format(columns["payload"])
            rows = conn.execute(
                sql.SQL(_SAMPLE).format(table=table, overhead=_OVERHEAD_BYTES, **columns), (percent,)
            ).fetchall()
            waits = conn.execute(_UNPUBLISHED, (capture.slot,)).fetchone() if _ours(capture) else None
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable, psycopg.errors.WrongObjectType):
        return Retained()  # which other findings say
    except (psycopg.errors.QueryCanceled, psycopg.errors.InsufficientPrivilege):
        return Retained(whole=False)
    except psycopg.Error as error:
        raise translated(error) from error
    age = waits[0] if waits else None
    return Retained({str(one): int(size) for one, size in rows}, percent >= 100, None if age is None else float(age))


def _ours(capture: Capture) -> bool:
    return capture.tables[0] == "pipeline.outbox"


_SAMPLE = """
SELECT {route}::text, max(coalesce(octet_length({payload}), 0) + octet_length({key}::text) + {overhead})
FROM {table} TABLESAMPLE SYSTEM (%s) WHERE {route} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC LIMIT 1000
"""
_COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_TYPE = """
SELECT atttypid IN ('bytea'::regtype, 'text'::regtype, 'varchar'::regtype) FROM pg_attribute
WHERE attrelid = %s::regclass AND attname = %s
"""
_UNPUBLISHED = """
WITH published AS (SELECT updated_at AT TIME ZONE 'UTC' AS at FROM pipeline.relay_position WHERE slot = %s),
     newest AS (SELECT created_at FROM pipeline.outbox ORDER BY seq DESC LIMIT 1000)
SELECT extract(epoch FROM (clock_timestamp() AT TIME ZONE 'UTC') - min(created_at))::float8
FROM newest WHERE created_at > (SELECT at FROM published)
"""
