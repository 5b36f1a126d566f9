"""Appended counts in, folded ones out; and what is past its retention deleted, in small parts."""

from __future__ import annotations

from typing import Any

import psycopg

__all__ = ["fold", "tidy"]

_LOCK = 0x6A6F6273  # "jobs"; any constant that nobody else uses
_PART = 2_000
_KEEP_TICKS_DAYS = 90


def tidy(conn: psycopg.Connection[Any], *, keep_days: int, part: int = _PART) -> bool:
    """Do a bounded part of all that there is, in one transaction; tell whether there may be more.

    ``part`` bounds the jobs of each queue, type and state, and the keys. Where another does it just now, nothing is
    done.
    """
    with conn.transaction():  # a session's lock would stay behind a pooler that gives each statement another session
        if conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone() != (True,):
            return False
        more = fold(conn)
        for statement in (_OLD_JOBS, _OLD_KEYS):
            more |= conn.execute(statement, {"part": part, "keep_days": keep_days}).rowcount >= part
        conn.execute(_OLD_TICKS, (_KEEP_TICKS_DAYS,))
        return more


def fold(conn: psycopg.Connection[Any], most: int = 20_000) -> bool:
    """Add appended counts to the folded ones; tell whether there may be more."""
    return conn.execute(_FOLD, (most,)).fetchone() == (most,)


_FOLD = """
WITH taken AS (
    DELETE FROM pipeline.job_delta WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM pipeline.job_delta LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING *
), folded AS (
    INSERT INTO pipeline.job_count AS c (queue, type, state, count)
    SELECT queue, type, state, sum(count) FROM taken GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (queue, type, state) DO UPDATE SET count = c.count + excluded.count
)
SELECT count(*) FROM taken
"""

# Ids are time-ordered: the oldest of each queue, type and state are found by the index. Beside them are read those that
# finished later than their ids would have it, and children whose parent has not finished. That one is asked for row by
# row, as no plan can then read the table for it.
_OLD_JOBS = """
WITH kinds AS (
    SELECT DISTINCT queue, type, state FROM pipeline.job_count WHERE state IN ('done', 'dead', 'cancelled')
), bound AS (
    SELECT now() - make_interval(days => %(keep_days)s) AS before
), old AS (
    SELECT j.id FROM bound, kinds AS k, LATERAL (
        SELECT id FROM pipeline.job AS one
        WHERE queue = k.queue AND type = k.type AND state = k.state
          AND id < CAST(lpad(to_hex(CAST(extract(epoch FROM bound.before) * 1000 AS bigint)), 12, '0')
                        || '70008000000000000000' AS uuid)
          AND finished_at < bound.before
          AND coalesce((SELECT p.finished_at IS NOT NULL FROM pipeline.job AS p WHERE p.id = one.parent), true)
        ORDER BY id LIMIT %(part)s
    ) AS j
)
DELETE FROM pipeline.job WHERE id IN (SELECT id FROM old)
"""

_OLD_KEYS = """
DELETE FROM pipeline.job_key WHERE key IN (
    SELECT key FROM pipeline.job_key WHERE until < now() ORDER BY until LIMIT %(part)s FOR UPDATE SKIP LOCKED)
"""

_OLD_TICKS = """
DELETE FROM pipeline.tick AS t USING pipeline.schedule AS s
WHERE t.schedule = s.name AND t.at < s.last_at - make_interval(days => %s)
"""
