"""Rows whose time has come in, records out; ticks in, their jobs out: a scheduler's ``Store``, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pipeline.job import Wanted
from pipeline.schedule import Schedule
from pipeline.scheduler import Made, Moved
from pipeline.testing.jobs import Jobs
from pipeline.testing.stored import BLOCKED, Row

__all__ = ["Ticks"]


class Ticks:
    """``send`` sends a row on its way, ``store`` a tick's job. ``made`` has the ticks, by schedule and time."""

    def __init__(self, jobs: Jobs, send: Callable[[Row], None], store: Callable[[Wanted], None]) -> None:
        self.made: dict[tuple[str, datetime], UUID | None] = {}
        self._jobs = jobs
        self._send = send
        self._store = store
        self._last: dict[str, datetime] = {}
        self._next: dict[str, tuple[datetime, datetime]] = {}
        self._schedules: Sequence[Schedule] = ()
        self._paused: set[str] = set()
        self._looked: datetime | None = None

    def declare(self, schedules: Sequence[Schedule]) -> None:
        """Let schedules begin now."""
        self._schedules = schedules
        self._last = {one.name: self._jobs.now() for one in schedules}

    def decided(self, schedules: Sequence[Schedule]) -> Mapping[str, datetime]:
        """Return the time up to which ticks were decided."""
        self._looked = self._jobs.now()
        return {one.name: self._last[one.name] for one in schedules if one.name not in self._paused}

    def knows(self, name: str) -> bool:
        """Tell whether a schedule was declared."""
        return name in self._last

    def hold(self, name: str, *, paused: bool) -> None:
        """Pause a schedule, or let it go on from now."""
        if not paused and name in self._paused:
            self._last[name] = self._jobs.now()
        (self._paused.add if paused else self._paused.discard)(name)

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows of schedules that were declared, with their latest ticks, as ``pipeline.jobs.schedules``."""
        found: list[tuple[Any, ...]] = []
        for one in sorted(self._schedules, key=lambda one: one.name):
            ticks = [(at, job_id) for (name, at), job_id in self.made.items() if name == one.name]
            latest = max(ticks, key=lambda tick: tick[0], default=(None, None))
            paused = one.name in self._paused
            found.append((one.name, one.cron, one.timezone, one.missed, one.overlap, paused, *latest))
        return found

    def keep(self, name: str, at: datetime, job_id: UUID) -> None:
        """Remember a tick that was made by hand."""
        self.made[name, at] = job_id

    def move(self, most: int) -> Moved:
        """Send what is due."""
        now, due = self._jobs.now(), self._jobs.due
        late_s = []
        for job_id in sorted((one for one in due if due[one][0] <= now), key=lambda one: due[one][0])[:most]:
            at, row = due.pop(job_id)
            self._jobs.again(job_id, queued=True)
            self._send(row)
            late_s.append((now - at).total_seconds())
        return Moved(late_s, now)

    def make(self, schedule: Schedule, at: datetime, job: Wanted) -> Made:
        """Make one tick."""
        if (schedule.name, at) in self.made:
            return "known"
        self._last[schedule.name] = max(at, self._last[schedule.name])
        before = [
            job_id for (name, when), job_id in self.made.items() if name == schedule.name and when < at and job_id
        ]
        latest = self._jobs.row(before[-1]) if before else None
        if schedule.overlap == "skip" and latest is not None and latest.finished_at is None:
            self.made[schedule.name, at] = None
            return "skipped"
        self._store(job)
        self.made[schedule.name, at] = job.id
        return "made"

    def due_in_s(self) -> float | None:
        """Return how long it takes until something is due."""
        times = [at for at, _ in self._jobs.due.values() if at != BLOCKED]
        for one in [one for one in self._schedules if one.name not in self._paused]:
            # a tick that its schedule's rule leaves out is behind, though nothing was made of it
            last = max(self._last[one.name], self._looked or self._last[one.name])
            known = self._next.get(one.name)
            if known is None or not known[0] <= last < known[1]:
                known = self._next[one.name] = (last, next(one.after(last), last))
            times.append(known[1])
        return None if not times else (min(times) - self._jobs.now()).total_seconds()
