"""A consumer group's records in; each one handled, stored on a retry topic or the DLQ, or handed back, out.

An offset is committed only when all below it came to one of the first three. One thread polls and settles, and never
waits for a handler; handlers run on an engine.
"""

from __future__ import annotations

import inspect
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from pipeline.definition import Group, Handler
from pipeline.errors import BrokerError
from pipeline.metrics import Meter
from pipeline.progress import Mark, Progress
from pipeline.surroundings import State, aenter, surrounded
from pipeline.worker.attempt import Attempts, Decoder
from pipeline.worker.beginning import Beginning
from pipeline.worker.circuits import Circuits, circuits_of
from pipeline.worker.condition import Condition
from pipeline.worker.delivery import Assigned, Engine, InFlight, Outcome, Route
from pipeline.worker.dispatch import Dispatch
from pipeline.worker.engines import Built, build
from pipeline.worker.gauges import Gauges
from pipeline.worker.handover import HandOver
from pipeline.worker.holding import Holding
from pipeline.worker.journal import Journal
from pipeline.worker.outlet import Outlet
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Flow, Health, Partition, Producer, Source
from pipeline.worker.processes import Processes
from pipeline.worker.pulse import Pulse
from pipeline.worker.settling import Settling
from pipeline.worker.solitude import Solitude
from pipeline.worker.tiers import Tiers
from pipeline.worker.watch import Watch

__all__ = ["COMMIT_S", "Limits", "Worker"]

log = logging.getLogger("pipeline.worker")

