"""A consumer group's records in; each one handled, stored on a retry topic or the DLQ, or handed back, out.

An offset is committed only when all below it came to one of the first three. One thread polls and settles, and never
waits for a handler; handlers run on an engine.
"""

from __future__ import annotations

import heapq
import inspect
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from pipeline.definition import Group, Handler
from pipeline.errors import BrokerError, PoisonError
from pipeline.failure import Failure, describe
from pipeline.headers import TYPE, NewerFormat, RetryState
from pipeline.metrics import Meter
from pipeline.progress import MOST_BYTES, Mark, Progress
from pipeline.record import Record
from pipeline.surroundings import State, aenter, surrounded
from pipeline.worker.attempt import Attempts, Decoder
from pipeline.worker.delivery import Assigned, Delivery, Engine, Outcome, Route
from pipeline.worker.gauges import Gauges
from pipeline.worker.journal import Journal
from pipeline.worker.outlet import Outlet
from pipeline.worker.ports import Flow, Health, Partition, Producer, Source
from pipeline.worker.processes import Processes
from pipeline.worker.settlement import Again, Cancelled, Dead, HandBack, Move, Skip, Wait
from pipeline.worker.tasks import LoopThread, Tasks
from pipeline.worker.threads import Threads
from pipeline.worker.tiers import Due, Tiers
from pipeline.worker.watch import Watch

__all__ = ["Limits", "Worker"]

log = logging.getLogger("pipeline.worker")

