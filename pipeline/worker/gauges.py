"""What a worker counted in, the catalogue's metrics out. Measured per record, handed on once a second."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipeline.metrics import Meter
from pipeline.worker.delivery import Assigned, Route
from pipeline.worker.ports import Partition

__all__ = ["Gauges"]

T = TypeVar("T")
_REASONS = ("tier", "backlog", "full", "progress", "breaker")


class Gauges:
    """The metrics of one group. ``totals`` are its settled records by outcome since the start, ``failed`` attempts."""

    def __init__(self, group: str, meter: Meter, routes: Sequence[Route]) -> None:
        self._group = group
        self._meter = meter
        self._routes = routes
        self.totals: Counter[str] = Counter()
        self.failed = 0
        self._told: Counter[str] = Counter()
        self._topics: set[str] = set()  # whose lag was told

    def settled(self, outcome: str, count: int) -> None:
        """Count records by what became of them."""
        self.totals[outcome] += count

    def broker_error(self) -> None:
        """Count an error that the client reported."""
        self._meter.add("pipeline_broker_errors_total", role="worker")

    def report(
        self,
        assigned: Mapping[Partition, Assigned],
        ends: Mapping[Partition, int],
        *,
        in_flight: int,
        oldest_s: float,
        held: int,
    ) -> None:
        """Hand everything on."""
        meter, group = self._meter, self._group
        for outcome, total in self.totals.items():
            if count := total - self._told[outcome]:
                meter.add("pipeline_records_total", count, group=group, outcome=outcome)
                self._told[outcome] = total
        for route in self._routes:
            labels = {"group": group, "type": route.type_name}
            meter.observe_many("pipeline_handler_seconds", _taken(route.seconds), **labels)
            meter.observe_many("pipeline_end_to_end_seconds", _taken(route.ages_s), **labels)
            if failed := len(_taken(route.failed)):
                meter.add("pipeline_attempts_failed_total", failed, **labels)
                self.failed += failed
        meter.set("pipeline_in_flight_records", in_flight, group=group)
        meter.set("pipeline_oldest_in_flight_seconds", oldest_s, group=group)
        meter.set("pipeline_held_back_keys", held, group=group)
        for reason in _REASONS:
            count = sum(reason in one.paused for one in assigned.values())
            meter.set("pipeline_paused_partitions", count, group=group, reason=reason)
        lags = Counter(dict.fromkeys(self._topics, 0))  # what was taken away is another worker's to tell
        for partition, one in assigned.items():
            behind = max(0, ends.get(partition, 0) - one.watermark.position)
            lags[one.topic] += 0 if "tier" in one.paused else behind  # what is not due does not count
        self._topics.update(lags)
        for topic, lag in lags.items():
            meter.set("pipeline_lag_records", lag, group=group, topic=topic)


def _taken(values: deque[T]) -> list[T]:
    return [values.popleft() for _ in range(len(values))]
