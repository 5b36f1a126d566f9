"""Celery's task functions called as jobs: the task keeps its code, the queue becomes this one.

A task's own retries are obeyed: ``self.retry(countdown=…)``, ``autoretry_for`` and ``max_retries`` say when it comes
again and when it is dead; ``self.request.retries`` counts on. Celery's broker, workers and results are not used.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from celery.exceptions import Ignore, Retry
from celery.exceptions import Reject as Rejected
from pydantic import Field

from pipeline.app import Pipeline
from pipeline.errors import ConfigError
from pipeline.event import Job
from pipeline.retry import LONGEST_DELAY_S, Reject, RetryLater, RetryPolicy

if TYPE_CHECKING:
    from pipeline.context import Context

__all__ = ["CeleryTask", "run_celery_tasks"]

# the task says whether it comes again: what it raises else is the end of it
_TASKS_OWN = RetryPolicy(attempts=1000, first_s=5, factor=4, cap_s=600, fatal=(Exception,))


class CeleryTask(Job, queue="celery", format="json"):
    """A call of a task, by its name."""

    task: str
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, task: Any, *args: Any, **kwargs: Any) -> Self:
        """Return the job for ``task.delay(*args, **kwargs)``. Raises ConfigError for arguments that are no JSON."""
        try:
            json.dumps([args, kwargs])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"task {task.name}: {error}", remedy="pass what JSON can hold, as for Celery") from None
        return cls(task=task.name, args=list(args), kwargs=kwargs)


def run_celery_tasks(app: Pipeline, celery_app: Any, *, retry: RetryPolicy = _TASKS_OWN) -> type[CeleryTask]:
    """Declare the handler that calls the tasks of a Celery application; return the job type.

    ``retry`` is for what a task raises and does not retry by itself: by default that is dead, as in Celery. A result is
    kept where it is JSON and small enough.
    """

    @app.job(CeleryTask, retry=retry)
    def call_task(job: CeleryTask, ctx: Context) -> None:
        task = celery_app.tasks.get(job.task)
        if task is None:
            raise Reject(f"no task {job.task!r} in {celery_app.main}")
        task.push_request(
            id=ctx.event_id, args=job.args, kwargs=job.kwargs, retries=ctx.attempt - 1, called_directly=False,
            is_eager=True, delivery_info={"is_eager": True}, hostname=ctx.group,
        )  # fmt: skip
        try:
            result = task.run(*job.args, **job.kwargs)
        except Ignore:
            return
        except Rejected as error:
            raise Reject(str(error.reason)) from error
        except Retry as error:
            raise RetryLater(_delay_s(error.when)) from error.exc
        finally:
            task.pop_request()
        _keep(ctx, result)

    return CeleryTask


def _delay_s(when: float | datetime | None) -> float:
    """Return the seconds of a countdown, or until a time: at most what a retry may wait."""
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return min(max(0.0, float(when or 0)), LONGEST_DELAY_S)


def _keep(ctx: Context, result: Any) -> None:
    if result is not None:
        with suppress(ConfigError):
            ctx.result(result)
