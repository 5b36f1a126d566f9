"""Settings in; jobs looked at, commanded and waited for, each in a short transaction of its own."""

from __future__ import annotations

import time
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
from pipeline.errors import ConfigError, JobError
from pipeline.event import Job
from pipeline.job import EnqueueOptions
from pipeline.outbox import Steps, drive
from pipeline.postgres.errors import translated
from pipeline.schedule import Schedule
from pipeline.topics import delay_label, retry_tier
from pipeline.writers.psycopg import executor

__all__ = ["enqueue_text", "explain", "perform", "schedule_rows", "wait_for"]

R = TypeVar("R")
_LOOK_S = 0.1
_ATTEMPTS_SHOWN = 20


def perform(settings: Settings, steps: Steps[R]) -> R:
    """Do what ``pipeline.jobs`` has, and commit. Raises SourceError, JobError, ConfigError."""
    try:
        with psycopg.connect(postgres_dsn(settings), connect_timeout=10) as conn:
            return drive(steps, executor(conn))
    except psycopg.Error as error:
        raise translated(error) from error


def wait_for(settings: Settings, job_id: UUID | str, *, timeout_s: float) -> jobs.JobRow:
    """Wait until a job has finished, and return it with its result. Raises JobError when it has not by then."""
    end = time.monotonic() + timeout_s
    while (found := perform(settings, jobs.find(job_id))).finished_at is None:
        if time.monotonic() > end:
            raise JobError(f"job {job_id} is {found.state} after {timeout_s} s", remedy="wait longer", retryable=True)
        time.sleep(_LOOK_S)
    return found


def enqueue_text(app: Pipeline, settings: Settings, name: str, arguments: str, options: EnqueueOptions) -> UUID:
    """Enqueue a job by the name of its type and its arguments as JSON. Raises ConfigError for what does not fit."""
    model = _model(app, name)
    try:
        job = model.model_validate_json(arguments)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        text = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'JSON'}: {one['msg']}" for one in found)
        raise ConfigError(f"{name}: {text}", remedy=f"fields are: {', '.join(model.model_fields)}") from None
    return perform(settings, app._store_jobs([job], options))[0]  # noqa: SLF001 — the one builder behind all of them


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
        plan = ours.pop(name, None) or Schedule(name, cron, timezone, "", missed=missed, overlap=overlap)
        rows.append(_schedule_row(plan, now, "paused" if paused else "active", at, job_id))
    return rows + [_schedule_row(plan, now, "never run: no scheduler has it", None, None) for plan in ours.values()]


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
