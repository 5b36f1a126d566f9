"""A table's layout in, the statements that poll it out; a table that cannot be polled is an error that says why.

New rows are those of transactions that the snapshot taken before did not see: at or above its xmax, or in progress in
it. Both are looked up in an index on the column with the transaction's id, so that a look costs what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from pipeline.errors import SourceError
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.table import captured, identifier

__all__ = ["Statements", "found_table"]

_PAYLOAD_BYTES = 1_000_000
_XID8, _BIGINT, _INTEGER, _BYTEA = 5069, 20, 23, 17


class Statements:
    """What is asked of a table; ``columns`` are those that make a record, the row's number comes last."""

    def __init__(self, relation: Relation, columns: Sequence[str], payload: str, seq: str, xid: str) -> None:
        kind = next(column.type_oid for column in relation.columns if column.name == payload)
        value = sql.Identifier(payload) if kind == _BYTEA else sql.SQL("{}::text").format(sql.Identifier(payload))
        names = {
            "table": identifier(relation),
            "seq": sql.Identifier(seq),
            "xid": sql.Identifier(xid),
            "columns": sql.SQL(", ").join(map(sql.Identifier, columns)),
            "wanted": sql.SQL(", ").join(map(sql.Identifier, dict.fromkeys((*columns, payload, seq, xid)))),
            "size": sql.SQL("coalesce(octet_length({}), 0) + 200").format(value),
            "new": _NEW.format(xid=sql.Identifier(xid)),
            "limit": sql.Literal(_PAYLOAD_BYTES),
        }
        self.look = _LOOK.format(**names)
        """Target snapshot, end of the WAL, and of the new rows: how many, the lowest number and the highest."""
        self.few = _PAGE.format(**names, source=_FEW.format(**names))
        """Rows of a target that has few, by their transactions."""
        self.many = _PAGE.format(**names, source=_MANY.format(**names))
        """Rows of a target that has many, by their numbers: none where none of the next ones is new."""
        self.skip = _SKIP.format(**names)
        """The number up to which ``many`` looked; NULL at the end."""


def found_table(
    conn: psycopg.Connection[Any], wanted: Callable[[str, str], bool], wanted_text: str, seq: str, xid: str
) -> Relation:
    """Return the one table that is wanted, checked. Raises SourceError, with the SQL that mends it; psycopg.Error."""
    relations = captured(conn, wanted)
    if len(relations) != 1:
        names = ", ".join(f"{one.schema}.{one.table}" for one in relations) or "none"
        raise SourceError(
            f"polling reads one table, table.include.list={wanted_text} takes {names}",
            remedy="name one table, or capture by the WAL: pipeline.capture=wal",
        )
    (relation,) = relations
    name = identifier(relation).as_string(conn)
    kinds = {column.name: column.type_oid for column in relation.columns}
    missing = []
    if kinds.get(seq) not in {_BIGINT, _INTEGER}:
        missing.append(f"ALTER TABLE {name} ADD COLUMN {seq} bigint GENERATED ALWAYS AS IDENTITY;")
    if kinds.get(xid) != _XID8:
        missing.append(f"ALTER TABLE {name} ADD COLUMN {xid} xid8 NOT NULL DEFAULT pg_current_xact_id();")
    if missing:
        raise _unfit(name, "it needs a column with a row's number, and one with its transaction", missing)
    row = conn.execute(_FITNESS, {"oid": relation.oid, "seq": seq, "xid": xid}).fetchone()
    by_seq, by_xid, numbered, stamped, cache, sequence = row or (False, False, False, False, None, "")
    if not stamped:
        fix = f"ALTER TABLE {name} ALTER {xid} SET NOT NULL, ALTER {xid} SET DEFAULT pg_current_xact_id();"
        missing.append(fix)
    if not by_seq or not numbered:
        missing.append(f"CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({seq});")
    if not by_xid:
        missing.append(f"CREATE INDEX CONCURRENTLY ON {name} ({xid}, {seq});")
    if missing:
        raise _unfit(name, "rows are found by an index on each of these columns", missing)
    if cache is not None and cache > 1:
        raise _unfit(
            name, f"numbers of {seq} are handed out in blocks of {cache}, so they do not tell which row came first",
            [f"ALTER SEQUENCE {sequence} CACHE 1;"],
        )  # fmt: skip
    return relation


def _unfit(table: str, why: str, fixes: Sequence[str]) -> SourceError:
    remedy = f"{' '.join(fixes)} or capture by the WAL: pipeline.capture=wal"
    return SourceError(f"table {table} cannot be polled: {why}", remedy=remedy)


_NEW = sql.SQL("({xid} >= %(xmax)s::xid8 OR {xid} = ANY (%(xip)s::xid8[]))")

_LOOK = sql.SQL("""
WITH new AS MATERIALIZED (SELECT {seq} AS seq FROM {table} WHERE {new})
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn() - '0/0'::pg_lsn, count(*), min(seq), max(seq) FROM new
""")

_FEW = sql.SQL("""
SELECT {wanted} FROM {table} WHERE {new} AND pg_visible_in_snapshot({xid}, %(target)s::pg_snapshot)
""")

_MANY = sql.SQL("""
SELECT * FROM (
    SELECT {wanted} FROM {table} WHERE {seq} > %(after)s AND {seq} <= %(top)s ORDER BY {seq} LIMIT %(rows)s
) AS next WHERE {new} AND pg_visible_in_snapshot({xid}, %(target)s::pg_snapshot)
""")

# by bytes: a row is taken while those before it are within the limit, so the first one always is
_PAGE = sql.SQL("""
WITH found AS MATERIALIZED ({source}), page AS (
    SELECT * FROM found WHERE {seq} > %(after)s ORDER BY {seq} LIMIT %(rows)s
), measured AS (
    SELECT *, sum({size}) OVER (ORDER BY {seq} ROWS UNBOUNDED PRECEDING) - ({size}) AS "bytes before" FROM page
)
SELECT {columns}, {seq}::bigint FROM measured WHERE "bytes before" < {limit} ORDER BY {seq}
""")

_SKIP = sql.SQL("""
SELECT max({seq}) FROM (
    SELECT {seq} FROM {table} WHERE {seq} > %(after)s AND {seq} <= %(top)s ORDER BY {seq} LIMIT %(rows)s
) AS next
""")

_FITNESS = """
WITH columns AS (
    SELECT a.attnum, a.attname, a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid) AS made
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %(oid)s AND a.attname IN (%(seq)s, %(xid)s)
), indexes AS (
    SELECT c.attname, i.indisunique AND i.indnkeyatts = 1 AS alone
    FROM pg_index i JOIN columns c ON c.attnum = i.indkey[0]
    WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indpred IS NULL
), owned AS (
    SELECT s.seqcache, s.seqrelid::regclass::text AS name
    FROM pg_sequence s WHERE s.seqrelid = pg_get_serial_sequence(%(oid)s::regclass::text, %(seq)s)::regclass
)
SELECT EXISTS (SELECT FROM indexes WHERE attname = %(seq)s),
       EXISTS (SELECT FROM indexes WHERE attname = %(xid)s),
       EXISTS (SELECT FROM indexes WHERE attname = %(seq)s AND alone) OR EXISTS (SELECT FROM owned),
       EXISTS (SELECT FROM columns WHERE attname = %(xid)s AND attnotnull AND made LIKE '%%pg_current_xact_id()%%'),
       (SELECT seqcache FROM owned), (SELECT name FROM owned)
"""
