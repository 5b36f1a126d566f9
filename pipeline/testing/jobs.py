"""Reports of jobs and what people command in, their rows out: what PostgreSQL keeps of jobs, in memory.

A worker's ``JobStore``. What is done here is what the functions of ``0003_jobs.sql`` do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pipeline.definition import Queue
from pipeline.job import FINISHED, OnFailure
from pipeline.jobs import JobRow
from pipeline.report import Child, Report
from pipeline.testing.stored import BLOCKED, Row
from pipeline.worker.journal import Control

__all__ = ["Jobs"]


@dataclass(slots=True)
class _Kept:
    """A row, and what of it is not shown."""

    row: JobRow
    unique_key: str | None
    place: int
    on_failure: OnFailure | None
    told: bool = False


class Jobs:
    """Rows of tracked jobs, unique keys, what waits for its time, and what is commanded. ``now`` gives the time (UTC).

    ``keys`` has who holds a unique key, and until when; ``due`` when a row leaves, and the row; ``withdrawn`` those
    that never will.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.keys: dict[str, tuple[UUID, datetime | None]] = {}
        self.due: dict[UUID, tuple[datetime, Row]] = {}
        self.withdrawn: set[UUID] = set()
        self.paused: set[str] = set()
        self._rows: dict[UUID, _Kept] = {}
        self._tokens: dict[str, tuple[float, datetime]] = {}

    # ── what a transaction stored ──────────────────────────────────────────────────────────────────────────────

    def track(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Take rows as ``pipeline.job.store_jobs`` inserts them."""
        for one in told:
            due_at = datetime.fromisoformat(one["run_at"]) if one["run_at"] else None
            if one["delay_s"]:
                due_at = self.now() + timedelta(seconds=one["delay_s"])
            row = JobRow(
                UUID(one["id"]), one["queue"], one["type"], one["state"], one["priority"], one["tags"], 0, self.now(),
                due_at, None, None, None, None, None, None, None, None, UUID(one["parent"]) if one["parent"] else None,
                one["children"], None, one["terms"],
            )  # fmt: skip
            self._rows[row.id] = _Kept(row, one["unique_key"], one["place"], one["on_failure"])

    def wait(self, row: Row) -> None:
        """Keep a row whose time has not come."""
        assert row.due_at is not None
        self.due[row.id] = (row.due_at, row)

    @property
    def leaving(self) -> bool:
        """Whether anything waits for a time; what waits for its children does not."""
        return any(at != BLOCKED for at, _ in self.due.values())

    # ── what is asked ──────────────────────────────────────────────────────────────────────────────────────────

    def rows(self) -> list[JobRow]:
        """Return all rows, the newest first."""
        return sorted((kept.row for kept in self._rows.values()), key=lambda row: row.id, reverse=True)

    def row(self, job_id: UUID) -> JobRow | None:
        """Return one row."""
        return self._rows[job_id].row if job_id in self._rows else None

    def counts(self) -> list[tuple[str, str, str, int]]:
        """Return queue, type, state and how many there are."""
        found = Counter((kept.row.queue, kept.row.type, str(kept.row.state)) for kept in self._rows.values())
        return [(*kind, count) for kind, count in sorted(found.items())]

    # ── what is commanded ──────────────────────────────────────────────────────────────────────────────────────

    def cancel(self, ids: Iterable[UUID]) -> None:
        """Ask for the end of jobs."""
        finished = []
        for kept in [self._rows[one] for one in ids if one in self._rows]:
            row = kept.row
            if row.state in FINISHED:
                continue
            kept.row = replace(row, cancel_at=row.cancel_at or self.now())
            self._withdraw(row.id)
            if row.state in {"blocked", "delayed"}:
                kept.row = replace(kept.row, state="cancelled", finished_at=self.now())
                finished.append(kept)
        self._finish(finished)

    def reschedule(self, job_id: UUID, at: datetime) -> None:
        """Give a delayed job another time."""
        self.due[job_id] = (at, self.due[job_id][1])
        if job_id in self._rows:
            self._rows[job_id].row = replace(self._rows[job_id].row, due_at=at)

    def key(self, job_id: UUID) -> str | None:
        """Return the unique key that a job has or had."""
        return self._rows[job_id].unique_key if job_id in self._rows else None

    def holder(self, job_id: UUID) -> UUID | None:
        """Return another job that has the unique key of this one."""
        other, until = self.keys.get(self.key(job_id) or "", (job_id, None))
        return None if other == job_id or (until is not None and until <= self.now()) else other

    def take_key(self, job_id: UUID) -> None:
        """Give a job its unique key again, where it is free."""
        key = self.key(job_id)
        if key is not None and self.keys.get(key, (None, None))[0] != job_id and self.holder(job_id) is None:
            self.keys[key] = (job_id, None)

    def again(self, job_id: UUID, *, queued: bool = False) -> None:
        """Let a row say that its job waits in its queue; ``queued``: its time has come just now."""
        kept = self._rows.get(job_id)
        if kept is not None and (not queued or kept.row.state in {"delayed", "retrying"}):
            row = replace(kept.row, state="waiting", due_at=None)
            kept.row = row if queued else replace(row, finished_at=None, cancel_at=None)

    # ── what workers ask and tell ──────────────────────────────────────────────────────────────────────────────

    def settle(self, reports: Sequence[Report]) -> None:
        """Store what became of jobs."""
        finished = []
        for one in reports:
            kept = self._rows.get(UUID(one.id))
            if kept is None or kept.row.state in {"done", "cancelled"}:
                continue
            row, ends = kept.row, one.state in FINISHED
            kept.row = replace(
                row,
                state=one.state,
                attempts=max(row.attempts, one.attempts),
                worker=one.worker or row.worker,
                started_at=one.started_at or row.started_at,
                seen_at=self.now(),
                finished_at=self.now() if ends else None,
                due_at=one.due_at,
                error=one.error or row.error,
                result=row.result if one.result is None else json.loads(one.result),
                progress=row.progress if one.progress is None else one.progress,
                total=row.total if one.total is None else one.total,
            )
            if ends:
                finished.append(kept)
        self._finish(finished)

    def control(self, queue: str) -> Control:
        """Return what is commanded of a queue."""
        asked = {
            str(kept.row.id)
            for kept in self._rows.values()
            if kept.row.queue == queue and kept.row.cancel_at is not None and kept.row.state not in FINISHED
        }
        return Control(queue in self.paused, frozenset(asked))

    def cancelled(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs whose end was asked for."""
        rows = [kept.row for one in ids if (kept := self._rows.get(UUID(one))) is not None]
        return frozenset(str(row.id) for row in rows if row.cancel_at is not None and row.state not in FINISHED)

    def lease(self, queue: Queue, wanted: int) -> int:
        """Take tokens of a queue's rate."""
        tokens = self._filled(queue)
        taken = min(wanted, int(tokens))
        self._tokens[queue.name] = (tokens - taken, self.now())
        return taken

    def token_in_s(self, queue: Queue) -> float:
        """Return how long it takes until a token is there."""
        assert queue.rate is not None
        return max(0.0, 1.0 - self._filled(queue)) / queue.rate.per_second + 1e-6

    def children(self, job_id: str) -> Sequence[Child]:
        """Return the finished children of a flow, in their order."""
        mine = [kept for kept in self._rows.values() if str(kept.row.parent) == job_id and kept.row.finished_at]
        rows = [kept.row for kept in sorted(mine, key=lambda kept: kept.place)]
        return [Child(str(row.id), row.type, row.state, row.result) for row in rows]

    def _filled(self, queue: Queue) -> float:
        assert queue.rate is not None
        tokens, at = self._tokens.get(queue.name, (queue.rate.burst, self.now()))
        return min(queue.rate.burst, tokens + queue.rate.per_second * (self.now() - at).total_seconds())

    def _withdraw(self, job_id: UUID) -> None:
        if self.due.pop(job_id, None) is not None:
            self.withdrawn.add(job_id)

    # ── what follows from a job's end ──────────────────────────────────────────────────────────────────────────

    def _finish(self, finished: list[_Kept]) -> None:
        """Give back the keys of finished jobs, and count them off at their parents."""
        for kept in finished:  # grows while parents fail
            row = kept.row
            if kept.unique_key is not None and self.keys.get(kept.unique_key) == (row.id, None):
                del self.keys[kept.unique_key]
            if row.parent is None or kept.told or row.parent not in self._rows:
                continue
            kept.told = True
            parent = self._rows[row.parent]
            left = parent.row.children - 1
            failed = row.state != "done"
            parent.row = replace(parent.row, children=left)
            if parent.row.state != "blocked":
                continue
            if failed and kept.on_failure == "fail":
                parent.row = replace(
                    parent.row, state="dead", finished_at=self.now(), error="ChildFailed", due_at=self.now()
                )
                self._withdraw(row.parent)
                finished.append(parent)
            elif left <= 0 or (failed and kept.on_failure == "continue"):
                parent.row = replace(parent.row, state="delayed")
                self.reschedule(row.parent, self.now())
