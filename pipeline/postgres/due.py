"""Rows whose time has come in, rows of the outbox out; ticks in, their jobs out. Each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pipeline.job import Wanted, store_jobs
from pipeline.outbox import Outbox, SchemaIds, drive
from pipeline.postgres.kept import KeptConnection
from pipeline.postgres.tidy import tidy
from pipeline.schedule import Schedule
from pipeline.writers.psycopg import executor

__all__ = ["DueStore"]


class DueStore:
    """One connection, made when it is needed and again after it was lost. One thread only.

    ``moved`` makes the answer of ``move`` from lateness in seconds and the server's time.
    """

    def __init__(
        self, dsn: str, outbox: Outbox, moved: Callable[[list[float], datetime], Any], *, keep_days: int = 7
    ) -> None:
        self._kept = KeptConnection(dsn, "pipeline-scheduler")
        self._outbox = outbox
        self._moved = moved
        self._keep_days = keep_days
        self._schema_ids = SchemaIds()
        into, self._extra = outbox.taking("(SELECT * FROM taken ORDER BY due_at, id) AS ordered")
        self._move_sql = _MOVE.replace("INTO_OUTBOX", into)

    def close(self) -> None:
        """Close the connection."""
        self._kept.close()

    def declare(self, schedules: Sequence[Schedule]) -> None:
        """Store schedules. One that is new, or changed, begins now: what it would have done before is not made up."""
        with self._kept.open() as conn, conn.transaction():
            for one in schedules:
                conn.execute(_DECLARE, (one.name, one.cron, one.timezone, one.missed, one.overlap, one.queue))

    def decided(self, schedules: Sequence[Schedule]) -> Mapping[str, datetime]:
        """Return the time up to which ticks were decided."""
        ours = {one.name: (one.cron, one.timezone, one.missed, one.overlap, one.queue) for one in schedules}
        with self._kept.open() as conn:
            rows = conn.execute(_DECIDED, (list(ours),)).fetchall()
        return {name: last for name, last, *rest in rows if ours[name] == tuple(rest)}

    def move(self, most: int) -> Any:
        """Move due rows to the outbox."""
        with self._kept.open() as conn, conn.transaction():
            row = conn.execute(self._move_sql.encode(), (most, *self._extra)).fetchone()
            assert row is not None
            drive(self._outbox.leave(row[2] or []), executor(conn))
        return self._moved(row[0] or [], row[1])

    def make(self, schedule: Schedule, at: datetime, job: Wanted) -> Literal["made", "skipped", "known"]:
        """Make one tick in one transaction with its job."""
        with self._kept.open() as conn, conn.transaction():
            if conn.execute(_TICK, (schedule.name, at)).fetchone() is None:
                return "known"
            conn.execute(
                "UPDATE pipeline.schedule SET last_at = greatest(last_at, %s) WHERE name = %s", (at, schedule.name)
            )
            if schedule.overlap == "skip" and conn.execute(_UNFINISHED, (schedule.name, at)).fetchone() == (True,):
                return "skipped"
            drive(store_jobs([job], self._outbox, self._schema_ids), executor(conn))
            conn.execute(
                "UPDATE pipeline.tick SET job_id = %s WHERE schedule = %s AND at = %s", (job.id, schedule.name, at)
            )
            return "made"

    def tidy(self) -> bool:
        """Fold counters, delete what is past its retention: a part of it; tell whether there may be more."""
        with self._kept.open() as conn:
            return tidy(conn, keep_days=self._keep_days)


# By place in the table, so that no plan can ever read what is not due. SKIP LOCKED: who comes second takes others.
_MOVE = """
WITH taken AS (
    DELETE FROM pipeline.due WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM pipeline.due WHERE due_at <= now() ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING *
), stored AS (INTO_OUTBOX), told AS (
    UPDATE pipeline.job AS j SET state = 'waiting', due_at = NULL FROM taken
    WHERE j.id = taken.id AND j.state IN ('delayed', 'retrying')
)
SELECT array_agg(CAST(extract(epoch FROM clock_timestamp() - due_at) AS float8)), now(), array_agg(id) FROM taken
"""

_DECLARE = """
INSERT INTO pipeline.schedule AS s (name, cron, timezone, missed, overlap, queue, last_at)
VALUES (%s, %s, %s, %s, %s, %s, now())
ON CONFLICT (name) DO UPDATE SET
    last_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.last_at ELSE now() END,
    cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed, overlap = excluded.overlap,
    queue = excluded.queue, changed_at = now()
WHERE (s.cron, s.timezone, s.missed, s.overlap, s.queue)
    IS DISTINCT FROM (excluded.cron, excluded.timezone, excluded.missed, excluded.overlap, excluded.queue)
"""

_DECIDED = """
SELECT name, last_at, cron, timezone, missed, overlap, queue FROM pipeline.schedule WHERE name = ANY (%s) AND NOT paused
"""

_TICK = "INSERT INTO pipeline.tick (schedule, at) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING true"

_UNFINISHED = """
SELECT j.finished_at IS NULL FROM pipeline.tick AS t JOIN pipeline.job AS j ON j.id = t.job_id
WHERE t.schedule = %s AND t.at < %s ORDER BY t.at DESC LIMIT 1
"""
