"""What people ask and command of jobs in, the statements that do it out. Pure: ``app.run(conn, …)`` runs them.

All in the caller's transaction, as enqueueing is. Lists are read by index, one page after another, and counts are
kept: nothing here reads more the more jobs there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack, cast
from uuid import UUID

from pipeline.errors import ConfigError, JobError
from pipeline.job import Options, State, Wanted, store_jobs
from pipeline.outbox import Outbox, SchemaIds, Statement, Steps

__all__ = [
    "JobRow",
    "Which",
    "cancel",
    "cancel_many",
    "counts",
    "find",
    "listing",
    "matching",
    "pause",
    "pause_schedule",
    "reschedule",
    "resume",
    "resume_schedule",
    "retry",
    "retry_many",
    "schedules",
    "tick",
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


class Which(TypedDict, total=False):
    """Which jobs are meant: those that all of these let through. ``since``: enqueued then or later, with a zone."""

    queue: str
    type_name: str
    state: str
    tag: str
    since: datetime | None


def find(job_id: UUID | str) -> Steps[JobRow]:
    """Return one job. Raises JobError where there is no such job (or it is not tracked, or was deleted since)."""
    rows = yield Statement(_FIND, [(_id(job_id),)], returns=True)
    if not rows:
        raise JobError(
            f"no job {job_id}", remedy="is it tracked, of this database, and younger than the scheduler's --keep-days?"
        )
    return JobRow(*rows[0])


def listing(*, before: UUID | str | None = None, limit: int = 50, **which: Unpack[Which]) -> Steps[list[JobRow]]:
    """Return jobs, the newest first, of those that all filters let through; ``before`` is the last id of a page.

    Reads at most a page of each kind (queue, type and state) that is asked for; with ``tag`` what has that tag.
    """
    rows = yield _page(_COLUMNS, before, limit, **which)
    return [JobRow(*row) for row in rows]


def matching(
    *, before: UUID | str | None = None, limit: int = 1000, **which: Unpack[Which]
) -> Steps[list[tuple[UUID, str, str, State]]]:
    """Return id, queue, type and state of jobs, as ``listing`` does: for commands on many."""
    rows = yield _page("j.id, j.queue, j.type, j.state", before, limit, **which)
    return [cast(tuple[UUID, str, str, State], tuple(row[:4])) for row in rows]


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
        raise JobError(
            f"job {job_id} is {found.state}: there is nothing to cancel", remedy="pipeline jobs show ID tells its end"
        )
    rows = yield Statement("SELECT state FROM pipeline.cancel_jobs(ARRAY[CAST(%s AS uuid)])", [(_id(job_id),)], True)
    return cast(State, rows[0][0]) if rows else found.state


def cancel_many(ids: Iterable[UUID | str]) -> Steps[int]:
    """Ask for the end of jobs as ``cancel`` does, finished ones left alone; return how many have been asked."""
    rows = yield Statement(_CANCEL_MANY, [(_ids(ids),)], returns=True)
    return int(rows[0][0])


def reschedule(job_id: UUID | str, *, run_at: datetime | None = None, delay_s: float = 0) -> Steps[datetime]:
    """Give a delayed job another time, and return it. Raises JobError where it is not delayed any more."""
    Options(delay_s=delay_s, run_at=run_at)  # raises for what cannot be
    when = None if run_at is None else run_at.isoformat()
    rows = yield Statement(_RESCHEDULE, [(when, float(delay_s), _id(job_id))], returns=True)
    if not rows:
        yield from _refused(job_id, "delayed")
    return cast(datetime, rows[0][0])


def retry(job_id: UUID | str) -> Steps[None]:
    """Send a dead or cancelled job to its queue again, from its first attempt. Its dead letter counts as redriven.

    Raises JobError where it is neither, where another unfinished job has its unique key (it takes it again), or where
    its outbox row is gone (see ``pipeline dlq redrive`` then), or never was: a flow's parent that died of its child is
    enqueued with its flow anew.
    """
    found = yield from find(job_id)
    if found.state not in {"dead", "cancelled"}:
        raise JobError(
            f"job {job_id} is {found.state}: only a dead or cancelled one is sent again",
            remedy="enqueue it anew" if found.state == "done" else "wait for its end, or cancel it first",
        )
    if not (yield from retry_many([job_id])):
        if found.error == "ChildFailed":
            raise JobError(
                f"job {job_id}: a child of it failed, and it never began", remedy="enqueue the flow anew: pipeline.flow"
            )
        if held := (yield Statement(_HELD, [(_id(job_id),)], returns=True)):
            raise JobError(
                f"job {job_id}: its unique key is held by job {held[0][0]}, which is not finished",
                remedy="wait for that one or cancel it, then send this one again",
            )
        raise JobError(
            f"job {job_id}: its outbox row is not there any more",
            remedy="pipeline dlq redrive, where it died; or enqueue it anew",
        )


def retry_many(ids: Iterable[UUID | str]) -> Steps[list[UUID]]:
    """Do for many what ``retry`` does; return the ids of those that could be: dead or cancelled, their row there, and
    their unique key free. Of those with one key the newest is sent.
    """
    rows = yield Statement(_AGAIN, [(_ids(ids),)], returns=True)
    return [row[0] for row in rows]


def pause(queue: str) -> Steps[None]:
    """Let no job of a queue (full name) begin: obeyed by every connected worker within two seconds."""
    yield Statement(_PAUSE, [(queue, True)])


def resume(queue: str) -> Steps[None]:
    """Let jobs of a queue begin again."""
    yield Statement(_PAUSE, [(queue, False)])


def pause_schedule(name: str) -> Steps[None]:
    """Make no more ticks of a schedule (full name). Raises JobError where there is none."""
    yield from _hold(name, _PAUSE_SCHEDULE)


def resume_schedule(name: str) -> Steps[None]:
    """Make ticks of a schedule again, from now on: those of the pause are not made up for."""
    yield from _hold(name, _RESUME_SCHEDULE)


def tick(schedule: str, make: Callable[[datetime], Wanted], outbox: Outbox, schema_ids: SchemaIds) -> Steps[UUID]:
    """Make a tick of a schedule now, beside those that its expression makes; return its job's id."""
    rows = yield Statement(_TICK, [(schedule,)], returns=True)
    at = rows[0][0].astimezone(UTC)
    wanted = make(at)
    yield from store_jobs([wanted], outbox, schema_ids)
    yield Statement(_TICKED, [(str(wanted.id), schedule, at.isoformat())])
    return wanted.id


