"""Tables that a connector captures in, their layouts and rows out, read by SQL: each column as the WAL would send it.

The values are those of the types' binary form, so that one router makes the same records of a row, however it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import pq, sql

from pipeline.postgres.pgoutput import Column, Relation

__all__ = ["captured", "identifier", "rows_of", "type_name"]


def captured(conn: psycopg.Connection[Any], wanted: Callable[[str, str], bool]) -> list[Relation]:
    """Return the layouts of the tables that are ``wanted``, in the order of their names. Raises psycopg.Error."""
    found = [row for row in conn.execute(_TABLES).fetchall() if wanted(row[1], row[2])]
    made = []
    for oid, schema, table in found:
        columns = tuple(
            Column(name, type_oid, modifier, in_key=False)
            for name, type_oid, modifier in conn.execute(_COLUMNS, (oid,)).fetchall()
        )
        made.append(Relation(oid, schema, table, columns))
    return made


def identifier(relation: Relation) -> sql.Composable:
    """Return a table's name for a statement."""
    return sql.Identifier(relation.schema, relation.table)


def type_name(conn: psycopg.Connection[Any], relation: Relation, column: str) -> str:
    """Return a column's type as SQL writes it. Raises psycopg.Error."""
    oid = next(one.type_oid for one in relation.columns if one.name == column)
    row = conn.execute("SELECT format_type(%s, NULL)", (oid,)).fetchone()
    return str(row[0]) if row else ""


def rows_of(result: pq.abc.PGresult | None) -> Iterator[tuple[bytes | None, ...]]:
    """Give the rows of a result that was asked for with ``binary=True``, as they came."""
    if result is not None:
        columns = range(result.nfields)
        for row in range(result.ntuples):
            yield tuple(result.get_value(row, column) for column in columns)


_TABLES = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 2, 3
"""
_COLUMNS = """
SELECT attname, atttypid::bigint, atttypmod FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
