"""Ids of exact schema texts in, the table that writers look them up in out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from pipeline.postgres.errors import translated

__all__ = ["SchemaIdTable"]

Key = tuple[str, bytes]  # subject, SHA-256 of the exact text


class SchemaIdTable:
    """``pipeline.schema_id``. Every call raises SourceError."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def find(self, keys: Iterable[Key]) -> dict[Key, int]:
        """Return the ids that are stored for these keys."""
        wanted = list(keys)
        subjects, fingerprints = [key[0] for key in wanted], [key[1] for key in wanted]
        try:
            rows = self._conn.execute(_FIND, (subjects, fingerprints)).fetchall()
        except psycopg.Error as error:
            raise translated(error) from error
        return {(str(subject), bytes(fingerprint)): int(schema_id) for subject, fingerprint, schema_id in rows}

    def put(self, ids: Mapping[Key, int]) -> None:
        """Store ids, all or none. One that is there already is replaced: the registry may have been set up anew."""
        rows = [(subject, fingerprint, schema_id) for (subject, fingerprint), schema_id in sorted(ids.items())]
        try:
            with self._conn.transaction(), self._conn.cursor() as cursor:
                cursor.executemany(_PUT, rows)
        except psycopg.Error as error:
            raise translated(error) from error


_FIND = """
SELECT subject, fingerprint, schema_id FROM pipeline.schema_id
JOIN unnest(%s::text[], %s::bytea[]) AS wanted (subject, fingerprint) USING (subject, fingerprint)
"""

_PUT = """
INSERT INTO pipeline.schema_id (subject, fingerprint, schema_id) VALUES (%s, %s, %s)
ON CONFLICT (subject, fingerprint) DO UPDATE SET schema_id = excluded.schema_id, pushed_at = now()
WHERE pipeline.schema_id.schema_id <> excluded.schema_id
"""
