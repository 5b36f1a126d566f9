"""Settings in; jobs looked at, commanded and waited for, each in a short transaction of its own."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import psycopg
from pydantic import ValidationError

from pipeline import jobs
from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.definition import Handler
from pipeline.endpoints import postgres_dsn
from pipeline.errors import ConfigError, JobError, SourceError
from pipeline.event import Job
from pipeline.job import EnqueueOptions, State
from pipeline.outbox import Steps, drive
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.schedule import Schedule
from pipeline.topics import delay_label, retry_tier
from pipeline.writers.psycopg import executor

__all__ = [
    "cancel_all",
    "coming",
    "edit_text",
    "enqueue_text",
    "explain",
    "perform",
    "plan",
    "retry_all",
    "schedule_rows",
    "wait_for",
]

R = TypeVar("R")
_LOOK_S = 0.1
_PAGE = 1000
_ATTEMPTS_SHOWN = 20


def perform(settings: Settings, steps: Steps[R]) -> R:
    """Do what ``pipeline.jobs`` has, and commit. Raises SourceError, JobError, ConfigError."""
    try:
        with psycopg.connect(alive(postgres_dsn(settings), "pipeline")) as conn:
            return drive(steps, executor(conn))
    except psycopg.Error as error:
        raise translated(error) from error


def wait_for(settings: Settings, job_id: UUID | str, *, timeout_s: float) -> jobs.JobRow:
    """Wait until a job has finished, and return it with its result: ten looks a second, on one connection.

    Raises JobError when it has not finished by then, or where there is no such job; SourceError, ConfigError.
    """
    end = time.monotonic() + timeout_s
    try:
        with psycopg.connect(alive(postgres_dsn(settings), "pipeline"), autocommit=True) as conn:
            while True:
                with conn.transaction():
                    found = drive(jobs.find(job_id), executor(conn))
                if found.finished_at is not None:
                    return found
                if time.monotonic() > end:
                    raise JobError(
                        f"job {job_id} is {found.state} after {timeout_s:g} s",
                        remedy="wait longer; does a worker of its queue run, and is the queue not paused?",
                        retryable=True,
                    )
                time.sleep(_LOOK_S)
    except psycopg.Error as error:
        raise translated(error) from error


def plan(settings: Settings, states: Sequence[State], which: jobs.Which) -> list[dict[str, object]]:
    """Return how many jobs are meant, by queue, type and state: from the counts, where these tell."""
    if which.get("tag") or which.get("since"):
        kinds = Counter(tuple(kind) for page in _pages(settings, states, which) for _, *kind in page)
        found = [(*map(str, kind), n) for kind, n in sorted(kinds.items())]
    else:
        queue, wanted = which.get("queue") or "", which.get("type_name") or ""
        counted = perform(settings, jobs.counts(queue))
        found = [row for row in counted if row[2] in states and wanted in {"", row[1]}]
    return [dict(zip(("queue", "type", "state", "count"), row, strict=True)) for row in found]


def cancel_all(settings: Settings, states: Sequence[State], which: jobs.Which) -> int:
    """Ask for the end of all jobs that are meant, a thousand in a transaction; return how many have been asked."""
    return sum(_on_page(settings, jobs.cancel_many, page) for page in _pages(settings, states, which))


def retry_all(settings: Settings, states: Sequence[State], which: jobs.Which) -> tuple[int, int]:
    """Send all jobs that are meant again; return how many, and how many could not be: key taken, or row gone."""
    sent = asked = 0
    for page in _pages(settings, states, which):
        asked += len(page)
        sent += len(_on_page(settings, jobs.retry_many, page))
    return sent, asked - sent


def _on_page(
    settings: Settings, command: Callable[[list[UUID | str]], Steps[R]], page: Sequence[tuple[UUID, str, str, State]]
) -> R:
    """Command a page; once more where it and what workers tell of its jobs waited for each other."""
    ids: list[UUID | str] = [one[0] for one in page]
    try:
        return perform(settings, command(ids))
    except SourceError as error:
        if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
            raise
    return perform(settings, command(ids))


def _pages(
    settings: Settings, states: Sequence[State], which: jobs.Which
) -> Iterator[list[tuple[UUID, str, str, State]]]:
    for state in states:
        before = None
        narrowed: jobs.Which = {**which, "state": state}
        while page := perform(settings, jobs.matching(before=before, limit=_PAGE, **narrowed)):
            yield page
            before = page[-1][0]


def edit_text(app: Pipeline, settings: Settings, job_id: str, arguments: str) -> None:
    """Give a delayed job other arguments, as JSON. Raises ConfigError, JobError."""
    found = perform(settings, jobs.find(job_id))
    perform(settings, app.edit(found.id, _job(app, found.type, arguments)))


def enqueue_text(app: Pipeline, settings: Settings, name: str, arguments: str, options: EnqueueOptions) -> UUID:
    """Enqueue a job by the name of its type and its arguments as JSON. Raises ConfigError for what does not fit."""
    job = _job(app, name, arguments)
    return perform(settings, app._store_jobs([job], options))[0]  # noqa: SLF001 — the one builder behind all of them


def _job(app: Pipeline, name: str, arguments: str) -> Job:
    model = _model(app, name)
    try:
        return model.model_validate_json(arguments)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'JSON'}: {one['msg']}" for one in found)
        raise ConfigError(f"{name}: {text}", remedy=f"fields are: {', '.join(model.model_fields)}") from None


def explain(app: Pipeline, name: str) -> list[dict[str, object]]:
    """Return a job type's attempts: when at the latest, after what wait, by which topic; and what its breaker does."""
    handler = _handler(app, name)
    policy, rows, at_s = handler.retry, [], 0.0
    for attempt in range(1, min(policy.attempts, _ATTEMPTS_SHOWN) + 1):
        delay_s = policy.delay_s(attempt - 1) if attempt > 1 else 0.0
        at_s += delay_s * (1 + policy.jitter)
        topic = handler.topic if attempt == 1 else retry_tier(handler.group, delay_s)
        rows.append({"attempt": attempt, "wait": delay_label(delay_s), "at the latest": _span(at_s), "topic": topic})
    if policy.attempts > _ATTEMPTS_SHOWN:
        rest = policy.attempts - _ATTEMPTS_SHOWN
        at_s += rest * policy.cap_s * (1 + policy.jitter)
        rows.append({"attempt": f"… {policy.attempts}", "wait": "", "at the latest": _span(at_s), "topic": ""})
    keep = {spec.name: spec.config.get("retention.ms", "") for spec in app.groups[handler.group].specs()}
    for row in rows:
        kept_ms = keep.get(str(row["topic"]), "")
        row["retention"] = _span(int(kept_ms) / 1000) if kept_ms else ""
    if (breaker := handler.breaker) is not None:
        kinds = ", ".join(kind.__name__ for kind in policy.uncounted)
        wait = f"{delay_label(breaker.cool_down_s)} to {delay_label(breaker.cap_s)}"
        opens = f"{breaker.threshold} of {kinds} within {_span(breaker.window_s)}, {breaker.share:.0%} of all attempts"
        rows.append({"attempt": "breaker", "wait": wait, "at the latest": "", "topic": opens, "retention": ""})
    rows.append({"attempt": "dead", "wait": "", "at the latest": "", "topic": f"{handler.group}.dlq", "retention": "∞"})
    return rows