def schedules() -> Steps[list[tuple[Any, ...]]]:
    """Return name, cron, timezone, missed, overlap, paused, and time and job of the latest tick, of every schedule."""
    rows = yield Statement(_SCHEDULES, [()], returns=True)
    return rows


def _refused(job_id: UUID | str, wanted: str) -> Steps[None]:
    found = yield from find(job_id)
    raise JobError(f"job {job_id} is {found.state}, not {wanted}", remedy="pipeline jobs show ID tells where it is")


def _hold(name: str, sql: str) -> Steps[None]:
    if not (yield Statement(sql, [(name,)], returns=True)):
        raise JobError(f"no schedule {name}", remedy="pipeline jobs schedules: full names, once a scheduler had them")


def _page(columns: str, before: UUID | str | None, limit: int, **which: Unpack[Which]) -> Statement:
    queue, kind, state, tag = (str(which.get(name) or "") for name in ("queue", "type_name", "state", "tag"))
    edge = _id(before) if before else "ffffffff-ffff-ffff-ffff-ffffffffffff"
    floor = str(_first_id(which.get("since")))
    given: tuple[object, ...]
    if tag:
        sql, given = _BY_TAG, (tag, edge, floor, queue, queue, kind, kind, state, state, limit)
    elif queue or kind or state:
        sql, given = _BY_KIND, (queue, queue, kind, kind, state, state, edge, floor, limit, limit)
    else:
        sql, given = _NEWEST, (edge, floor, limit)
    return Statement(sql.replace("COLUMNS", columns), [given], returns=True)


def _first_id(since: datetime | None) -> UUID:
    """Return an id that no job has which was enqueued before: ids begin with their milliseconds."""
    if since is None:
        return UUID(int=0)
    if since.utcoffset() is None:
        raise ConfigError(f"since={since.isoformat()} has no time zone", remedy="datetime(…, tzinfo=UTC)")
    return UUID(int=max(0, int(since.timestamp() * 1000)) << 80)


def _ids(ids: Iterable[UUID | str]) -> str:
    return json.dumps([_id(one) for one in ids])


def _id(job_id: UUID | str) -> str:
    try:
        return str(UUID(str(job_id)))
    except ValueError:
        raise ConfigError(f"{job_id!r} is not a job's id", remedy="a UUID, as enqueue returns it") from None


_COLUMNS = ", ".join(f"j.{name}" for name in _FIELDS)

_FIND = f"SELECT {_COLUMNS} FROM pipeline.job AS j WHERE j.id = CAST(%s AS uuid)"  # noqa: S608 — fixed names

_NEWEST = """
SELECT COLUMNS FROM pipeline.job AS j WHERE j.id < CAST(%s AS uuid) AND j.id >= CAST(%s AS uuid)
ORDER BY j.id DESC LIMIT %s
"""

# One short read of the index for each kind of job that there is; the kinds come from the counts. Rows are compared as a
# whole, not column by column: only the index job_state has that order. With three equations the planner may take
# the order of the ids from the primary key, and read the table for a kind that is rarer than it thinks.
_BY_KIND = """
WITH kinds AS (
    SELECT DISTINCT queue, type, state FROM (
        SELECT queue, type, state FROM pipeline.job_count UNION ALL SELECT queue, type, state FROM pipeline.job_delta
    ) AS c
    WHERE (%s = '' OR queue = %s) AND (%s = '' OR type = %s) AND (%s = '' OR state = %s)
)
SELECT COLUMNS FROM kinds AS k, LATERAL (
    SELECT * FROM pipeline.job AS i
    WHERE (i.queue, i.type, i.state, i.id) < (k.queue, k.type, k.state, CAST(%s AS uuid))
      AND (i.queue, i.type, i.state, i.id) >= (k.queue, k.type, k.state, CAST(%s AS uuid))
    ORDER BY i.queue DESC, i.type DESC, i.state DESC, i.id DESC LIMIT %s
) AS j ORDER BY j.id DESC LIMIT %s
"""

