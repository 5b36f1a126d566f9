"""Slots of a server in, their metrics out, as long as they are there."""

from __future__ import annotations

import logging
import threading

from pipeline.errors import PipelineError
from pipeline.metrics import PrometheusMeter
from pipeline.postgres.statistics import SlotStatistics, SlotWatch

__all__ = ["SlotMetrics", "watch_slots"]

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class SlotMetrics:
    """What is exported of each slot; of one that is gone, or a value that is not known, nothing is."""

    def __init__(self, watch: SlotWatch, meter: PrometheusMeter) -> None:
        self._watch = watch
        self._meter = meter
        self._told: set[tuple[str, str]] = set()  # metric, slot

    def export(self) -> None:
        """Look once. A database that is away is for others to report: what it said last is told no more."""
        try:
            found = self._watch.look()
        except PipelineError as error:
            log.debug(error.what, extra={"action": "slot.unmeasured"})
            found = []
        values = {(name, one.slot): value for one in found for name, value in _values(one).items() if value is not None}
        for (name, slot), value in values.items():
            self._meter.set(name, value, slot=slot)
        for name, slot in self._told - values.keys():
            self._meter.forget(name, slot=slot)
        self._told = set(values)


def watch_slots(dsn: str, meter: PrometheusMeter, done: threading.Event) -> None:
    """Export all slots of a server now and then, until ``done``."""
    metrics = SlotMetrics(SlotWatch(dsn), meter)
    while not done.is_set():
        metrics.export()
        done.wait(_EVERY_S)


def _values(one: SlotStatistics) -> dict[str, float | None]:
    return {
        "pipeline_slot_active": float(one.active),
        "pipeline_slot_lag_bytes": one.lag_bytes,
        "pipeline_slot_wal_retained_bytes": one.retained_bytes,
        "pipeline_slot_invalidation_seconds": one.invalidation_s,
        "pipeline_outbox_unpublished_seconds": one.unpublished_s,
    }