def schedule_rows(settings: Settings, app: Pipeline | None) -> list[dict[str, object]]:
    """Return schedules with their last and next tick, those of the database and of the application."""
    now = datetime.now(UTC)
    ours = {one.name: one for one in app.schedules} if app else {}
    rows = []
    for name, cron, timezone, missed, overlap, paused, at, job_id in perform(settings, jobs.schedules()):
        one = ours.pop(name, None) or Schedule(name, cron, timezone, "", missed=missed, overlap=overlap)
        rows.append(_schedule_row(one, now, "paused" if paused else "active", at, job_id))
    return rows + [_schedule_row(one, now, "never run: no scheduler has it", None, None) for one in ours.values()]


def coming(settings: Settings, app: Pipeline | None, count: int) -> list[dict[str, object]]:
    """Return the next ``count`` ticks of each schedule, the nearest first; none of those that are paused."""
    now = datetime.now(UTC)
    found: list[tuple[datetime, str]] = []
    ours = {one.name: one for one in app.schedules} if app else {}
    for name, cron, timezone, _, _, paused, *_ in perform(settings, jobs.schedules()):
        one = ours.pop(name, None) or Schedule(name, cron, timezone, "")
        found += [(at, name) for at in itertools.islice(one.after(now), 0 if paused else count)]
    found += [(at, one.name) for one in ours.values() for at in itertools.islice(one.after(now), count)]
    return [{"at": at, "name": name} for at, name in sorted(found)]


def _schedule_row(plan: Schedule, now: datetime, state: str, last: object, job_id: object) -> dict[str, object]:
    return {
        "name": plan.name, "cron": plan.cron, "timezone": plan.timezone, "missed": plan.missed,
        "overlap": plan.overlap, "state": state, "next": next(plan.after(now), None), "last": last, "job": job_id,
    }  # fmt: skip


def _model(app: Pipeline, name: str) -> type[Job]:
    known = {model.message_type.name: model for model in app.messages if issubclass(model, Job)}
    if name not in known:
        raise ConfigError(f"no job {name!r} in this application", remedy=f"jobs are: {', '.join(known) or 'none'}")
    return known[name]


def _handler(app: Pipeline, name: str) -> Handler:
    model = _model(app, name)
    group = app.groups.get(app.topic_of(model))
    handler = group.handler(group.name, name) if group else None
    if handler is None:
        raise ConfigError(f"job {name}: nobody handles it in this application", remedy=f"@app.job({model.__name__})")
    return handler


def _span(seconds: float) -> str:
    """``2 d 3 h``, ``5 min``: two units at most."""
    units: list[tuple[str, int]] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)]
    parts, left = [], round(seconds)
    for unit, size in units:
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"
