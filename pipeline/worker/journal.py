"""Outcomes of tracked jobs in, their rows updated in batches, then the outcomes out to settlement.

A record is settled only after its job's row says what became of it: a crash repeats the record, and never leaves a row
behind that tells of something else for ever. With an inbox, its transaction has written that a job is done. What people
command comes back the same way: pause, cancel, rate.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pipeline.definition import Queue
from pipeline.errors import SourceError
from pipeline.headers import EVENT_ID
from pipeline.report import Child, Entry, Report
from pipeline.topics import PRIORITIES, Priority, priority_topic
from pipeline.worker.delivery import Delivery, Engine, Outcome, Route
from pipeline.worker.gate import Begin, Gate
from pipeline.worker.ports import Health
from pipeline.worker.settlement import Again, Cancelled, Dead, Move, Parked

__all__ = ["Control", "JobStore", "Journal"]

log = logging.getLogger("pipeline.worker")

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BATCH = 2_000
_BREATHE_S = 0.01
_LOOK_S = 0.1
_RUNNING_S = 0.25
_CONTROL_S = 1.0
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """What people command: whether the queue is paused, and the ids of jobs that should end.

    ``more`` says that these may not be all: then the store is asked for each job that begins.
    """

    paused: bool
    cancelled: frozenset[str]
    more: bool = False


class JobStore(Protocol):
    """Where jobs' rows are: ``pipeline.postgres.jobs.JobRows``. All raise SourceError."""

    def settle(self, reports: Sequence[Report]) -> None:
        """Store what became of jobs, in one transaction."""

    def control(self, queue: str) -> Control:
        """Read what people command."""

    def cancelled(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs that should end. Called by handlers' threads."""

    def lease(self, queue: Queue, wanted: int) -> int:
        """Take at most ``wanted`` of the queue's tokens, which all workers share."""

    def children(self, job_id: str) -> Sequence[Child]:
        """Return the finished children of a flow. Called by handlers' threads."""


class Journal:
    """Stands around a queue's engine. ``worker`` names this process in the rows.

    ``put`` takes the engine's outcomes. Its thread is the only one that asks the store, ``children`` and ``cancelled``
    apart; where it is not ``threaded``, its owner calls ``step`` instead. What people command is read every
    ``control_s``.
    """

    def __init__(
        self,
        store: JobStore,
        queue: Queue,
        *,
        worker: str,
        health: Health,
        concurrency: int,
        threaded: bool = True,
        control_s: float = _CONTROL_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._queue = queue
        self._worker = worker
        self._health = health
        self._threaded = threaded
        self._control_s = control_s
        self._clock = clock
        self._wall = wall
        self._gate = Gate(window=2 * concurrency if queue.priorities else None, rated=queue.rate is not None)
        self._priority: dict[str, Priority] = {priority_topic(queue.name, p): p for p in PRIORITIES}
        self._lock = threading.Lock()
        self._outcomes: deque[Outcome] = deque()
        self._storing: list[Outcome] = []
        self._cancelled: frozenset[str] = frozenset()
        self._more_cancelled = False
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._next_running = self._next_control = 0.0

    # ── the engine's side ──────────────────────────────────────────────────────────────────────────────────────

    def around(
        self,
        engine: Engine,
        forward: Callable[[Outcome], None],
        fault: Callable[[BaseException], None],
        admit: Callable[[Callable[[], None]], bool],
    ) -> Engine:
        """Stand around ``engine`` and begin. ``forward`` takes outcomes that are stored, ``fault`` what ends it all.

        ``admit`` calls what begins something, but for times in which nothing may begin.
        """
        self._admit = admit
        self._engine = engine
        self._forward = forward
        self._fault = fault
        if self._threaded:
            threading.Thread(target=self._run, name=f"{self._queue.name}-journal", daemon=True).start()
        return self

    @property
    def unpaid(self) -> int:
        """How many wait for tokens of the queue's rate."""
        return len(self._gate) if self._queue.rate is not None and not self._gate.paused else 0

    def entry(self, delivery: Delivery, route: Route) -> Entry | None:
        """Open what an attempt tells; None for a job that is not tracked, or whose id no row can have."""
        job_id = (delivery.headers.get(EVENT_ID) or b"").decode(errors="replace")
        if not route.handler.model.message_type.track or not _UUID.fullmatch(job_id):
            return None
        attempt = 1 if delivery.state is None else delivery.state.attempt
        children = self._store.children
        cancelled = job_id in self._cancelled or (self._more_cancelled and self._is_cancelled(job_id))
        return Entry(job_id, attempt, self._wall(), cancelled, lambda: children(job_id), self._worker)

    def _is_cancelled(self, job_id: str) -> bool:
        try:
            return bool(self._store.cancelled([job_id]))
        except SourceError:
            self._more_cancelled = False  # what was read last holds until the store answers again
            return False

    def put(self, outcome: Outcome) -> None:
        """Take an outcome: of a tracked job it is stored first."""
        with self._lock:
            self._gate.ended()
            waiting = not self._gate.open
        if waiting:
            self._begin()
        self.tell(outcome)

    def tell(self, outcome: Outcome) -> None:
        """Take an outcome of what was never begun."""
        delivery, decision = outcome
        entry = delivery.entry
        if entry is None or not entry.job_id or entry.stored or not _told(decision):
            self._forward(outcome)
        else:
            self._outcomes.append(outcome)
            self._wake.set()

    @property
    def paused(self) -> bool:
        """Whether people hold the queue."""
        return self._gate.paused

    # ── the worker's side ──────────────────────────────────────────────────────────────────────────────────────

    def submit(self, deliveries: list[Delivery]) -> None:
        """Take new deliveries; they begin when they may."""
        with self._lock:
            self._start(Begin([], deliveries) if self._gate.open else self._pass(deliveries))

    def _pass(self, deliveries: list[Delivery]) -> Begin:
        for delivery in deliveries:
            state = delivery.state
            topic = delivery.record.topic if state is None else state.origin.topic
            self._gate.add(delivery, self._priority.get(topic, "normal"))
        return self._gate.take()

    def again(self, delivery: Delivery) -> None:
        """Take one again whose key is held back for it; it begins when it may."""
        with self._lock:
            self._gate.add_again(delivery)
            self._start(self._gate.take())

    def release(self, delivery: Delivery) -> None:
        """Let the next of its key go on."""
        self._engine.release(delivery)

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""
        with self._lock:
            waiting = self._gate.count(key)
        return waiting + self._engine.behind(key)

    def cancel(self, delivery: Delivery) -> None:
        """End the handler of a delivery, where that can be done."""
        self._engine.cancel(delivery)

    def tend(self) -> None:
        """Hand back what waits here of partitions that are taken away."""
        with self._lock:
            self._start(self._gate.closed())
        self._engine.tend()

    def begin_at_once(self, begin: Begin) -> None:
        """Take what has its turn now or never: priority and rate do not hold it up, and it pays for the rate later."""
        with self._lock:
            self._gate.begin(len(begin.again) + len(begin.new))
            self._start(begin)

    def idle(self) -> bool:
        """Whether nothing is in a handler or about to be. What waits for pause, rate and priority is not."""
        return self._engine.idle()

    def running(self) -> list[tuple[Delivery, float]]:
        """What is in a handler now, or ended and is not stored yet."""
        # looked for in the direction in which it goes: what moves on meanwhile is found twice, and never not at all
        running = self._engine.running()
        ended = [*self._outcomes, *self._storing]
        now = self._clock()
        return [*running, *((delivery, now) for delivery, _ in ended)]

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped.set()
        self._wake.set()
        self._engine.stop()

    # ── the journal's own thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.wait(_LOOK_S)
                self._wake.clear()
                try:
                    self.step()
                    self._health.ready(f"{self._queue.name} jobs")
                except SourceError as error:
                    if self._stopped.is_set():
                        return  # the store was closed meanwhile
                    if not error.retryable:
                        raise
                    self._health.not_ready(f"{self._queue.name} jobs", error.what)
                    log.warning("job rows cannot be reached", extra={"action": "worker.jobs", "why": error.what})
                    time.sleep(_AGAIN_S)
                time.sleep(_BREATHE_S)  # a batch gathers
        except BaseException as error:  # noqa: BLE001 — a defect here must end the worker, not one thread in silence
            self._fault(error)

    def step(self) -> None:
        """Store what has ended, obey, and let begin what may. Raises SourceError."""
        self._store_outcomes()
        now = self._clock()
        if now >= self._next_control:
            self._next_control = now + self._control_s
            self._obey(self._store.control(self._queue.name))
        if now >= self._next_running:
            self._next_running = now + _RUNNING_S
            self._tell_running()
        if self._queue.rate is not None and not self._gate.paused:
            wanted = min(self._gate.wants, self._queue.rate.block)
            granted = self._store.lease(self._queue, wanted) if wanted else 0
            with self._lock:
                self._gate.grant(granted)
        self._begin()

    def _store_outcomes(self) -> None:
        while self._outcomes or self._storing:
            while self._outcomes and len(self._storing) < _BATCH:
                self._storing.append(self._outcomes[0])  # in one of the two at any time
                self._outcomes.popleft()
            # of one job only the last counts: a record can be delivered twice
            reports = {r.id: r for d, decision in self._storing if (r := self._report(d, decision)) is not None}
            self._store.settle(list(reports.values()))
            # one that can be sent again from now on is not asked to end any more
            self._cancelled -= {r.id for r in reports.values() if r.state in {"cancelled", "dead"}}
            for outcome in self._storing:
                if (entry := outcome[0].entry) is not None:
                    entry.told, entry.news = True, False  # its thread may not have left it yet: it runs no more
                self._forward(outcome)
            self._storing = []

    def _report(self, delivery: Delivery, decision: object) -> Report | None:
        entry, state = delivery.entry, delivery.state
        if entry is None:
            return None
        if decision is None:
            return entry.report("done")
        if isinstance(decision, Cancelled):
            attempts = entry.attempt if decision.begun else entry.attempt - 1
            return entry.report("cancelled", attempts=attempts, error=decision.error)
        error = state.last_error.kind if state is not None and state.last_error is not None else None
        if isinstance(decision, Dead):
            return entry.report("dead", error=error)
        assert isinstance(decision, Move | Again | Parked)
        due_at = datetime.fromtimestamp(self._wall() + decision.delay_s, UTC)
        counted = not isinstance(decision, Parked) and decision.counted
        attempts = entry.attempt if counted else entry.attempt - 1
        return entry.report("retrying", attempts=attempts, due_at=due_at, error=error)

    def _obey(self, control: Control) -> None:
        self._cancelled, self._more_cancelled = control.cancelled, control.more
        with self._lock:
            self._gate.paused = control.paused
        self._health.note(self._queue.name, "paused" if control.paused else "")
        running = [
            (delivery, entry)
            for delivery, _ in self._engine.running()
            if (entry := delivery.entry) is not None and entry.job_id and not entry.cancelled
        ]
        cancelled = control.cancelled
        if control.more and (unknown := {entry.job_id for _, entry in running} - cancelled):
            cancelled = self._store.cancelled(unknown) | cancelled
        for delivery, entry in running:
            if entry.job_id in cancelled:
                entry.cancelled = True
                self._engine.cancel(delivery)

    def _tell_running(self) -> None:
        """Tell of jobs that run longer than a moment, and what they told of themselves."""
        reports = []
        for delivery, since in self._engine.running():
            entry = delivery.entry
            if entry is None or not entry.job_id or (entry.told and not entry.news):
                continue
            if self._clock() - since < _RUNNING_S:
                continue
            entry.told, entry.news = True, False
            reports.append(entry.report("running"))
        if reports:
            self._store.settle(reports)

    def _begin(self) -> None:
        """Let begin what may; where nothing may now, the next step does."""
        self._admit(self._begin_now)

    def _begin_now(self) -> None:
        with self._lock:
            self._start(self._gate.take())

    def _start(self, begin: Begin) -> None:
        """Hand over what was taken from the gate, with the lock held: else others of a key could overtake it."""
        for delivery in begin.again:
            self._engine.again(delivery)
        if begin.new:
            self._engine.submit(begin.new)


def _told(decision: object) -> bool:
    """Whether a job's row tells of it; of what waits or is handed back nothing has changed."""
    if isinstance(decision, Parked):
        return decision.failed
    return decision is None or isinstance(decision, Move | Again | Dead | Cancelled)