_BY_TAG = """
SELECT COLUMNS FROM pipeline.job AS j
WHERE j.tags @> ARRAY[CAST(%s AS text)] AND j.id < CAST(%s AS uuid)
  AND j.id >= CAST(%s AS uuid) AND (%s = '' OR queue = %s) AND (%s = '' OR type = %s) AND (%s = '' OR state = %s)
ORDER BY j.id DESC LIMIT %s
"""

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

_CANCEL_MANY = """
SELECT count(*) FROM pipeline.cancel_jobs(ARRAY(
    SELECT CAST(x AS uuid) FROM json_array_elements_text(CAST(%s AS json)) AS x ORDER BY 1))
"""

# Deleted and inserted under its own id: capture sees an insert, and the id stays that of the job. A unique key is taken
# where it is free; one that was held for a period by a job that has finished is passed by. A holder that this statement
# cannot see has come meanwhile.
_AGAIN = """
WITH asked AS (
    SELECT j.id, j.unique_key FROM pipeline.job AS j WHERE j.state IN ('dead', 'cancelled')
        AND j.id IN (SELECT CAST(x AS uuid) FROM json_array_elements_text(CAST(%s AS json)) AS x)
        AND EXISTS (SELECT FROM pipeline.outbox AS o WHERE o.id = j.id)
    ORDER BY j.id FOR UPDATE
), taken AS (
    INSERT INTO pipeline.job_key AS held (key, job_id)
    SELECT DISTINCT ON (unique_key) unique_key, id FROM asked WHERE unique_key IS NOT NULL ORDER BY unique_key, id DESC
    ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id,
        until = CASE WHEN held.job_id = excluded.job_id AND held.until > clock_timestamp() THEN held.until END
    WHERE held.job_id = excluded.job_id OR held.until <= clock_timestamp()
    RETURNING held.job_id
), free AS (
    SELECT id FROM asked WHERE unique_key IS NULL
    UNION ALL SELECT job_id FROM taken
    UNION ALL (
        SELECT DISTINCT ON (a.unique_key) a.id FROM asked AS a JOIN pipeline.job_key AS k ON k.key = a.unique_key
        JOIN pipeline.job AS h ON h.id = k.job_id
        WHERE k.job_id <> a.id AND k.until > clock_timestamp() AND h.finished_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM asked AS o WHERE o.id = h.id)
        ORDER BY a.unique_key, a.id DESC)
), gone AS (
    DELETE FROM pipeline.outbox WHERE id IN (SELECT id FROM free) RETURNING *
), sent AS (
    INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent)
    SELECT id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent FROM gone ORDER BY id
), told AS (
    UPDATE pipeline.job SET state = 'waiting', finished_at = NULL, cancel_at = NULL, due_at = NULL
    WHERE id IN (SELECT id FROM gone)
), redriven AS (
    UPDATE pipeline.dead_letter SET state = 'redriven', changed_at = now()
    WHERE state = 'open' AND event_id IN (SELECT CAST(id AS text) FROM gone)
)
SELECT id FROM gone ORDER BY id
"""

_HELD = """
SELECT k.job_id FROM pipeline.job AS j JOIN pipeline.job_key AS k ON k.key = j.unique_key
WHERE j.id = CAST(%s AS uuid) AND k.job_id <> j.id
"""

_PAUSE = """
INSERT INTO pipeline.control (queue, paused) VALUES (%s, %s)
ON CONFLICT (queue) DO UPDATE SET paused = excluded.paused, changed_at = now()
"""

_PAUSE_SCHEDULE = "UPDATE pipeline.schedule SET paused = true, changed_at = now() WHERE name = %s RETURNING name"

_RESUME_SCHEDULE = """
UPDATE pipeline.schedule SET paused = false, changed_at = now(), last_at = CASE WHEN paused THEN now() ELSE last_at END
WHERE name = %s RETURNING name
"""

_TICK = "INSERT INTO pipeline.tick (schedule, at) VALUES (%s, clock_timestamp()) RETURNING at"

_TICKED = """
UPDATE pipeline.tick SET job_id = CAST(%s AS uuid)
WHERE schedule = %s AND at = CAST(CAST(%s AS text) AS timestamptz)
"""

_SCHEDULES = """
SELECT s.name, s.cron, s.timezone, s.missed, s.overlap, s.paused, t.at, t.job_id
FROM pipeline.schedule AS s
LEFT JOIN LATERAL (
    SELECT at, job_id FROM pipeline.tick WHERE schedule = s.name ORDER BY at DESC LIMIT 1) AS t ON true
ORDER BY s.name
"""
