"""A connector file and settings in, a running relay out."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo

from pipeline import probes
from pipeline.capture import Routed
from pipeline.config import Settings
from pipeline.connect.file import ConnectorFile, checked, load
from pipeline.connect.heartbeats import heartbeats
from pipeline.connect.shards import chosen
from pipeline.connect.sources import connectors
from pipeline.connector import Connector
from pipeline.endpoints import kafka_options, libpq_environment, postgres_dsn
from pipeline.errors import BrokerError, ConfigError, SourceError
from pipeline.kafka.producer import RecordProducer
from pipeline.metrics import PrometheusMeter
from pipeline.postgres import heartbeat
from pipeline.postgres.refused_rows import RefusedRows
from pipeline.postgres.statistics import SlotWatch
from pipeline.relay import Relay, Source
from pipeline.relay.creation import CreatingSource
from pipeline.relay.heartbeat import BeatingSource
from pipeline.runtime.capture import run_captured
from pipeline.runtime.encoding import converting, encoding
from pipeline.runtime.slots import SlotMetrics
from pipeline.runtime.topic_making import TopicMaking
from pipeline.topics import TopicSpec, dead_letters

__all__ = ["check_connectors", "read_connector", "run_relay"]

log = logging.getLogger(__name__)

_MEASURE_EVERY_S = 10.0
_ASIDE_S = 2.0  # how long what runs beside the relay may take to end


def read_connector(
    path: Path,
    settings: Settings,
    *,
    shard: int | None = None,
    ignore_unknown: bool = False,
    env: Mapping[str, str] | None = None,
) -> ConnectorFile:
    """Read a connector file, or a shard of it. ``${env:PG…}`` that is not set is taken from the DSN that is configured.

    ``env`` is the process's environment when None: the file names the variables, so they cannot be settings.
    """
    one = chosen(Connector(*load(path), str(path)), shard)
    known = _environment(settings, os.environ if env is None else env)
    return checked(one.name, one.config, path, known, ignore_unknown=ignore_unknown)


def check_connectors(
    paths: Sequence[str], settings: Settings, *, ignore_unknown: bool = False
) -> Iterator[tuple[str, ConnectorFile | ConfigError]]:
    """Check connectors of files, folders and ``-`` for the native relay: where each is from, and what it is.

    Raises ConfigError for what is no connector at all.
    """
    env = _environment(settings, os.environ)
    for one in connectors(paths, sys.stdin):
        try:
            yield one.source, checked(one.name, one.config, Path(one.source), env, ignore_unknown=ignore_unknown)
        except ConfigError as error:
            yield one.source, error


def run_relay(
    path: Path,
    settings: Settings,
    *,
    until: threading.Event,
    at_once: threading.Event | None = None,
    shard: int | None = None,
    ignore_unknown: bool = False,
    metrics_port: int | None = None,
    metrics_host: str = probes.LOOPBACK,
    options: Mapping[str, str] | None = None,
    on_port: Callable[[int], None] = lambda _port: None,
) -> None:
    """Run the relay of a connector file until ``until`` is set, then drain, unless ``at_once`` is set too.

    ``shard`` is which one, of a file that has some. ``metrics_port`` of ``metrics_host`` serves metrics and probes (0:
    any free port, told to ``on_port``); ``options`` are librdkafka settings over all others. Raises PipelineError where
    the relay cannot go on, and names the file.
    """
    file = read_connector(path, settings, shard=shard, ignore_unknown=ignore_unknown)
    for notice in file.notices:
        log.info(notice, extra={"action": "connector.notice", "connector": file.name})
    registry = CollectorRegistry()
    meter = PrometheusMeter(registry)
    readiness = probes.Readiness("relay")
    if metrics_port is not None:
        on_port(probes.serve(registry, readiness.state, metrics_port, metrics_host))
    kafka = {**kafka_options(settings), **file.producer, **(options or {})}
    dsn = make_conninfo("", **file.database)

    def on_error(error: BrokerError) -> None:
        meter.add("pipeline_broker_errors_total", role="relay")
        log.warning(error.what, extra={"action": "kafka.error", "connector": file.name})

    beat = _heartbeats(file)
    made = [TopicSpec(dead_letters(file.name), 1, {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"})]
    if beat:
        made.append(TopicSpec(file.heartbeat_topic, 1, {}))
    topics = TopicMaking(file, kafka, made)
    ends = ExitStack()
    wrap = _wrapping(settings, file, beat, readiness, topics.ask, ends)

    def relay(source: Source) -> Relay:
        return Relay(
            file.name,
            wrap(source),
            lambda: RecordProducer(kafka, on_error=on_error),
            keep=RefusedRows(dsn, file.name).keep,
            meter=meter,
            health=readiness,
        )

    done = threading.Event()
    aside = [
        threading.Thread(target=_watch, args=(dsn, file, meter, readiness, done), name="watch", daemon=True),
        threading.Thread(target=_beat, args=(dsn, file, readiness, done), name="heartbeat", daemon=True),
        threading.Thread(target=topics.run, args=(done,), name="make-topics", daemon=True),
    ]
    for thread in aside:
        thread.start()
    gc.collect()
    gc.freeze()  # what is here now stays; and records in flight are plain tuples, which need no collector
    gc.set_threshold(100_000, 50, 1000)
    try:
        run_captured(dsn, file, relay, until, at_once)
    except (SourceError, ConfigError, BrokerError) as error:
        kind = next(one for one in (SourceError, ConfigError, BrokerError) if isinstance(error, one))
        remedy = error.remedy.replace("grant it: ", "grant it to database.user: ").replace(" FILE", f" {path}")
        raise kind(f"{path}: {error.what}", remedy=remedy, retryable=error.retryable) from error
    finally:
        done.set()
        ends.close()
        for thread in aside:  # one that is within librdkafka when the interpreter ends can end the process by a signal
            thread.join(_ASIDE_S)


def _wrapping(
    settings: Settings,
    file: ConnectorFile,
    beat: Callable[[], Routed] | None,
    readiness: probes.Readiness,
    ask: Callable[[str], None],
    ends: ExitStack,
) -> Callable[[Source], Source]:
    """Return what a source is wrapped in where the file wants it: encoding of JSON, creation of topics, heartbeats."""
    encoded, converted = encoding(file, settings, readiness, ends), converting(file, readiness, ends)

    def wrap(source: Source) -> Source:
        source = encoded(source)
        if file.topic_groups:
            source = CreatingSource(source, ask)
        return converted(BeatingSource(source, beat, file.heartbeat_every_s) if beat else source)

    return wrap


def _environment(settings: Settings, env: Mapping[str, str]) -> dict[str, str]:
    try:
        found = libpq_environment(postgres_dsn(settings))
    except ConfigError:
        found = {}  # a file that needs it says so, with the variable's name
    return {**found, **env}


def _heartbeats(file: ConnectorFile) -> Callable[[], Routed] | None:
    """Return what makes heartbeat records, None where there are none."""
    if not file.heartbeat_every_s:
        return None
    beat = heartbeats(file.heartbeat_topic, file.topic_prefix, file.routers[0].key, file.routers[0].value)
    if beat is None:
        log.info(
            "no heartbeat records: the converters are for bytes, where Debezium's task would end",
            extra={"action": "connector.notice", "connector": file.name},
        )
    return beat


def _beat(dsn: str, file: ConnectorFile, readiness: probes.Readiness, done: threading.Event) -> None:
    """Run the heartbeat's action query, while this relay is the active one."""
    if file.heartbeat_every_s and file.heartbeat_query:
        active = lambda: readiness.state()["role"] == "active"  # noqa: E731
        heartbeat.beat(
            dsn, file.heartbeat_query, file.heartbeat_every_s, active=active, done=done, statements=file.statements
        )


def _watch(
    dsn: str, file: ConnectorFile, meter: PrometheusMeter, readiness: probes.Readiness, done: threading.Event
) -> None:
    """Measure the slot now and then. A database that is away is the relay's to report."""
    slot = SlotMetrics(SlotWatch(dsn, file.slot), meter)
    while not done.is_set():
        meter.set("pipeline_ready", 1 if readiness.state()["ready"] else 0, role="relay")
        slot.export()
        done.wait(_MEASURE_EVERY_S)
