"""Inbox rows past their retention in, deleted rows out, a few at a time."""

from __future__ import annotations

from typing import Any

import psycopg

from pipeline.postgres.errors import translated

__all__ = ["prune"]

_OLD = "handled_at < clock_timestamp() - make_interval(secs => %(age)s)"
_COUNT = f"SELECT count(*) FROM pipeline.inbox WHERE {_OLD}"  # noqa: S608 — no input
_DELETE = f"""
DELETE FROM pipeline.inbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM pipeline.inbox WHERE {_OLD} LIMIT %(batch)s))
"""  # noqa: S608 — no input


def prune(conn: psycopg.Connection[Any], retention_s: float, *, batch: int, execute: bool) -> int:
    """Delete (or only count) rows that are older, ``batch`` in each transaction; return how many.

    ``conn`` is in autocommit mode. Raises SourceError; what was deleted until then is deleted.
    """
    values = {"age": retention_s, "batch": batch}
    try:
        if not execute:
            row = conn.execute(_COUNT, values).fetchone()
            return int(row[0]) if row else 0
        done = gone = conn.execute(_DELETE, values).rowcount
        while gone == batch:
            gone = conn.execute(_DELETE, values).rowcount
            done += gone
    except psycopg.Error as error:
        raise translated(error) from error
    return done
