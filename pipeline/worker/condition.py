"""How a worker is, out: metrics once a second, and words where something is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.errors import BrokerError
from pipeline.worker.circuits import Circuits
from pipeline.worker.delivery import Assigned, Delivery, Engine, InFlight
from pipeline.worker.gauges import Gauges
from pipeline.worker.holding import Holding
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Flow, Health

__all__ = ["Condition"]

log = logging.getLogger("pipeline.worker")

_REPORT_S = 1.0
_NEVER = 1 << 63


class Condition:
    """What is told of one group's worker. The poll thread only."""

    def __init__(
        self,
        group: str,
        engine: Engine,
        flow: Flow,
        partitions: Partitions,
        in_flight: InFlight,
        holding: Holding,
        circuits: Circuits,
        gauges: Gauges,
        health: Health,
        *,
        unclean_ends: int,
    ) -> None:
        self._group = group
        self._engine = engine
        self._flow = flow
        self._partitions = partitions
        self._in_flight = in_flight
        self._holding = holding
        self._circuits = circuits
        self._gauges = gauges
        self._health = health
        self._unclean_ends = unclean_ends
        self._overrun: set[Delivery] = set()
        self._in_trouble = False
        self.next_report = 0.0

    def report(self, now: float) -> None:
        """Hand on what was counted, and look whether the broker answers again."""
        self.next_report = now + _REPORT_S
        running = self._engine.running()
        self._overrun.intersection_update(delivery for delivery, _ in running)
        for delivery, since in running:
            self._report_overrun(delivery, now - since)
        oldest_s = max((now - since for _, since in running), default=0.0)
        mine = self._partitions.mine
        ends = self._flow.ends(list(mine))
        for partition, assigned in mine.items():
            if assigned.watermark.end >= ends.get(partition, _NEVER):  # what comes from now on is new
                assigned.watched_until = min(assigned.watched_until, assigned.watermark.end)
        held = len(self._holding.keys)
        self._gauges.report(mine, ends, in_flight=self._in_flight.records, oldest_s=oldest_s, held=held)
        self._circuits.report()
        if self._in_trouble and self._flow.reachable():
            self._in_trouble = False
            self._health.ready(f"{self._group} broker")

    def trouble(self, error: BrokerError) -> None:
        """Say what the client reports, until the broker answers again."""
        first, self._in_trouble = not self._in_trouble, True
        self._gauges.broker_error()
        self._health.not_ready(f"{self._group} broker", error.what)
        for assigned in self._partitions.mine.values():
            assigned.committed = None
        if first:  # the client says it again with every try
            extra = {"action": "worker.trouble", "group": self._group, "why": error.what}
            log.warning("broker trouble", extra=extra)

    def report_unclean(self, unclean: Sequence[Assigned]) -> None:
        """Say that a worker before did not give partitions back, and what it may have died of."""
        suspects = {f"{a.topic}[{a.partition}]@{n}": what.ends for a in unclean for n, what in a.suspects.items()}
        log.warning(
            "the worker before ended uncleanly: what it may have died of is begun with care",
            extra={
                "action": "worker.unclean",
                "group": self._group,
                "partitions": len(unclean),
                "suspects": sorted(suspects),
                "condemned": sorted(where for where, ends in suspects.items() if ends >= self._unclean_ends),
            },
        )

    def _report_overrun(self, delivery: Delivery, seconds: float) -> None:
        route = delivery.route
        if route is None or route.handler.timeout_s is None or seconds < route.handler.timeout_s:
            return
        if route.handler.process or delivery in self._overrun:  # killed at its timeout; or said before
            return
        self._overrun.add(delivery)
        record = delivery.record
        log.warning(
            "handler overruns its timeout",
            extra={
                "action": "worker.overrun",
                "group": self._group,
                "handler": route.handler.name,
                "seconds": round(seconds, 1),
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
            },
        )
