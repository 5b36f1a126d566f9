"""What people ask and command of jobs in, the statements that do it out. Pure: ``app.run(conn, …)`` runs them.

All in the caller's transaction, as enqueueing is. Lists are read by index, one page after another, and counts are
kept: nothing here reads more the more jobs there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from pipeline.errors import ConfigError, JobError
from pipeline.job import State
from pipeline.outbox import Statement, Steps

__all__ = [
    "JobRow",
    "cancel",
    "counts",
    "find",
    "listing",
    "pause",
    "reschedule",
    "resume",
    "retry",
    "schedules",
]

_FIELDS = (
    "id", "queue", "type", "state", "priority", "tags", "attempts", "created_at", "due_at", "started_at", "finished_at",
    "seen_at", "worker", "progress", "total", "result", "error", "parent", "children", "cancel_at", "terms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobRow:
    """What is known of one tracked job. ``seen_at`` is the last sign of life; ``cancel_at`` when its end was asked.

    ``terms`` are those of ``timeout_s``, ``retry`` and ``expires_s`` that it was enqueued with.
    """

    id: UUID
    queue: str
    type: str
    state: State
    priority: str
    tags: Sequence[str] | None
    attempts: int
    created_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    seen_at: datetime | None
    worker: str | None
    progress: float | None
    total: float | None
    result: Any
    error: str | None
    parent: UUID | None
    children: int
    cancel_at: datetime | None
    terms: Mapping[str, Any] | None


def find(job_id: UUID | str) -> Steps[JobRow]:
    """Return one job. Raises JobError where there is no such job (or it is not tracked, or was deleted since)."""
    rows = yield Statement(_FIND, [(_id(job_id),)], returns=True)
    if not rows:
        raise JobError(
            f"no job {job_id}", remedy="is it tracked, of this database, and younger than the scheduler's --keep-days?"
        )
    return JobRow(*rows[0])


def listing(
    *,
    queue: str = "",
    type_name: str = "",
    state: str = "",
    tag: str = "",
    before: UUID | str | None = None,
    limit: int = 50,
) -> Steps[list[JobRow]]:
    """Return jobs, the newest first, of those that all filters let through; ``before`` is the last id of a page.

    Reads at most a page of each kind (queue, type and state) that is asked for; with ``tag`` what has that tag.
    """
    edge = _id(before) if before else "ffffffff-ffff-ffff-ffff-ffffffffffff"
    given: tuple[object, ...]
    if tag:
        sql, given = _BY_TAG, (tag, edge, queue, queue, type_name, type_name, state, state, limit)
    elif queue or type_name or state:
        sql, given = _BY_KIND, (queue, queue, type_name, type_name, state, state, edge, limit, limit)
    else:
        sql, given = _NEWEST, (edge, limit)
    rows = yield Statement(sql, [given], returns=True)
    return [JobRow(*row) for row in rows]


def counts(queue: str = "") -> Steps[list[tuple[str, str, str, int]]]:
    """Return queue, type, state and how many there are."""
    rows = yield Statement(_COUNTS, [(queue, queue)], returns=True)
    return [cast(tuple[str, str, str, int], tuple(row)) for row in rows]


def cancel(job_id: UUID | str) -> Steps[State]:
    """Ask for the end of a job, and return its state now.

    What has not left for Kafka is ``cancelled`` at once; anything else within a second or two, by a worker: before it
    begins, or in the middle where it is a coroutine or looks at ``ctx.cancelled``. Raises JobError for a finished one.
    """
    found = yield from find(job_id)
    if found.finished_at is not None:
        raise JobError(f"job {job_id} is {found.state}: there is nothing to cancel")
    rows = yield Statement("SELECT state FROM pipeline.cancel_jobs(ARRAY[CAST(%s AS uuid)])", [(_id(job_id),)], True)
    return cast(State, rows[0][0]) if rows else found.state


def reschedule(job_id: UUID | str, *, run_at: datetime | None = None, delay_s: float = 0) -> Steps[datetime]:
    """Give a delayed job another time, and return it. Raises JobError where it is not delayed any more."""
    if run_at is not None and run_at.utcoffset() is None:
        raise ConfigError(f"run_at={run_at.isoformat()} has no time zone", remedy="datetime(…, tzinfo=UTC)")
    when = None if run_at is None else run_at.isoformat()
    rows = yield Statement(_RESCHEDULE, [(when, float(delay_s), _id(job_id))], returns=True)
    if not rows:
        yield from _refused(job_id, "delayed")
    return cast(datetime, rows[0][0])


def retry(job_id: UUID | str) -> Steps[None]:
    """Send a dead or cancelled job to its queue again, from its first attempt. Its dead letter counts as redriven.

    Raises JobError where it is neither, or where its outbox row is gone (see ``pipeline dlq redrive`` then).
    """
    found = yield from find(job_id)
    if found.state not in {"dead", "cancelled"}:
        raise JobError(f"job {job_id} is {found.state}: only a dead or cancelled one is sent again")
    rows = yield Statement(_AGAIN, [(_id(job_id),)], returns=True)
    if not rows:
        raise JobError(
            f"job {job_id}: its outbox row is not there any more",
            remedy="pipeline dlq redrive, where it died; or enqueue it anew",
        )
    yield Statement(_WAITING, [(_id(job_id),)])
    yield Statement(_REDRIVEN, [(_id(job_id),)])


def pause(queue: str) -> Steps[None]:
    """Let no job of a queue (full name) begin: obeyed by every connected worker within two seconds."""
    yield Statement(_PAUSE, [(queue, True)])


def resume(queue: str) -> Steps[None]:
    """Let jobs of a queue begin again."""
    yield Statement(_PAUSE, [(queue, False)])


def schedules() -> Steps[list[tuple[Any, ...]]]:
    """Return name, cron, timezone, missed, overlap, paused, and time and job of the latest tick, of every schedule."""
    rows = yield Statement(_SCHEDULES, [()], returns=True)
    return rows


def _refused(job_id: UUID | str, wanted: str) -> Steps[None]:
    found = yield from find(job_id)
    raise JobError(f"job {job_id} is {found.state}, not {wanted}")


def _id(job_id: UUID | str) -> str:
    try:
        return str(UUID(str(job_id)))
    except ValueError:
        raise ConfigError(f"{job_id!r} is not a job's id", remedy="a UUID, as enqueue returns it") from None


_COLUMNS = ", ".join(f"j.{name}" for name in _FIELDS)

_FIND = f"SELECT {_COLUMNS} FROM pipeline.job AS j WHERE j.id = CAST(%s AS uuid)"  # noqa: S608 — fixed names

_NEWEST = f"SELECT {_COLUMNS} FROM pipeline.job AS j WHERE j.id < CAST(%s AS uuid) ORDER BY j.id DESC LIMIT %s"  # noqa: S608 — fixed names

# One short read of the index for each kind of job that there is; the kinds come from the counts. Rows are compared as a
# whole, not column by column: only the index job_state has that order. With three equations the planner may take
# the order of the ids from the primary key, and read the table for a kind that is rarer than it thinks.
_BY_KIND = f"""
WITH kinds AS (
    SELECT DISTINCT queue, type, state FROM (
        SELECT queue, type, state FROM pipeline.job_count UNION ALL SELECT queue, type, state FROM pipeline.job_delta
    ) AS c
    WHERE (%s = '' OR queue = %s) AND (%s = '' OR type = %s) AND (%s = '' OR state = %s)
)
SELECT {_COLUMNS} FROM kinds AS k, LATERAL (
    SELECT * FROM pipeline.job AS i
    WHERE (i.queue, i.type, i.state, i.id) < (k.queue, k.type, k.state, CAST(%s AS uuid))
      AND (i.queue, i.type, i.state, i.id) >= (k.queue, k.type, k.state, CAST(repeat('0', 32) AS uuid))
    ORDER BY i.queue DESC, i.type DESC, i.state DESC, i.id DESC LIMIT %s
) AS j ORDER BY j.id DESC LIMIT %s
"""  # noqa: S608 — fixed names

_BY_TAG = f"""
SELECT {_COLUMNS} FROM pipeline.job AS j
WHERE j.tags @> ARRAY[CAST(%s AS text)] AND j.id < CAST(%s AS uuid)
  AND (%s = '' OR queue = %s) AND (%s = '' OR type = %s) AND (%s = '' OR state = %s)