_BATCH = 200  # larger ones leave the caches: tried
_IDLE_S = 0.1
_BUSY_S = 0.02
_ALONE_S = 0.002
_FULL_S = 1.0
COMMIT_S = 0.25
_LAST_COMMIT_S = 10.0
_LEAVE_S = 5.0
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one worker.

    ``concurrency`` counts attempts side by side; ``records`` and ``bytes`` bound what is in flight, ``backlog`` what
    waits behind one held-back key; one poll, of 200 records at most, may go beyond ``bytes``. ``drain_s`` is how long
    running handlers may take at a rebalance or at the end.
    A record is dead that ``unclean_ends`` workers did not survive while it ran and nothing else did.
    """

    concurrency: int = 16
    records: int = 10_000
    bytes: int = 64_000_000
    backlog: int = 1_000
    drain_s: float = 30.0
    unclean_ends: int = 3


class Worker:
    """Runs one group. ``run`` belongs to one thread; ``stop`` may be called from any.

    ``clock`` gives seconds that only grow, ``wall`` seconds since 1970, ``chance`` a number from 0 to 1. ``engine``
    makes another engine than threads or tasks, from what runs an attempt and what takes outcomes. ``journal`` is told
    of tracked jobs, and says when a queue's jobs may begin. ``call_of`` gives what is called for a handler, where that
    is more than its function. ``commit_s`` is between two commits. ``state`` is what plain lifespans yielded; the async
    ones are entered here. All workers of a process share one ``solitude``. ``pulse`` tells any thread how it is.
    """

    def __init__(
        self,
        group: Group,
        source: Source,
        flow: Flow,
        producer: Producer,
        decoder: Decoder,
        *,
        meter: Meter,
        health: Health,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
        engine: Callable[[Attempts, Callable[[Outcome], None]], Engine] | None = None,
        journal: Journal | None = None,
        call_of: Callable[[Handler], Callable[..., Any]] = lambda handler: handler.function,
        commit_s: float = COMMIT_S,
        state: State | None = None,
        solitude: Solitude | None = None,
    ) -> None:
        name = group.name
        self._group = group
        self._source = source
        self._producer = producer
        self._health = health
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._faults: deque[BaseException] = deque()
        self._lifespans = AsyncExitStack()
        self._state = State(**vars(state or State()))
        self._full_since: float | None = None
        self._waits_for = ""
        solitude = solitude or Solitude()

        outcomes: deque[Outcome] = deque()
        put, fault = outcomes.append, self._faults.append
        circuits = circuits_of(group.handlers, clock)
        routes = {h: Route(h, _within(group, h, call_of), circuits.get(h.name)) for h in group.handlers}
        entry, engine_put = (None, put) if journal is None else (journal.entry, journal.put)
        attempts = Attempts(group, routes, decoder, clock, wall, entry, self._state)
        own = engine is None and any(handler.process for handler in group.handlers)  # another engine: in-line
        self._processes = Processes(group, clock) if own else None
        if engine is not None:
            self._built = Built(engine(attempts, engine_put))
        else:
            self._built = build(
                group, routes, attempts, self._processes, engine_put, fault,
                concurrency=limits.concurrency, clock=clock,
            )  # fmt: skip
        self._engine = (
            self._built.engine if journal is None else journal.around(self._built.engine, put, fault, solitude.admit)
        )

        self._in_flight = InFlight()
        self._partitions = Partitions(source, flow, commit_s)
        self._tiers = Tiers(group.tiers_s, chance)
        watch = Watch(limits.unclean_ends, solitude)
        gauges = Gauges(name, meter, list(routes.values()))
        self.pulse = Pulse(name, self._engine, self._in_flight, gauges, clock)
        outlet = Outlet(group, producer, health, clock, wall)
        self._holding = Holding(
            name, self._engine, self._partitions, self._in_flight, watch, health,
            backlog=limits.backlog, clock=clock, chance=chance,
        )  # fmt: skip
        self._circuits = Circuits(
            group, routes, self._engine, self._partitions, self._holding, health, meter,
            records=limits.records, bytes=limits.bytes, backlog=limits.backlog,
        )  # fmt: skip
        self._condition = Condition(
            name, self._engine, flow, self._partitions, self._in_flight, self._holding, self._circuits, gauges, health,
            unclean_ends=limits.unclean_ends,
        )  # fmt: skip
        self._beginning = Beginning(
            self._engine, self._partitions, watch, solitude, self._holding.keys, journal,
            unclean_ends=limits.unclean_ends, put=put, trouble=self.trouble, clock=clock, wall=wall,
        )  # fmt: skip
        self._dispatch = Dispatch(
            group, routes, self._partitions, self._beginning, self._holding, self._tiers, outlet, self._in_flight,
            gauges, wall,
        )  # fmt: skip
        self._settling = Settling(
            name, outcomes, self._holding, self._circuits, watch, outlet, self._in_flight, gauges, wall
        )
        self._handover = HandOver(
            name, source, producer, self._engine, self._partitions, self._settling, self._holding, self._circuits,
            self._tiers, watch, outlet, drain_s=limits.drain_s, hurried=self._hurry.is_set,
            faulty=lambda: bool(self._faults), trouble=self.trouble, clock=clock, sleep=sleep,
        )  # fmt: skip

    # ── from any thread ────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, *, hurry: bool = False) -> None:
        """Ask for the end: drain, or with ``hurry`` wait for nothing."""
        if hurry:
            self._hurry.set()
        self._stop.set()

    @property
    def assigned_now(self) -> Mapping[Partition, Assigned]:
        """The partitions that it has."""
        return self._partitions.mine

    # ── the poll thread ────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> bool:
        """Work until stopped; tell whether every handler had ended. Raises PipelineError where it cannot go on."""
        clean = False
        try:
            self.prepare()
            while not self._stop.is_set() and not self._joins():
                self._stop.wait(_AGAIN_S)
            while not self._stop.is_set():
                self.step()
            clean = self.drain()
        finally:
            self.close()
        log.info("stopped", extra={"action": "worker.stopped", "group": self._group.name, "clean": clean})
        return clean

    def prepare(self) -> None:
        """Enter the lifespans."""
        self._health.not_ready(self._group.name, "joining the group")
        if (loop := self._built.loop) is not None:
            vars(self._state).update(loop.wait(aenter(self._group.lifespans, self._lifespans)))

    def join(self) -> None:
        """Join the group. Raises BrokerError: retryable where this can be called again."""
        starts = dict.fromkeys(self._group.topics, self._group.start)
        starts.update(dict.fromkeys(self._group.retry_topics, "earliest"))
        self._source.open(starts, self)

    def _joins(self) -> bool:
        """Join the group; say why not, and return False, where that may pass."""
        name = self._group.name
        try:
            self.join()
        except BrokerError as error:
            if not error.retryable:
                raise
            self._health.not_ready(name, error.what)
            if error.what != self._waits_for:  # it is tried again each second
                log.warning(
                    "waiting to join the group",
                    extra={"action": "worker.waiting", "group": name, "why": error.what, "remedy": error.remedy},
                )
            self._waits_for = error.what
            return False
        if self._waits_for and not self._partitions.mine:
            self._health.not_ready(name, "joining the group")
        return True

    def drain(self) -> bool:
        """Let running handlers end, and commit; tell whether all had ended."""
        name, in_flight = self._group.name, self._in_flight.records
        self._health.not_ready(name, "stopping")
        log.info("draining", extra={"action": "worker.draining", "group": name, "in_flight": in_flight})
        return self._handover.give_back(list(self._partitions.mine.values()), patience_s=_LAST_COMMIT_S)

    def close(self) -> None:
        """Leave the group, whatever still runs."""
        self._stop.set()
        self._beginning.end()
        try:
            self._source.close()
        finally:
            if (loop := self._built.loop) is not None:
                try:
                    loop.wait(self._lifespans.aclose(), self._limits.drain_s)
                except Exception as error:
                    log.warning(
                        f"group {self._group.name}: a lifespan did not end well",
                        extra={"action": "worker.lifespan", "group": self._group.name},
                        exc_info=error,
                    )
            if self._processes is not None:
                self._processes.stop(0.0 if self._hurry.is_set() else min(self._limits.drain_s, _LEAVE_S))
            self._engine.stop()
            if self._built.bridge is not None:
                self._built.bridge.stop()
            self._producer.close()

    def due_in_s(self) -> float | None:
        """Seconds until something that waits here is due; None while nothing waits for a time."""
        waits = [] if (next_at := self._holding.next_at) is None else [next_at - self._clock()]
        if (breaker_s := self._circuits.due_in_s) is not None:
            waits.append(breaker_s)
        if (next_ms := self._tiers.next_ms()) is not None:
            waits.append(next_ms / 1000 - self._wall())
        return max(min(waits), 0.0) if waits else None

    def step(self) -> None:
        """Settle what ended, poll once, hand over what came."""
        if self._faults:
            raise self._faults[0]
        self._settling.settle()
        now = self._clock()
        self._holding.wake(now)
        self._circuits.step()
        self._dispatch.wake()
        self._beginning.go_on(now)
        if now >= self._partitions.next_commit:
            self._partitions.commit(now)
            self._engine.tend()
        if now >= self._condition.next_report:
            self._condition.report(now)
        room, room_bytes = self._room()
        if room <= 0 or room_bytes <= 0:
            self._wait_for_room(now)
            return
        if self._full_since is not None:
            self._full_since = None
            self._partitions.resume(self._partitions.mine.values(), "full")
        records = self._source.poll(min(room, _BATCH), self._wait_s())
        if records:
            self._dispatch.take(records)

    def _room(self) -> tuple[int, int]:
        """How many records and bytes more may be in flight. What waits for a breaker leaves its room to others."""
        records, size = self._limits.records - self._in_flight.records, self._limits.bytes - self._in_flight.bytes
        if records < _BATCH or size <= 0:
            waiting, waiting_bytes = self._circuits.waiting
            return records + waiting, size + waiting_bytes
        return records, size

    def _wait_s(self) -> float:
        if self._beginning.waits:
            return _ALONE_S
        wait_s = _BUSY_S if self._in_flight.records else _IDLE_S
        due_s = self.due_in_s()
        return wait_s if due_s is None else min(wait_s, due_s)

    def _wait_for_room(self, now: float) -> None:
        """Let handlers catch up. Partitions are paused only when that takes long: the client drops what it has then."""
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _FULL_S:
            self._sleep(0.001)
            return
        self._partitions.pause(self._partitions.mine.values(), "full")
        self._dispatch.take(self._source.poll(1, _BUSY_S))

    # ── assignment (called inside poll and close) ──────────────────────────────────────────────────────────────

    def assigned(self, starts: Mapping[Partition, Mark]) -> None:
        """Begin with partitions."""
        tiers, mine = self._group.retry_topics, self._partitions.mine
        unclean: list[Assigned] = []
        for (topic, partition), mark in starts.items():
            before = Progress.read(mark)
            assigned = Assigned(topic, partition, before, tiers.get(topic), self._limits.records)
            mine[topic, partition] = assigned
            if before.in_hand:
                unclean.append(assigned)
        if unclean:
            self._condition.report_unclean(unclean)
        self._partitions.next_commit = 0.0
        self._health.ready(self._group.name)
        log.info(
            "partitions assigned",
            extra={"action": "worker.assigned", "group": self._group.name, "partitions": len(mine)},
        )

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Hand partitions over."""
        self._handover.give_back(self._mine(partitions))

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Forget partitions; somebody else has them."""
        taken = self._mine(partitions)
        self._handover.lose(taken)
        log.warning(
            "partitions lost", extra={"action": "worker.lost", "group": self._group.name, "partitions": len(taken)}
        )

    def trouble(self, error: BrokerError) -> None:
        """Say what the client reports, until the broker answers again."""
        self._condition.trouble(error)

    def _mine(self, partitions: Sequence[Partition]) -> list[Assigned]:
        mine = self._partitions.mine
        return [mine[partition] for partition in partitions if partition in mine]


def _within(group: Group, handler: Handler, call_of: Callable[[Handler], Callable[..., Any]]) -> Callable[..., Any]:
    """Return what is called for a handler, with all that the application put around it."""
    return surrounded(call_of(handler), group.middleware, awaits=inspect.iscoroutinefunction(handler.function))
