"""What a handler tells of its job in, what stands in the job's row out. Pure: a journal stores it in batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ConfigError
from pipeline.job import State

__all__ = ["RESULT_BYTES", "Child", "Entry", "JobCancelled", "JobExpired", "Report"]

RESULT_BYTES = 65_536


class JobCancelled(Exception):
    """Raised by ``ctx.raise_if_cancelled()``: the job ends here, and is told as cancelled."""


class JobExpired(Exception):
    """The job was to begin by a time that has passed."""


@dataclass(frozen=True, slots=True)
class Child:
    """A finished child of a flow, as its parent sees it. ``result`` is None where it left none, or failed."""

    id: str
    type: str
    state: State
    result: Any


@dataclass(frozen=True, slots=True)
class Report:
    """A change of one job's row; what is None stays as it was, ``due_at`` apart."""

    id: str
    state: State
    attempts: int
    worker: str | None = None
    started_at: datetime | None = None
    due_at: datetime | None = None
    error: str | None = None
    result: str | None = None
    progress: float | None = None
    total: float | None = None

    def row(self) -> dict[str, Any]:
        """Return it as ``pipeline.settle_jobs`` takes it."""
        return {
            "id": self.id,
            "state": self.state,
            "attempts": self.attempts,
            "worker": self.worker,
            "started_at": None if self.started_at is None else self.started_at.isoformat(),
            "due_at": None if self.due_at is None else self.due_at.isoformat(),
            "error": self.error,
            "result": None if self.result is None else json.loads(self.result),
            "progress": self.progress,
            "total": self.total,
        }


class Entry:
    """One attempt at a tracked job: what its handler tells, and whether it should end. Written by the handler's thread.

    ``begun_s`` is since 1970. ``news`` is set where something is to be stored before the attempt ends, ``stored`` where
    its row says already that the job is done.
    """

    __slots__ = (
        "attempt", "begun_s", "cancelled", "children", "job_id", "news", "progress", "result", "stored", "told",
        "total", "worker",
    )  # fmt: skip

    def __init__(
        self,
        job_id: str,
        attempt: int,
        begun_s: float,
        cancelled: bool,
        children: Callable[[], Sequence[Child]],
        worker: str = "",
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.begun_s = begun_s
        self.cancelled = cancelled
        self.children = children
        self.worker = worker
        self.stored = False
        self.news = False
        self.told = False
        self.progress: float | None = None
        self.total: float | None = None
        self.result: str | None = None

    def tell_progress(self, done: float, total: float | None) -> None:
        """Keep how far it is, until the next report. Raises ConfigError for what is no number."""
        if not (math.isfinite(done) and (total is None or math.isfinite(total))):
            raise ConfigError(f"ctx.progress: {done} of {total}", remedy="finite numbers")
        self.progress = float(done)
        self.total = None if total is None else float(total)
        self.news = True

    def keep_result(self, value: object) -> None:
        """Keep the result. Raises ConfigError where it is no JSON, or too large."""
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            size = len(text.encode())
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"ctx.result: not a JSON value: {error}", remedy="dict, list, str of UTF-8, number, bool or None"
            ) from None
        if "\\u0000" in text:
            raise ConfigError(
                "ctx.result: holds the character U+0000, which PostgreSQL cannot store", remedy="leave it out"
            )
        if size > RESULT_BYTES:
            raise ConfigError(
                f"ctx.result: {size} bytes, the limit is {RESULT_BYTES}",
                remedy="store it elsewhere, and let the result say where",
            )
        self.result = text

    def report(
        self,
        state: State,
        *,
        attempts: int | None = None,
        due_at: datetime | None = None,
        error: str | None = None,
    ) -> Report:
        """Return the report of a change to ``state``."""
        return Report(
            self.job_id,
            state,
            self.attempt if attempts is None else attempts,
            self.worker,
            datetime.fromtimestamp(self.begun_s, UTC),
            due_at,
            error,
            self.result if state == "done" else None,
            self.progress,
            self.total,
        )
