"""An application's schedules and settings in; a running scheduler out."""

from __future__ import annotations

import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.endpoints import postgres_dsn
from pipeline.metrics import PrometheusMeter
from pipeline.outbox import Outbox
from pipeline.postgres.due import DueStore
from pipeline.probes import LOOPBACK, Readiness, serve
from pipeline.runtime.slots import watch_slots
from pipeline.scheduler import Moved, Scheduler

__all__ = ["run_scheduler"]

_ASIDE_S = 2.0  # how long what runs beside the scheduler may take to end


def run_scheduler(
    app: Pipeline | None,
    settings: Settings,
    *,
    until: threading.Event,
    keep_days: int = 7,
    metrics_port: int | None = None,
    metrics_host: str = LOOPBACK,
    on_port: Callable[[int], None] = lambda _port: None,
) -> None:
    """Run until ``until`` is set; what was begun is ended first. Without an application: delayed jobs only.

    ``keep_days`` is how long finished jobs are kept, with their results. ``metrics_port`` of ``metrics_host`` serves
    metrics and probes (0: any free port, told to ``on_port``), of all slots of the server too, so that a relay that
    is down is seen. Raises PipelineError for what does not pass by itself.
    """
    registry = CollectorRegistry()
    meter = PrometheusMeter(registry)
    meter.add("pipeline_scheduler_moved_total", 0)  # told from the start
    meter.observe_many("pipeline_scheduler_lateness_seconds", ())
    readiness = Readiness("scheduler")
    dsn = postgres_dsn(settings)
    store = DueStore(dsn, app.outbox if app else Outbox(), Moved, keep_days=keep_days)
    scheduler = Scheduler(
        store,
        app.schedules if app else (),
        tidy=store.tidy,
        meter=meter,
        health=readiness,
    )
    readiness.not_ready("database", "not asked yet")
    readiness.ready()
    if metrics_port is not None:
        on_port(serve(registry, readiness.state, metrics_port, metrics_host))
    done = threading.Event()
    slots = threading.Thread(target=watch_slots, args=(dsn, meter, done), name="slots", daemon=True)
    slots.start()
    try:
        scheduler.run(until)
    finally:
        done.set()
        slots.join(_ASIDE_S)
        store.close()
