"""Counts and durations of every stage in, Prometheus metrics out: the one catalogue of names.

No label ever holds a key, an event id or an error text, so the number of series is bounded by topics and groups.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    M = TypeVar("M", Counter, Gauge, Histogram)

__all__ = ["CATALOGUE", "Meter", "Metric", "PrometheusMeter", "SilentMeter"]

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the catalogue. The unit stands at the end of the name, as Prometheus wants it.

    ``together`` says what several processes of one command make of a gauge.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    together: Literal["sum", "max"] = "sum"


CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # relay
        Metric("pipeline_relay_rows_total", "counter", "Outbox rows acknowledged by the broker", ("connector",)),
        Metric("pipeline_relay_dead_total", "counter", "Outbox rows that cannot be published", ("connector",)),
        Metric("pipeline_relay_errors_total", "counter", "Rewinds to the confirmed position", ("connector",)),
        Metric("pipeline_relay_in_flight_rows", "gauge", "Rows sent and not yet acknowledged", ("connector",)),
        Metric("pipeline_relay_in_flight_bytes", "gauge", "Bytes sent and not yet acknowledged", ("connector",)),
        Metric(
            "pipeline_relay_active",
            "gauge",
            "1 on the relay that reads the slot, 0 on a standby",
            ("connector",),
        ),
        Metric(
            "pipeline_relay_outbox_age_seconds",
            "histogram",
            "Outbox insert to acknowledged by the broker",
            ("connector",),
        ),
        # slots: by the relay its own, by the scheduler all that the server has
        Metric("pipeline_slot_active", "gauge", "1 while somebody reads the slot", ("slot",)),
        Metric("pipeline_slot_lag_bytes", "gauge", "WAL written and not yet confirmed", ("slot",)),
        Metric("pipeline_slot_wal_retained_bytes", "gauge", "WAL that the server keeps for the slot", ("slot",)),
        Metric(
            "pipeline_slot_invalidation_seconds",
            "gauge",
            "Time until the server gives the slot up, at the present rate of WAL; absent without a bound",
            ("slot",),
        ),
        Metric(
            "pipeline_outbox_unpublished_seconds",
            "gauge",
            "Age of the oldest row that the slot's relay has not published; 0: all are",
            ("slot",),
        ),
        # worker
        Metric("pipeline_handler_seconds", "histogram", "Time in the handler, per attempt", ("group", "type")),
        Metric("pipeline_end_to_end_seconds", "histogram", "Outbox insert to handled", ("group", "type")),
        Metric(
            "pipeline_records_total",
            "counter",
            "Records settled, by outcome: done, retry, dead, skipped, cancelled, known (by an earlier owner)",
            ("group", "outcome"),
        ),
        Metric("pipeline_attempts_failed_total", "counter", "Attempts that ended in an error", ("group", "type")),
        Metric(
            "pipeline_inbox_repeats_total",
            "counter",
            "Deliveries whose effects were in the inbox already",
            ("group", "type"),
        ),
        Metric("pipeline_in_flight_records", "gauge", "Records delivered and not yet settled", ("group",)),
        Metric("pipeline_oldest_in_flight_seconds", "gauge", "Age of the oldest attempt in flight", ("group",), "max"),
        Metric("pipeline_held_back_keys", "gauge", "Keys that wait for an attempt in place", ("group",)),
        Metric(
            "pipeline_paused_partitions",
            "gauge",
            "Partitions that are paused, by reason",
            ("group", "reason"),
        ),
        Metric(
            "pipeline_breaker_state",
            "gauge",
            "Breaker of a handler: 0 closed, 1 half open, 2 open",
            ("group", "type"),
            "max",
        ),
        Metric("pipeline_breaker_opened_total", "counter", "How often a handler's breaker opened", ("group", "type")),
        Metric(
            "pipeline_breaker_waiting_records",
            "gauge",
            "Records in the worker that wait for a breaker",
            ("group", "type"),
        ),
        Metric(
            "pipeline_lag_records",
            "gauge",
            "Records between committed offset and end, due retries only",
            ("group", "topic"),
        ),
        # scheduler
        Metric("pipeline_scheduler_moved_total", "counter", "Jobs moved to the outbox when their time came"),
        Metric("pipeline_scheduler_lateness_seconds", "histogram", "Due time to moved to the outbox"),
        Metric(
            "pipeline_ticks_total",
            "counter",
            "Ticks of schedules, by outcome: made, or skipped because the one before was unfinished",
            ("schedule", "outcome"),
        ),
        # all
        Metric(
            "pipeline_broker_errors_total",
            "counter",
            "Errors that the broker or its client reported",
            ("role",),
        ),
        Metric("pipeline_registry_errors_total", "counter", "Calls to the schema registry that failed", ("role",)),
        Metric("pipeline_ready", "gauge", "1 when the process does its work", ("role",)),
        Metric("pipeline_worker_processes", "gauge", "Worker processes that run, of --processes"),
        Metric("pipeline_worker_restarts_total", "counter", "Worker processes that ended by themselves"),
        Metric("pipeline_worker_beats_lost_total", "counter", "Heartbeats of a worker that could not be stored"),
        Metric("pipeline_worker_cpu_seconds_total", "counter", "CPU time of a worker process", ("process",)),
        Metric("pipeline_worker_memory_bytes", "gauge", "Resident memory of a worker process", ("process",)),
    )
}


_LIVE: dict[str, Literal["livesum", "livemax"]] = {"sum": "livesum", "max": "livemax"}


class Meter(Protocol):
    """What the stages need to count. Names are those of the catalogue; a wrong name or label raises KeyError."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Raise a counter."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram."""

    def observe_many(self, name: str, values: Sequence[float], **labels: str) -> None:
        """Put many values into a histogram."""


class SilentMeter:
    """Counts nothing, but still refuses names that are not in the catalogue."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None:  # noqa: ARG002
        """Check the name."""
        CATALOGUE[name]

    def set(self, name: str, value: float, **labels: str) -> None:  # noqa: ARG002
        """Check the name."""
        CATALOGUE[name]

    def observe(self, name: str, value: float, **labels: str) -> None:  # noqa: ARG002
        """Check the name."""
        CATALOGUE[name]

    def observe_many(self, name: str, values: Sequence[float], **labels: str) -> None:  # noqa: ARG002
        """Check the name."""
        CATALOGUE[name]


