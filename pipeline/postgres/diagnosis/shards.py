"""The publications of a table's shards in, whether each key is in exactly one of them, out.

Told by trying keys, so that it does not matter how the row filters are written.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql

from pipeline.finding import Finding
from pipeline.postgres.diagnosis.look import Look, judged

__all__ = ["examine"]

_KEYS = {"uuid": "md5(n::text)::uuid", "bigint": "n::bigint", "integer": "n::integer"}  # else a text
_FIX = "pipeline db shards FILE --execute, for those that are missing; drop a publication whose filter is another one"


def examine(look: Look) -> Iterator[Finding]:
    """Yield a finding for each table of a sharded connector."""
    if not look.capture.shards:
        return
    for table in look.capture.tables:
        types = {str(one["name"]): one["type"] for one in look.rows(_TYPES, table)}
        if (key := look.capture.own(look.capture.key, types)) not in types:
            continue
        filters = [str(one["filter"]) for one in look.rows(_FILTERS, list(look.capture.shards), table)]
        query = _TRY.format(
            hits=sql.SQL(" + ").join(sql.SQL(f"coalesce(({one}), false)::int") for one in [*filters, "false"]),
            value=sql.SQL(_KEYS.get(types[key], "n::text")),
            key=sql.Identifier(key),
        )
        check = f"shards of {table}"
        try:
            tried = look.conn.execute(query).fetchone()
        except psycopg.errors.UndefinedColumn:
            yield judged(check, "note", "have row filters on more than the key: whether all rows are read is not known")
            continue
        assert tried is not None
        unread, twice, example = tried
        if unread:
            yield judged(check, "problem", f"{unread} of 1001 keys are in none, as {example or 'no key'}", _FIX)
        elif twice:
            yield judged(check, "problem", f"{twice} of 1001 keys are in more than one, and published twice", _FIX)
        else:
            yield judged(check, "ok", "each key is in exactly one")


_TYPES = """
SELECT attname AS name, format_type(atttypid, NULL) AS type FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_FILTERS = """
SELECT coalesce(rowfilter, 'true') AS filter FROM pg_publication_tables
WHERE pubname = ANY (%s) AND schemaname || '.' || tablename = %s
"""
_TRY = sql.SQL("""
SELECT count(*) FILTER (WHERE hits = 0), count(*) FILTER (WHERE hits > 1), max({key}::text) FILTER (WHERE hits = 0)
FROM (SELECT {key}, {hits} AS hits FROM (
    SELECT {value} AS {key} FROM generate_series(1, 1000) AS n UNION ALL SELECT NULL) AS keys) AS tried
""")
