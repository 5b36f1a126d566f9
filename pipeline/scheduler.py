"""What waits for its time in, outbox rows out; a schedule's ticks in, one job for each out.

Any number of schedulers run side by side without a leader: a due row is moved by whoever locks it first, in one
statement that deletes and inserts; a tick is made by whoever inserts (schedule, time) first, in the transaction that
stores its job. All go by the database's clock, so their own may differ. A crash at any point leaves both or neither.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from pipeline.errors import SourceError
from pipeline.job import Options, Wanted
from pipeline.metrics import Meter
from pipeline.outbox import uuid7
from pipeline.schedule import Schedule

__all__ = ["Health", "Moved", "Scheduler", "Store"]

log = logging.getLogger("pipeline.scheduler")

_BATCH = 500
_LOOK_S = 0.05
_READ_S = 1.0
_TIDY_S = 5.0
_AGAIN_S = 1.0

Made = Literal["made", "skipped", "known"]


@dataclass(frozen=True, slots=True)
class Moved:
    """What one look found: how late each moved row was (seconds), and the database's time."""

    late_s: Sequence[float]
    now: datetime


class Store(Protocol):
    """Where rows wait: ``pipeline.postgres.due.DueStore``. All raise SourceError."""

    def declare(self, schedules: Sequence[Schedule]) -> None:
        """Store schedules as they are in this process: the newest process decides."""

    def decided(self, schedules: Sequence[Schedule]) -> Mapping[str, datetime]:
        """Return the time up to which ticks were decided; without those that are paused or declared otherwise since."""

    def move(self, most: int) -> Moved:
        """Move due rows to the outbox, the most overdue first."""

    def make(self, schedule: Schedule, at: datetime, job: Wanted) -> Made:
        """Make one tick, unless it is known; skip it where the schedule's rule says so."""


class Health(Protocol):
    """Where a scheduler says how it is: ``pipeline.probes.Readiness``."""

    def ready(self, part: str) -> None:
        """This part works."""

    def not_ready(self, part: str, why: str) -> None:
        """This part does not, and why."""


class Scheduler:
    """Moves and makes. ``run`` belongs to one thread.

    ``tidy`` folds counters and deletes what is past its retention: now and then, and at each look while it returns that
    there may be more and no due rows are behind. ``clock`` gives seconds that only grow.
    """

    def __init__(
        self,
        store: Store,
        schedules: Sequence[Schedule],
        *,
        tidy: Callable[[], bool],
        meter: Meter,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._schedules = schedules
        self._tidy = tidy
        self._meter = meter
        self._health = health
        self._clock = clock
        self._declared = self._untidy = False
        self._next_read = self._next_tidy = 0.0
        self._next_tick: datetime | None = None
        self._coming: dict[str, tuple[datetime, datetime]] = {}

    def run(self, until: threading.Event) -> None:
        """Work until ``until`` is set. Raises SourceError for what does not pass by itself."""
        while not until.is_set():
            try:
                wait_s = self.step()
            except SourceError as error:
                if not error.retryable:
                    raise
                self._health.not_ready("database", error.what)
                log.warning("database trouble", extra={"action": "scheduler.trouble", "why": error.what})
                wait_s = _AGAIN_S
            else:
                self._health.ready("database")
            until.wait(wait_s)

    def step(self) -> float:
        """Look once; return how long to wait before the next look, in seconds."""
        if not self._declared:
            self._store.declare(self._schedules)
            self._declared = True
        moved = self._store.move(_BATCH)
        if moved.late_s:
            self._meter.add("pipeline_scheduler_moved_total", len(moved.late_s))
            self._meter.observe_many("pipeline_scheduler_lateness_seconds", moved.late_s)
        clock = self._clock()
        if self._schedules and (clock >= self._next_read or (self._next_tick and moved.now >= self._next_tick)):
            self._next_read = clock + _READ_S
            self._tick(moved.now)
        behind = len(moved.late_s) == _BATCH
        if clock >= self._next_tidy or (self._untidy and not behind):
            self._next_tidy, self._untidy = clock + _TIDY_S, False
            self._untidy = self._tidy()
        return 0.0 if behind else _LOOK_S

    def _tick(self, now: datetime) -> None:
        decided = self._store.decided(self._schedules)
        upcoming = []
        for schedule in self._schedules:
            last = decided.get(schedule.name)
            if last is None:
                continue
            known = self._coming.get(schedule.name)
            if known is None or known[0] != last:
                known = (last, next(schedule.after(last), now + timedelta(days=1)))
                self._coming[schedule.name] = known
            if known[1] <= now:
                self._make(schedule, last, now)
                upcoming.append(now)
            else:
                upcoming.append(known[1])
        self._next_tick = min(upcoming, default=None)

    def _make(self, schedule: Schedule, last: datetime, now: datetime) -> None:
        for at in schedule.due(last, now)[0]:
            tick = schedule.model(schedule=schedule.name, at=at)
            outcome = self._store.make(schedule, at, Wanted(uuid7(), tick, schedule.queue, Options()))
            if outcome != "known":
                self._meter.add("pipeline_ticks_total", schedule=schedule.name, outcome=outcome)
                log.info(
                    "tick",
                    extra={"action": "scheduler.tick", "schedule": schedule.name, "at": at.isoformat(), "is": outcome},
                )