_BATCH = 200  # larger ones leave the caches: tried
_IDLE_S = 0.1
_BUSY_S = 0.02
_COMMIT_S = 0.25
_RECOMMIT_S = 30.0
_REPORT_S = 1.0
_FULL_S = 1.0
_LAST_COMMIT_S = 10.0
_NAME_AGAIN_S = 0.1
_LONG = MOST_BYTES * 3 // 4
_NEVER = 1 << 63
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one worker.

    ``concurrency`` counts attempts side by side; ``records`` and ``bytes`` bound what is in flight, ``backlog`` what
    waits behind one held-back key. ``drain_s`` is how long running handlers may take at a rebalance or at the end.
    A record in whose handler ``unclean_ends`` workers ended uncleanly is dead.
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
    is more than its function. ``state`` is what plain lifespans yielded; the async ones are entered here.
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
        state: State | None = None,
    ) -> None:
        self._group = group
        self._source = source
        self._flow = flow
        self._producer = producer
        self._health = health
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._sleep = sleep
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._outcomes: deque[Outcome] = deque()
        self._faults: deque[BaseException] = deque()
        self._bridge: LoopThread | None = None
        self._loop: LoopThread | None = None  # where coroutines run
        self._lifespans = AsyncExitStack()
        routes = {handler: Route(handler, _within(group, handler, call_of)) for handler in group.handlers}
        own = engine is None and any(handler.process for handler in group.handlers)  # another engine: in-line
        self._processes = Processes(group, clock) if own else None
        self._state = State(**vars(state or State()))
        if journal is None:
            attempts, put = Attempts(group, routes, decoder, clock, wall, None, self._state), self._outcomes.append
        else:
            attempts, put = Attempts(group, routes, decoder, clock, wall, journal.entry, self._state), journal.put
        self._engine = engine(attempts, put) if engine else self._make_engine(routes, attempts, put)
        if journal is not None:
            self._engine = journal.around(self._engine, self._outcomes.append, self._faults.append)
        self._routes = {(h.topic, h.model.message_type.name.encode()): route for h, route in routes.items()}
        self._foreign = {topic: routes[handler] for topic, handler in group.foreign.items()}
        self._queues = {h.topic for h in group.handlers if h.model.message_type.kind == "job"}
        self._outlet = Outlet(group, producer, health, clock, wall)
        self._tiers = Tiers(group.tiers_s, chance)
        self._gauges = Gauges(group.name, meter, list(routes.values()))
        self._assigned: dict[Partition, Assigned] = {}
        self._timers: list[tuple[float, int, Delivery]] = []
        self._held: dict[Hashable, int] = {}
        self._waiting: set[Delivery] = set()
        self._watch = Watch(limits.unclean_ends)
        self._journal = journal
        self._number = 0
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._full_since: float | None = None
        self._next_commit = self._next_recommit = self._next_report = self._next_naming = 0.0
        self._in_trouble = False
        self._overrun: set[Delivery] = set()

    # ── from any thread ────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, *, hurry: bool = False) -> None:
        """Ask for the end: drain, or with ``hurry`` wait for nothing."""
        if hurry:
            self._hurry.set()
        self._stop.set()

    # ── the poll thread ────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> bool:
        """Work until stopped; tell whether every handler had ended. Raises PipelineError where it cannot go on."""
        clean = False
        try:
            self.open()
            while not self._stop.is_set():
                self.step()
            clean = self.drain()
        finally:
            self.close()
        log.info("stopped", extra={"action": "worker.stopped", "group": self._group.name, "clean": clean})
        return clean

    def open(self) -> None:
        """Join the group."""
        self._health.not_ready(self._group.name, "joining the group")
        if self._loop is not None:
            vars(self._state).update(self._loop.wait(aenter(self._group.lifespans, self._lifespans)))
        starts = dict.fromkeys(self._group.topics, self._group.start)
        starts.update(dict.fromkeys(self._group.retry_topics, "earliest"))
        self._source.open(starts, self)

    def drain(self) -> bool:
        """Let running handlers end, and commit; tell whether all had ended."""
        name = self._group.name
        self._health.not_ready(name, "stopping")
        log.info("draining", extra={"action": "worker.draining", "group": name, "in_flight": self._in_flight})
        return self._hand_over(list(self._assigned.values()), patience_s=_LAST_COMMIT_S)

    def close(self) -> None:
        """Leave the group, whatever still runs."""
        self._stop.set()
        try:
            self._source.close()
        finally:
            if self._loop is not None:
                with suppress(Exception):  # an end that fails must not keep the others from ending
                    self._loop.wait(self._lifespans.aclose(), self._limits.drain_s)
            if self._processes is not None:
                self._processes.stop(0.0 if self._hurry.is_set() else min(self._limits.drain_s, _LEAVE_S))
            self._engine.stop()
            if self._bridge is not None:
                self._bridge.stop()
            self._producer.close()

    def due_in_s(self) -> float | None:
        """Seconds until something that waits here is due; None while nothing waits for a time."""
        waits = [self._timers[0][0] - self._clock()] if self._timers else []
        if (next_ms := self._tiers.next_ms()) is not None:
            waits.append(next_ms / 1000 - self._wall())
        return max(min(waits), 0.0) if waits else None

    def step(self) -> None:
        """Settle what ended, poll once, hand over what came."""
        if self._faults:
            raise self._faults[0]
        self._settle()
        now = self._clock()
        self._wake(now)
        if self._watch.busy and now >= self._next_naming:
            self._begin_watched(now)
        if now >= self._next_commit:
            self._commit(now)
            self._engine.tend()
        if now >= self._next_report:
            self._report(now)
        limits = self._limits
        room = limits.records - self._in_flight
        if room <= 0 or self._in_flight_bytes >= limits.bytes:
            self._wait_for_room(now)
            return
        if self._full_since is not None:
            self._full_since = None
            self._unpause(self._assigned.values(), "full")
        records = self._source.poll(min(room, _BATCH), self._wait_s())
        if records:
            self._dispatch(records)

    def _wait_s(self) -> float:
        wait_s = _BUSY_S if self._in_flight else _IDLE_S
        due_s = self.due_in_s()
        return wait_s if due_s is None else min(wait_s, due_s)

    def _wait_for_room(self, now: float) -> None:
        """Let handlers catch up. Partitions are paused only when that takes long: the client drops what it has then."""
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < _FULL_S:
            self._sleep(0.001)
            return
        self._pause(self._assigned.values(), "full")
        self._dispatch(self._source.poll(1, _BUSY_S))

    # ── records in ─────────────────────────────────────────────────────────────────────────────────────────────

    def _dispatch(self, records: list[Record]) -> None:
        assigned: Assigned | None = None
        here: Partition | None = None
        offsets: list[int] = []
        fresh: list[Delivery] = []
        due = Due()
        now_ms = int(self._wall() * 1000)
        routes, held, size = self._routes, self._held, 0
        careful = False
        for record in records:
            topic, partition, offset, key, value, raw, _ = record
            if here is None or partition != here[1] or topic != here[0]:
                if assigned is not None:
                    assigned.watermark.deliver(offsets)
                offsets = []
                here = (topic, partition)
                assigned = self._assigned.get(here)
                careful = assigned is not None and assigned.careful
            if assigned is None or assigned.closed:
                continue
            if careful and assigned.settled_before(offset):
                self._gauges.settled("known", 1)
                continue
            offsets.append(offset)
            headers = dict(raw) if raw else {}
            if assigned.tier_s is not None:
                self._receive_retried(assigned, record, headers, now_ms, due)
                continue
            if value is not None:
                size += len(value)
            route = routes.get((topic, headers.get(TYPE)))  # type: ignore[arg-type]  # None is no key, and that is right
            if self._foreign:
                route = self._foreign.get(topic, route)
            order_by: Hashable
            if route is not None:
                order = route.handler.order
                order_by = key if order == "key" else None if order == "none" else assigned.whole
            elif TYPE in headers and topic not in self._queues:
                fresh.append(Delivery(assigned, record, headers, None, None, None))
                continue
            else:
                order_by = key
            fresh.append(Delivery(assigned, record, headers, route, order_by, None))
            if held and order_by in held:
                self._hold_more(assigned, order_by)
        if assigned is not None:
            assigned.watermark.deliver(offsets)
        if fresh:
            self._in_flight += len(fresh)
            self._in_flight_bytes += size
            self._submit(fresh)
        self._take(due)

    def _receive_retried(
        self, assigned: Assigned, record: Record, headers: Mapping[str, bytes | None], now_ms: int, due: Due
    ) -> None:
        try:
            state: RetryState | None = RetryState.of(record)
        except NewerFormat:
            state = None
        except PoisonError as error:
            state = RetryState.first(record).failed(describe(error), now_ms)
            delivery = Delivery(assigned, record, headers, None, None, state)
            self._count_in(delivery)
            self._outlet.bury(delivery)
            return
        route = None
        order_by: Hashable = record.key
        if state is not None and (
            route := self._foreign.get(state.origin.topic)
            or self._routes.get((state.origin.topic, headers.get(TYPE) or b""))
        ):
            order, origin = route.handler.order, state.origin
            order_by = record.key if order == "key" else None if order == "none" else (origin.topic, origin.partition)
        self._tiers.add(Delivery(assigned, record, headers, route, order_by, state), now_ms, due)

    def _take(self, due: Due) -> None:
        """Begin what is due, move on what is not, and open or close partitions of retry topics."""
        for delivery in due.now:
            self._count_in(delivery)
        if due.now:
            self._submit(due.now)
        for delivery in due.move:
            self._count_in(delivery)
            self._outlet.retry(delivery)
        if due.pause:
            self._pause(due.pause, "tier")
        if due.resume:
            self._unpause(due.resume, "tier")

    # ── beginning with care ────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, deliveries: list[Delivery]) -> None:
        if any(assigned.careful for assigned in {delivery.assigned for delivery in deliveries}):
            self._watch.add(delivery for delivery in deliveries if delivery.assigned.careful)
            deliveries = [delivery for delivery in deliveries if not delivery.assigned.careful]
            self._begin_watched(self._clock())
        if deliveries:
            self._engine.submit(deliveries)

    def _begin_watched(self, now: float) -> None:
        """Begin what may begin of the watched, after the group's commit names it."""
        if self._journal is not None and self._journal.paused:
            return  # what a paused queue holds is in nobody's hands, and must not look so
        taken = self._watch.take()
        if not taken:
            return
        naming = [a for a in self._assigned.values() if not a.named]
        naming += {d.assigned for d, _ in taken if d.assigned.named and d.record.offset in d.assigned.begun}
        try:
            if naming:
                self._source.commit({(a.topic, a.partition): self._mark(a) for a in naming}, wait=True)
        except BrokerError as error:
            self.trouble(error)
            self._watch.put_back(taken)
            self._next_naming = now + _NAME_AGAIN_S
            return
        for assigned in naming:
            assigned.named = True
        fresh = []
        for delivery, again in taken:
            if self._watch.condemns(delivery):
                self._condemn(delivery)
            elif again:
                self._engine.again(delivery)
            else:
                fresh.append(delivery)
        if fresh:
            self._engine.submit(fresh)
        for assigned in {delivery.assigned for delivery, _ in taken}:
            assigned.careful = self._watch.has(assigned) or assigned.watermark.end < assigned.careful_until

    def _condemn(self, delivery: Delivery) -> None:
        """A record that its worker did not survive, time and again, is dead."""
        state = delivery.state or RetryState.first(delivery.record)
        why = f"its worker ended uncleanly {self._limits.unclean_ends} times while it was handled"
        delivery.state = state.failed(Failure("UncleanEnd", why), int(self._wall() * 1000))
        outcome = (delivery, Dead("unclean"))
        if self._journal is not None and delivery.route is not None:
            delivery.entry = self._journal.entry(delivery, delivery.route)
            self._journal.tell(outcome)
        else:
            self._outcomes.append(outcome)

    def _mark(self, assigned: Assigned) -> Mark:
        """Return what to commit; where it grows too long, fetch no more until what is open has ended."""
        mark = assigned.progress(in_hand=True).mark()
        if len(mark.metadata) > _LONG:
            self._pause([assigned], "progress")
        elif "progress" in assigned.paused and len(mark.metadata) < _LONG // 2:
            self._unpause([assigned], "progress")
        return mark

    # ── outcomes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Take outcomes and acknowledgements, and raise watermarks."""
        outcomes = self._outcomes
        done: dict[Assigned, list[int]] = {}
        size = count = 0
        for _ in range(len(outcomes)):
            delivery, decision = outcomes.popleft()
            if decision is None:
                record = delivery.record
                assigned = delivery.assigned
                count += 1
                size += len(record.value or b"")
                offsets = done.get(assigned)
                if offsets is None:
                    done[assigned] = [record.offset]
                else:
                    offsets.append(record.offset)
                if self._held or self._waiting or self._watch.begun:
                    self._let_go(delivery)
            else:
                self._decide(delivery, decision)
        self._in_flight -= count
        self._in_flight_bytes -= size
        for assigned, offsets in done.items():
            if not assigned.lost:
                assigned.watermark.settle(offsets)
        if count:
            self._gauges.settled("done", count)
        for delivery, outcome in self._outlet.collect():
            self._close(delivery, outcome)

    def _decide(self, delivery: Delivery, decision: object) -> None:
        if isinstance(decision, HandBack) or delivery.assigned.lost:
            if isinstance(decision, Again | Wait):
                self._engine.release(delivery)  # its key is held back for a next attempt that will not be made here
            self._let_go(delivery)
            self._count_out(delivery)
            return
        if isinstance(decision, Again | Wait):
            self._hold(delivery, decision)
            return
        self._let_go(delivery)
        if isinstance(decision, Skip | Cancelled):
            self._close(delivery, "skipped" if isinstance(decision, Skip) else "cancelled")
        elif isinstance(decision, Dead):
            state = delivery.state
            log.warning(
                "dead letter",
                extra={
                    "action": "worker.dead",
                    "group": self._group.name,
                    "reason": decision.reason,
                    "topic": delivery.record.topic,
                    "partition": delivery.record.partition,
                    "offset": delivery.record.offset,
                    "error_class": state.last_error.kind if state and state.last_error else "",
                },
            )
            self._outlet.bury(delivery)
        elif isinstance(decision, Move):
            if delivery.state is not None:
                due_ms = int((self._wall() + decision.delay_s) * 1000)
                delivery.state = replace(delivery.state, due_ms=due_ms)
            self._outlet.retry(delivery)

    def _close(self, delivery: Delivery, outcome: str) -> None:
        """A record is settled."""
        self._count_out(delivery)
        self._gauges.settled(outcome, 1)
        if not delivery.assigned.lost:
            delivery.assigned.watermark.settle((delivery.record.offset,))

    def _count_in(self, delivery: Delivery) -> None:
        self._in_flight += 1
        self._in_flight_bytes += len(delivery.record.value or b"")

    def _count_out(self, delivery: Delivery) -> None:
        self._in_flight -= 1
        self._in_flight_bytes -= len(delivery.record.value or b"")

    # ── waiting in place ───────────────────────────────────────────────────────────────────────────────────────

    def _hold(self, delivery: Delivery, decision: Again | Wait) -> None:
        """Keep a record, and its key, until its next attempt. Dropped when the partition is being taken away."""
        if delivery.assigned.closed:
            self._let_go(delivery)
            self._engine.release(delivery)
            self._count_out(delivery)
            return
        self._watch.rest(delivery)
        delay_s = decision.delay_s
        if isinstance(decision, Again):
            delay_s *= 1 + decision.jitter * self._chance()
        else:
            self._report_waiting(delivery, decision)
        if delivery.key is not None:
            self._held.setdefault(delivery.key, 0)
        self._number += 1
        heapq.heappush(self._timers, (self._clock() + delay_s, self._number, delivery))

    def _report_waiting(self, delivery: Delivery, decision: Wait) -> None:
        """Say which record waits, for what and for whom: at ``/readyz``, and in the log when it begins to."""
        record, new = delivery.record, delivery not in self._waiting
        self._waiting.add(delivery)
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        self._health.not_ready(f"{self._group.name} decoding", f"{where} waits: {decision.what}")
        if new:
            log.warning(
                "a record waits",
                extra={
                    "action": "worker.waiting",
                    "group": self._group.name,
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "why": decision.what,
                    "remedy": decision.remedy,
                },
            )

    def _hold_more(self, assigned: Assigned, key: Hashable) -> None:
        self._held[key] += 1
        if self._held[key] == self._limits.backlog:
            self._pause([assigned], "backlog")

    def _let_go(self, delivery: Delivery) -> None:
        """A held-back key goes on."""
        if delivery in self._waiting:
            self._waiting.discard(delivery)
            self._ready_if_none_waits()
        self._watch.ended(delivery)
        self._release_key(delivery.key)

    def _release_key(self, key: Hashable) -> None:
        if self._held.pop(key, 0) >= self._limits.backlog:
            self._unpause([a for a in self._assigned.values() if "backlog" in a.paused], "backlog")

    def _ready_if_none_waits(self) -> None:
        if not self._waiting:
            self._health.ready(f"{self._group.name} decoding")

    def _wake(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            delivery = heapq.heappop(timers)[2]
            if delivery.assigned.careful:
                self._watch.add([delivery], again=True)
            else:
                self._engine.again(delivery)
        self._take(self._tiers.wake(int(self._wall() * 1000)))

    # ── assignment (called inside poll and close) ──────────────────────────────────────────────────────────────

    def assigned(self, starts: Mapping[Partition, Mark]) -> None:
        """Begin with partitions."""
        tiers = self._group.retry_topics
        unclean: list[Assigned] = []
        for (topic, partition), mark in starts.items():
            before = Progress.read(mark)
            assigned = Assigned(topic, partition, before, tiers.get(topic), self._limits.records)
            self._assigned[topic, partition] = assigned
            if before.in_hand:
                unclean.append(assigned)
        if unclean:
            self._report_unclean(unclean)
        self._next_commit = 0.0
        self._health.ready(self._group.name)
        log.info(
            "partitions assigned",
            extra={"action": "worker.assigned", "group": self._group.name, "partitions": len(self._assigned)},
        )

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Hand partitions over."""
        self._hand_over([self._assigned[p] for p in partitions if p in self._assigned])

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Forget partitions; somebody else has them."""
        taken = [self._assigned[p] for p in partitions if p in self._assigned]
        for assigned in taken:
            assigned.closed = assigned.lost = True
        self._forget(taken)
        log.warning(
            "partitions lost", extra={"action": "worker.lost", "group": self._group.name, "partitions": len(taken)}
        )

    def trouble(self, error: BrokerError) -> None:
        """Say what the client reports, until the broker answers again."""
        first, self._in_trouble = not self._in_trouble, True
        self._gauges.broker_error()
        self._health.not_ready(f"{self._group.name} broker", error.what)
        for assigned in self._assigned.values():
            assigned.committed = None
        if first:  # the client says it again with every try
            extra = {"action": "worker.trouble", "group": self._group.name, "why": error.what}
            log.warning("broker trouble", extra=extra)

    def _hand_over(self, taken: list[Assigned], *, patience_s: float = 0) -> bool:
        """Let running handlers end for a bounded time, commit, and fence; tell whether all had ended.

        ``patience_s`` is how long a commit is tried again that the broker refuses for now.
        """
        closing = set(taken)
        for assigned in taken:
            assigned.closed = True
        self._forget(taken)
        deadline = self._clock() + self._limits.drain_s
        while True:
            running = any(delivery.assigned in closing for delivery, _ in self._engine.running())
            self._settle()
            unsettled = self._outlet.open(closing)
            ended = not running and not unsettled
            if ended or self._hurry.is_set() or self._faults or self._clock() >= deadline:
                break
            if unsettled:
                self._producer.flush(0.01)
            self._sleep(0.002)  # what was refused for now is not in the producer, and flushing it waits for nothing
        self._commit_last(taken, self._clock() + patience_s)
        for assigned in taken:
            assigned.lost = True
            self._assigned.pop((assigned.topic, assigned.partition), None)
        if not ended:
            log.warning(
                "handlers did not end in time; their records are handled again",
                extra={"action": "worker.drain_timeout", "group": self._group.name, "drain_s": self._limits.drain_s},
            )
        return ended

    def _commit_last(self, taken: list[Assigned], until: float) -> None:
        """Commit partitions that go. In a rebalance the broker refuses that: take part in it, and commit then."""
        while marks := {(a.topic, a.partition): a.progress(in_hand=False).mark() for a in taken if not a.lost}:
            try:
                self._source.commit(marks, wait=True)
            except BrokerError as error:
                self.trouble(error)
                if not error.retryable or self._clock() >= until or self._hurry.is_set():
                    return
                self._source.poll(1, _BUSY_S)  # what it returns is not ours to begin, and not committed
            else:
                return

    def _forget(self, taken: list[Assigned]) -> None:
        """Drop what waits of partitions: their next owner begins at the committed offset."""
        for assigned in taken:
            self._tiers.drop(assigned)
            if assigned.lost:
                self._assigned.pop((assigned.topic, assigned.partition), None)
            for delivery, again in self._watch.drop(assigned):
                self._drop(delivery, held=again)
        kept = []
        for entry in self._timers:
            delivery = entry[2]
            if delivery.assigned.closed:
                self._drop(delivery, held=True)
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._timers = kept
        self._ready_if_none_waits()

    def _drop(self, delivery: Delivery, *, held: bool) -> None:
        """Forget a record that is not in a handler; ``held``: its key is held back for it."""
        if held:
            self._release_key(delivery.key)
            self._waiting.discard(delivery)
            self._engine.release(delivery)
        self._watch.ended(delivery)
        self._count_out(delivery)

    # ── commit, pause, report ──────────────────────────────────────────────────────────────────────────────────

    def _commit(self, now: float) -> None:
        self._next_commit = now + _COMMIT_S
        everything = now >= self._next_recommit
        if everything:
            self._next_recommit = now + _RECOMMIT_S
        marks = {}
        for partition, assigned in self._assigned.items():
            mark = self._mark(assigned)
            if everything or mark != assigned.committed:
                marks[partition] = assigned.committed = mark
        if marks:
            self._source.commit(marks, wait=False)

    def _pause(self, partitions: Iterable[Assigned], why: str) -> None:
        closing = [a for a in partitions if not a.paused and not a.closed]
        for assigned in partitions:
            assigned.paused.add(why)
        if closing:
            self._flow.pause([(a.topic, a.partition) for a in closing])

    def _unpause(self, partitions: Iterable[Assigned], why: str) -> None:
        opening = []
        for assigned in partitions:
            if why in assigned.paused:
                assigned.paused.discard(why)
                if not assigned.paused and not assigned.closed:
                    opening.append((assigned.topic, assigned.partition))
        if opening:
            self._flow.resume(opening)

    def _report(self, now: float) -> None:
        self._next_report = now + _REPORT_S
        running = self._engine.running()
        self._overrun.intersection_update(delivery for delivery, _ in running)
        for delivery, since in running:
            self._report_overrun(delivery, now - since)
        oldest_s = max((now - since for _, since in running), default=0.0)
        ends = self._flow.ends(list(self._assigned))
        for partition, assigned in self._assigned.items():
            if assigned.watermark.end >= ends.get(partition, _NEVER):  # what comes from now on is new
                assigned.watched_until = min(assigned.watched_until, assigned.watermark.end)
        self._gauges.report(self._assigned, ends, in_flight=self._in_flight, oldest_s=oldest_s, held=len(self._held))
        if self._in_trouble and self._flow.reachable():
            self._in_trouble = False
            self._health.ready(f"{self._group.name} broker")

    def _report_unclean(self, unclean: Sequence[Assigned]) -> None:
        suspects = {f"{a.topic}[{a.partition}]@{offset}": ends for a in unclean for offset, ends in a.suspects.items()}
        log.warning(
            "the worker before ended uncleanly: what it may have died of is begun with care",
            extra={
                "action": "worker.unclean",
                "group": self._group.name,
                "partitions": len(unclean),
                "suspects": sorted(suspects),
                "condemned": sorted(where for where, ends in suspects.items() if ends >= self._limits.unclean_ends),
            },
        )

    def _report_overrun(self, delivery: Delivery, seconds: float) -> None:
        route = delivery.route
        if route is None or route.handler.timeout_s is None or seconds < route.handler.timeout_s:
            return
        if route.handler.process:  # killed at its timeout
            return
        record = delivery.record
        if delivery not in self._overrun:
            self._overrun.add(delivery)
            log.warning(
                "handler overruns its timeout",
                extra={
                    "action": "worker.overrun",
                    "group": self._group.name,
                    "handler": route.handler.name,
                    "seconds": round(seconds, 1),
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                },
            )

    def _make_engine(
        self, routes: Mapping[Handler, Route], attempts: Attempts, put: Callable[[Outcome], None]
    ) -> Engine:
        fault, name = self._faults.append, self._group.name
        many = self._limits.concurrency
        if self._processes is not None:
            for handler, route in routes.items():
                if handler.process:
                    route.call = self._processes.call_of(handler)
        coroutines = [r for h, r in routes.items() if inspect.iscoroutinefunction(h.function) and not h.process]
        if len(coroutines) == len(routes):
            tasks = Tasks(attempts.arun, put, fault, concurrency=many, name=name, clock=self._clock)
            self._loop = tasks.thread
            return tasks
        if coroutines:  # in one group with plain functions: they share its order, so they share its threads
            self._loop = self._bridge = LoopThread(f"{name}-loop")
            for route in coroutines:
                route.call = self._bridge.blocking(route.call, route.handler.timeout_s)
        return Threads(attempts.run, put, fault, concurrency=many, name=name, clock=self._clock)


def _within(group: Group, handler: Handler, call_of: Callable[[Handler], Callable[..., Any]]) -> Callable[..., Any]:
    """Return what is called for a handler, with all that the application put around it."""
    return surrounded(call_of(handler), group.middleware, awaits=inspect.iscoroutinefunction(handler.function))