class PrometheusMeter:
    """The catalogue as collectors of one prometheus_client registry, each from its first use on.

    What a process has nothing to do with is so not exported by it, as a zero that would mean something.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Raise a counter."""
        _labelled(self._counters.get(name) or self._made(name, self._counters, "counter"), labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        _labelled(self._gauges.get(name) or self._made(name, self._gauges, "gauge"), labels).set(value)

    def forget(self, name: str, **labels: str) -> None:
        """Export a gauge no more: what it was about is gone."""
        if gauge := self._gauges.get(name):
            gauge.remove(*(labels[label] for label in CATALOGUE[name].labels))

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        self._histogram(name, labels).observe(value)

    def observe_many(self, name: str, values: Sequence[float], **labels: str) -> None:
        """Put many values into a histogram."""
        histogram = self._histogram(name, labels)
        ordered = sorted(values)
        below = 0
        # observe() takes two locks and a walk over the buckets for each value: a seventh of a busy worker's time
        for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):  # noqa: SLF001
            upto = bisect_right(ordered, bound)
            if upto > below:
                bucket.inc(upto - below)
            below = upto
        histogram._sum.inc(sum(ordered))  # noqa: SLF001

    def _histogram(self, name: str, labels: dict[str, str]) -> Histogram:
        return _labelled(self._histograms.get(name) or self._made(name, self._histograms, "histogram"), labels)

    def _made(self, name: str, made: dict[str, M], kind: str) -> M:
        """Make a collector, once, by its line in the catalogue. Raises KeyError for one that is not there."""
        from prometheus_client import Counter, Gauge, Histogram

        with self._lock:
            if name not in made:
                metric = CATALOGUE[name]
                if metric.kind != kind:
                    raise KeyError(f"{name} is a {metric.kind}")
                collector: Any
                of = (name, metric.help, metric.labels)
                if kind == "histogram":
                    collector = Histogram(*of, registry=self._registry, buckets=LATENCY_S)
                elif kind == "gauge":
                    collector = Gauge(*of, registry=self._registry, multiprocess_mode=_LIVE[metric.together])
                else:
                    collector = Counter(*of, registry=self._registry)
                made[name] = collector
            return made[name]


def _labelled(collector: M, labels: dict[str, str]) -> M:
    """The collector of one set of labels; a metric may have none."""
    return collector.labels(**labels) if labels else collector
