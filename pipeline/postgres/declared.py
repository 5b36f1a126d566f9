"""A table's name in, what its catalogue entry says of each column out: whether it can be NULL, and its DEFAULT.

The stream says neither. As it is now, that is, and so may be ahead of the rows that are read.
"""

from __future__ import annotations

import psycopg

from pipeline.errors import SourceError
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["declared"]

_QUERY = """
SELECT a.attname, NOT a.attnotnull, CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
"""


def declared(dsn: str, schema: str, table: str) -> dict[str, tuple[bool, str | None]]:
    """Return column → whether it can be NULL, and its DEFAULT's expression. Raises SourceError."""
    try:
        with psycopg.connect(alive(dsn, "pipeline-relay"), autocommit=True) as conn:
            rows = conn.execute(_QUERY, (schema, table)).fetchall()
    except psycopg.Error as error:
        found = translated(error)
        raise SourceError(found.what, remedy=found.remedy, retryable=found.retryable) from error
    return {name: (optional, default) for name, optional, default in rows}
