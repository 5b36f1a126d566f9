"""An application's consumer groups in; their workers running, each in a thread of its own, until stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from prometheus_client import CollectorRegistry

from pipeline.app import Pipeline
from pipeline.codec import Decoder
from pipeline.config import Settings
from pipeline.definition import Group
from pipeline.endpoints import kafka_options, registry_address
from pipeline.errors import ConfigError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import PrometheusMeter
from pipeline.probes import Readiness, serve
from pipeline.registry.client import RegistrySchemas
from pipeline.worker import Limits, Worker

__all__ = ["run_worker", "selected_groups"]

_LOOK_S = 0.2
_CONSUMER_ONLY = frozenset(
    {
        "group.protocol",
        "group.instance.id",
        "group.remote.assignor",
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "max.poll.interval.ms",
        "fetch.min.bytes",
        "fetch.wait.max.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "max.partition.fetch.bytes",
        "queued.min.messages",
        "queued.max.messages.kbytes",
        "check.crcs",
    }
)
_PRODUCER_ONLY = frozenset({"linger.ms", "compression.type", "batch.size", "batch.num.messages"})


def selected_groups(app: Pipeline, groups: Sequence[str] = (), queues: Sequence[str] = ()) -> list[Group]:
    """Return the groups and queues by their short or full names; all of the application where none is named."""
    known = app.groups
    if not groups and not queues:
        names = list(known)
    else:
        names = [name if name in known else app.names.group(name) for name in groups]
        names += [name if name in known else app.names.jobs(name) for name in queues]
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ConfigError(
            f"no handlers for {', '.join(missing) or 'any group'}", remedy=f"groups are: {', '.join(known) or 'none'}"
        )
    return [known[name] for name in dict.fromkeys(names)]


def run_worker(
    app: Pipeline,
    *,
    groups: Sequence[str] = (),
    queues: Sequence[str] = (),
    settings: Settings,
    concurrency: int = 16,
    metrics_port: int | None = None,
    drain_timeout_s: float = 30.0,
    until: Callable[[], bool] = lambda: False,
    options: Mapping[str, str] | None = None,
    on_metrics_port: Callable[[int], None] = lambda _port: None,
) -> bool:
    """Run workers until a signal or ``until``; tell whether all handlers had ended when they stopped.

    In the main thread SIGTERM and SIGINT drain, a second one stops at once. ``options`` are librdkafka settings.
    Raises PipelineError: what one worker cannot go on from ends all of them.
    """
    chosen = selected_groups(app, groups, queues)
    registry = CollectorRegistry()
    meter = PrometheusMeter(registry)
    readiness = Readiness("worker")
    address = registry_address(settings)
    decoder = Decoder(
        RegistrySchemas(
            address.url,
            address.username,
            address.password,
            on_error=lambda: meter.add("pipeline_registry_errors_total", role="worker"),
        )
    )
    kafka = {"client.id": f"pipeline-{app.names.app}", **kafka_options(settings), **(options or {})}
    limits = Limits(concurrency=concurrency, drain_s=drain_timeout_s)
    runs = [_Run(_worker(group, kafka, decoder, meter, readiness, limits)) for group in chosen]
    if metrics_port is not None:
        on_metrics_port(serve(registry, readiness.state, metrics_port))
    readiness.ready()
    restore = _on_signals(runs)
    try:
        for run in runs:
            run.start()
        while not until() and all(run.is_alive() for run in runs):
            meter.set("pipeline_ready", 1 if readiness.state()["ready"] else 0, role="worker")
            runs[0].join(_LOOK_S)
    finally:
        for run in runs:
            run.worker.stop()
        for run in runs:
            run.join()
        restore()
    for run in runs:
        if run.error is not None:
            raise run.error
    return all(run.clean for run in runs)


def _worker(
    group: Group,
    kafka: Mapping[str, str],
    decoder: Decoder,
    meter: PrometheusMeter,
    readiness: Readiness,
    limits: Limits,
) -> Worker:
    consumer = GroupConsumer({name: value for name, value in kafka.items() if name not in _PRODUCER_ONLY}, group.name)
    producer = AckProducer({name: value for name, value in kafka.items() if name not in _CONSUMER_ONLY})
    return Worker(group, consumer, consumer, producer, decoder, meter=meter, health=readiness, limits=limits)


class _Run(threading.Thread):
    """One worker in its thread."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="worker", daemon=True)
        self.worker = worker
        self.clean = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.clean = self.worker.run()
        except BaseException as error:  # noqa: BLE001 — raised again in the thread that waits for it
            self.error = error


def _on_signals(runs: Sequence[_Run]) -> Callable[[], None]:
    """Drain at the first signal, stop at once at the second; return what takes that back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    seen: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        for run in runs:
            run.worker.stop(hurry=len(seen) > 1)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
