"""An application's consumer groups in; their workers running, each in a thread of its own, until stopped.

And how far the groups are.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry

from pipeline.app import Pipeline
from pipeline.beat import EVERY_S
from pipeline.codec import Decoder
from pipeline.config import Settings
from pipeline.definition import Group, Handler
from pipeline.endpoints import kafka_options, postgres_dsn, registry_address
from pipeline.errors import ConfigError
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.lag import Lag, Lags
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.reset import Move, Place, Resets
from pipeline.kafka.share import ShareGroup
from pipeline.metrics import PrometheusMeter
from pipeline.postgres.inbox import Inbox
from pipeline.postgres.jobs import JobRows
from pipeline.probes import LOOPBACK, Readiness, serve
from pipeline.runtime.sharing import sides
from pipeline.runtime.tally import FOLDER, Together
from pipeline.runtime.usage import Usage
from pipeline.runtime.workers import beats_of
from pipeline.surroundings import State, enter
from pipeline.worker import COMMIT_S, Limits, Worker
from pipeline.worker.journal import Control, Journal
from pipeline.worker.solitude import Solitude

__all__ = ["Mode", "Place", "counts_elsewhere", "lag_of", "reset", "run_worker", "selected_groups"]

Mode = Literal["consumer", "share"]
_LOOK_S = 0.2
_HURRY_S = 3.0  # a commit waits for the broker, however long a rebalance holds up its answer
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


def counts_elsewhere(app: Pipeline, groups: Sequence[str] = (), queues: Sequence[str] = ()) -> bool:
    """Whether handlers run in processes of their own, and nobody has said where these count."""
    chosen = selected_groups(app, groups, queues)
    return FOLDER not in os.environ and any(handler.process for group in chosen for handler in group.handlers)


def run_worker(
    app: Pipeline,
    *,
    groups: Sequence[str] = (),
    queues: Sequence[str] = (),
    settings: Settings,
    concurrency: int = 16,
    metrics_port: int | None = None,
    metrics_host: str = LOOPBACK,
    drain_timeout_s: float = 30.0,
    until: threading.Event,
    at_once: threading.Event | None = None,
    options: Mapping[str, str] | None = None,
    number: int = 1,
    supervisor: int | None = None,
    mode: Mode = "consumer",
    heartbeat_s: float = EVERY_S,
    on_port: Callable[[int], None] = lambda _port: None,
    on_state: Callable[[dict[str, object]], None] = lambda _state: None,
) -> bool:
    """Run workers until ``until`` is set, then drain; tell whether all handlers had ended when they stopped.

    ``at_once`` ends the drain too. ``metrics_port`` of ``metrics_host`` serves metrics and probes (0: any free
    port, told to ``on_port``); ``options`` are librdkafka settings; ``number`` is this process's among those of one
    ``supervisor``, and ``on_state`` hears, again and again, what the readiness probe would say. With ``mode="share"``
    queues are read as share groups (a preview). Each ``heartbeat_s`` seconds (0: never) heartbeats tell of it.
    Raises PipelineError: what one worker cannot go on from ends all.
    """
    chosen = selected_groups(app, groups, queues)
    registry = CollectorRegistry()
    meter = PrometheusMeter(registry)
    readiness = Readiness("worker")
    kafka = {"client.id": f"pipeline-{app.names.app}", **kafka_options(settings), **(options or {})}
    limits = Limits(concurrency=concurrency, drain_s=drain_timeout_s)
    ending = threading.Event()
    with ExitStack() as ends:
        runs = _runs(app, chosen, settings, kafka, meter, readiness, limits, mode, ends, ending.is_set)
        if metrics_port is not None:
            on_port(serve(Together(registry, REGISTRY), readiness.state, metrics_port, metrics_host))
        for group in chosen:  # before anybody can ask: their threads say so only when they have begun
            readiness.not_ready(group.name, "joining the group")
        readiness.ready()
        usage = Usage(meter, number)
        beats = None
        if heartbeat_s > 0:
            writes = {name: value for name, value in kafka.items() if name not in _CONSUMER_ONLY}
            beats = beats_of(
                app, [run.worker for run in runs], readiness.state, writes, meter,
                every_s=heartbeat_s, mode=mode, number=number, supervisor=supervisor,
            )  # fmt: skip

        def report() -> None:
            now = readiness.state()
            if metrics_port is not None:  # else a supervisor tells it, of all
                meter.set("pipeline_ready", 1 if now["ready"] else 0, role="worker")
            usage.report()
            on_state(now)
            if beats is not None:
                beats.step()

        try:
            for run in runs:
                run.start()
            while not until.wait(_LOOK_S) and all(run.is_alive() for run in runs):
                report()
        finally:
            ending.set()
            _drain(runs, at_once, report)
            if beats is not None:  # who cannot go on is not gone: people should see that it is missing
                beats.end(gone=all(run.error is None for run in runs))
    for run in runs:
        if run.error is not None:
            raise run.error
    return all(run.clean for run in runs)


def _drain(runs: Sequence[_Run], at_once: threading.Event | None, report: Callable[[], None]) -> None:
    """Stop all, and wait until they have ended; once ``at_once`` is set, for a moment only."""
    for run in runs:
        run.worker.stop()
    give_up_s = math.inf
    while any(run.is_alive() for run in runs) and time.monotonic() < give_up_s:
        if at_once is not None and at_once.is_set():
            give_up_s = min(give_up_s, time.monotonic() + _HURRY_S)
            for run in runs:
                run.worker.stop(hurry=True)
        for run in runs:
            run.join(_LOOK_S)
        report()


def _runs(
    app: Pipeline,
    groups: Sequence[Group],
    settings: Settings,
    kafka: Mapping[str, str],
    meter: PrometheusMeter,
    readiness: Readiness,
    limits: Limits,
    mode: Mode,
    ends: ExitStack,
    stopped: Callable[[], bool],
) -> list[_Run]:
    """Build the workers of all groups, and what they share; ``ends`` closes that, the lifespans last."""
    from pipeline.registry.client import RegistrySchemas  # half of what a supervisor would import: 16 MB

    address = registry_address(settings)
    state = State(**enter(groups[0].lifespans, ends))
    inbox = _inbox(groups, settings, meter)
    if inbox is not None:
        ends.callback(inbox.close)
    rows = JobRows(postgres_dsn(settings), Control) if any(_needs_rows(app, group) for group in groups) else None
    if rows is not None:
        ends.callback(rows.close)
    schemas = RegistrySchemas(
        address.url,
        address.username,
        address.password,
        on_error=lambda: meter.add("pipeline_registry_errors_total", role="worker"),
    )
    ends.callback(schemas.close)
    decoder, solitude = Decoder(schemas), Solitude()

    def worker(group: Group, consumer: GroupConsumer | ShareGroup) -> Worker:
        return Worker(
            group,
            consumer,
            consumer,
            AckProducer({name: value for name, value in kafka.items() if name not in _CONSUMER_ONLY}),
            decoder,
            meter=meter,
            health=readiness,
            limits=limits,
            journal=_journal(app, group, rows, readiness, limits),
            call_of=lambda handler: inbox.around(handler) if inbox is not None and handler.inbox else handler.function,
            commit_s=consumer.commit_s if isinstance(consumer, ShareGroup) else COMMIT_S,
            state=state,
            solitude=solitude,
        )

    return [
        _Run(worker(group, consumer))
        for group in groups
        for consumer in _consumers(group, kafka, mode, limits.concurrency, stopped)
    ]


def _consumers(
    group: Group, kafka: Mapping[str, str], mode: Mode, concurrency: int, stopped: Callable[[], bool]
) -> Sequence[GroupConsumer | ShareGroup]:
    """Return what the workers of a group read from: one, or in a share group one for its topics and one for retries."""
    consumer = {name: value for name, value in kafka.items() if name not in _PRODUCER_ONLY}
    if mode == "consumer":
        return [GroupConsumer(consumer, group.name, stopped=stopped)]
    producer = {name: value for name, value in kafka.items() if name not in _CONSUMER_ONLY}
    both = {name: value for name, value in consumer.items() if name not in _CONSUMER_ONLY}
    return sides(group, consumer, both, producer, concurrency=concurrency, stopped=stopped)


def _inbox(groups: Sequence[Group], settings: Settings, meter: PrometheusMeter) -> Inbox | None:
    if not any(handler.inbox for group in groups for handler in group.handlers):
        return None

    def on_repeat(handler: Handler) -> None:
        kind = handler.model.message_type.name
        meter.add("pipeline_inbox_repeats_total", group=handler.group, type=kind)

    return Inbox(postgres_dsn(settings), on_repeat=on_repeat)


def _needs_rows(app: Pipeline, group: Group) -> bool:
    """Whether a group is a queue whose jobs are tracked, or limited in what they may."""
    tracked = any(handler.model.message_type.track for handler in group.handlers)
    queue = app.queue_of(group.name)
    return tracked or queue.rate is not None or queue.priorities


def _journal(app: Pipeline, group: Group, rows: JobRows | None, readiness: Readiness, limits: Limits) -> Journal | None:
    if rows is None or not _needs_rows(app, group):
        return None
    queue, name = app.queue_of(group.name), f"{socket.gethostname()}:{os.getpid()}"
    return Journal(rows, queue, worker=name, health=readiness, concurrency=limits.concurrency)


def lag_of(settings: Settings, app: Pipeline | None = None, groups: Sequence[str] = ()) -> list[Lag]:
    """Return the lag of an application's groups, or of all that the broker knows; ``groups`` picks some by name."""
    lags = Lags(kafka_options(settings))
    try:
        if app is None:
            known = lags.groups()
            missing = sorted(set(groups) - set(known))
            if missing:
                raise ConfigError(f"no such group: {', '.join(missing)}", remedy=f"groups are: {', '.join(known)}")
            return [row for name in groups or known for row in lags.of(name, now_s=time.time())]
        return [
            row
            for group in selected_groups(app, groups)
            for row in lags.of(group.name, [*group.topics, *group.retry_topics], now_s=time.time())
        ]
    finally:
        lags.close()


def reset(
    settings: Settings,
    group: str,
    to: Place,
    *,
    topics: Sequence[str] = (),
    partition: int | None = None,
    execute: bool,
) -> list[Move]:
    """Plan where a group would begin, and with ``execute`` commit that. Raises BrokerError and ConfigError."""
    resets = Resets(kafka_options(settings))
    try:
        moves = resets.plan(group, to, topics=topics, partition=partition)
        if execute:
            resets.make(moves)
        return moves
    finally:
        resets.close()


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
