"""Outcomes of attempts in, records settled: done, moved to a retry topic, buried, or kept for another attempt.

A partition's watermark is raised here and nowhere else, and only for what is settled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from pipeline.worker.circuits import Circuits
from pipeline.worker.delivery import Assigned, Delivery, InFlight, Outcome
from pipeline.worker.gauges import Gauges
from pipeline.worker.holding import Holding
from pipeline.worker.outlet import Outlet
from pipeline.worker.settlement import Again, Cancelled, Dead, HandBack, InPlace, Move, Parked, Skip, Wait
from pipeline.worker.watch import Watch

__all__ = ["Settling"]

log = logging.getLogger("pipeline.worker")


class Settling:
    """Settles what the engine has put into ``outcomes``. The poll thread only; ``wall`` gives seconds since 1970."""

    def __init__(
        self,
        group: str,
        outcomes: deque[Outcome],
        holding: Holding,
        circuits: Circuits,
        watch: Watch,
        outlet: Outlet,
        in_flight: InFlight,
        gauges: Gauges,
        wall: Callable[[], float],
    ) -> None:
        self._group = group
        self._outcomes = outcomes
        self._holding = holding
        self._circuits = circuits
        self._watch = watch
        self._outlet = outlet
        self._in_flight = in_flight
        self._gauges = gauges
        self._wall = wall

    def settle(self) -> None:
        """Take outcomes and acknowledgements, and raise watermarks. Raises BrokerError where the DLQ refuses."""
        outcomes, holding, circuits, watch = self._outcomes, self._holding, self._circuits, self._watch
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
                if holding.keys or holding.full or holding.waiting or watch.begun:
                    holding.let_go(delivery)
                if circuits.trying:
                    circuits.tried(delivery)
            else:
                self._decide(delivery, decision)
        self._in_flight.records -= count
        self._in_flight.bytes -= size
        for assigned, offsets in done.items():
            if not assigned.lost:
                assigned.watermark.settle(offsets)
        if count:
            self._gauges.settled("done", count)
        for delivery, outcome in self._outlet.collect():
            self._close(delivery, outcome)

    def _decide(self, delivery: Delivery, decision: object) -> None:
        self._circuits.tried(delivery)
        if isinstance(decision, HandBack) or delivery.assigned.lost:
            if isinstance(decision, InPlace):
                self._holding.let_next(delivery)  # its key is held back for a next attempt that will not be made here
            self._holding.let_go(delivery)
            self._in_flight.leave(delivery)
            return
        if isinstance(decision, Again | Wait):
            self._holding.hold(delivery, decision)
            return
        if isinstance(decision, Parked):
            if self._circuits.park(delivery):
                return
            decision = self._circuits.aside(delivery)
        self._holding.let_go(delivery)
        if isinstance(decision, Skip | Cancelled):
            self._close(delivery, "skipped" if isinstance(decision, Skip) else "cancelled")
        elif isinstance(decision, Dead):
            self._report_dead(delivery, decision)
            self._outlet.bury(delivery)
        elif isinstance(decision, Move):
            if delivery.state is not None:
                due_ms = int((self._wall() + decision.delay_s) * 1000)
                delivery.state = replace(delivery.state, due_ms=due_ms)
            self._outlet.retry(delivery)

    def _close(self, delivery: Delivery, outcome: str) -> None:
        self._in_flight.leave(delivery)
        self._gauges.settled(outcome, 1)
        if not delivery.assigned.lost:
            delivery.assigned.watermark.settle((delivery.record.offset,))

    def _report_dead(self, delivery: Delivery, decision: Dead) -> None:
        record, state = delivery.record, delivery.state
        log.warning(
            "dead letter",
            extra={
                "action": "worker.dead",
                "group": self._group,
                "reason": decision.reason,
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "error_class": state.last_error.kind if state and state.last_error else "",
            },
        )