ORDER BY j.id DESC LIMIT %s
"""  # noqa: S608 — fixed names

_COUNTS = """
SELECT queue, type, state, CAST(sum(count) AS bigint) FROM (
    SELECT queue, type, state, count FROM pipeline.job_count
    UNION ALL SELECT queue, type, state, count FROM pipeline.job_delta
) AS c WHERE %s = '' OR queue = %s
GROUP BY 1, 2, 3 HAVING sum(count) <> 0 ORDER BY 1, 2, 3
"""

_RESCHEDULE = """
WITH moved AS (
    UPDATE pipeline.due SET
        due_at = coalesce(CAST(CAST(%s AS text) AS timestamptz), clock_timestamp() + make_interval(secs => %s))
    WHERE id = CAST(%s AS uuid) AND due_at < 'infinity' RETURNING id, due_at
)
UPDATE pipeline.job AS j SET due_at = m.due_at FROM moved AS m WHERE j.id = m.id RETURNING m.due_at
"""

# Deleted and inserted under its own id: capture sees an insert, and the id stays that of the job.
_AGAIN = """
WITH row AS (DELETE FROM pipeline.outbox WHERE id = CAST(%s AS uuid) RETURNING *)
INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent)
SELECT id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent FROM row RETURNING id
"""

_WAITING = """
UPDATE pipeline.job SET state = 'waiting', finished_at = NULL, cancel_at = NULL, due_at = NULL
WHERE id = CAST(%s AS uuid)
"""

_REDRIVEN = """
UPDATE pipeline.dead_letter SET state = 'redriven', changed_at = now()
WHERE event_id = CAST(CAST(%s AS uuid) AS text) AND state = 'open'
"""

_PAUSE = """
INSERT INTO pipeline.control (queue, paused) VALUES (%s, %s)
ON CONFLICT (queue) DO UPDATE SET paused = excluded.paused, changed_at = now()
"""

_SCHEDULES = """
SELECT s.name, s.cron, s.timezone, s.missed, s.overlap, s.paused, t.at, t.job_id
FROM pipeline.schedule AS s
LEFT JOIN LATERAL (
    SELECT at, job_id FROM pipeline.tick WHERE schedule = s.name ORDER BY at DESC LIMIT 1) AS t ON true
ORDER BY s.name
"""
