"""Settings and a connector file in, what is wrong with the servers, and how to mend it, out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from psycopg.conninfo import make_conninfo

from pipeline.config import Settings
from pipeline.connect.file import load
from pipeline.connect.references import resolve
from pipeline.connect.rest import Connect
from pipeline.connector import Connector
from pipeline.endpoints import connect_url, kafka_options, libpq_environment, postgres_dsn, registry_address
from pipeline.errors import ConfigError, PipelineError
from pipeline.finding import Finding, Level
from pipeline.kafka.admin import Topics
from pipeline.postgres.diagnosis import Capture, examine
from pipeline.registry.subjects import Subjects
from pipeline.topics import dead_letters

__all__ = ["diagnose"]

_PARTS = {
    "host": "database.hostname", "port": "database.port", "user": "database.user",
    "password": "database.password", "dbname": "database.dbname", "sslmode": "database.sslmode",
    "sslrootcert": "database.sslrootcert", "sslcert": "database.sslcert", "sslkey": "database.sslkey",
}  # fmt: skip


def diagnose(settings: Settings, file: Path, *, provider: str = "") -> Iterator[Finding]:
    """Look at all servers that a connector file needs. A server that is away is a finding. Raises ConfigError."""
    name, texts = load(file)
    try:
        known = libpq_environment(postgres_dsn(settings))
    except ConfigError:
        known = {}
    config = {key: resolve(texts[key], f"{file}: {key}", {**known, **os.environ}) for key in _used(texts)}
    dsn = make_conninfo("", **{part: config[key] for part, key in _PARTS.items() if config.get(key)})
    tables = tuple(re.sub(r"\\(.)", r"\1", one).strip() for one in config.get("table.include.list", "").split(","))
    capture = Capture(
        slot=config.get("slot.name", "debezium"),
        publication=config.get("publication.name", "dbz_publication"),
        tables=tuple(one for one in tables if re.fullmatch(r"\w+\.\w+", one)),
        creates=config.get("publication.autocreate.mode") != "disabled",
    )
    yield from examine(dsn, capture, provider=provider)
    yield from _asked("kafka", "broker", lambda: _kafka(settings, name))
    yield from _asked("registry", "registry", lambda: _registry(settings))
    if url := connect_url(settings):
        yield from _asked("connect", "Kafka Connect", lambda: _connect(url, Connector(name, texts, str(file))))


def _used(texts: dict[str, str]) -> list[str]:
    wanted = {*_PARTS.values(), "table.include.list", "slot.name", "publication.name", "publication.autocreate.mode"}
    return [key for key in texts if key in wanted]


def _asked(area: str, check: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return ask()
    except PipelineError as error:
        return [Finding(area, check, "problem", error.what, error.remedy)]


def _kafka(settings: Settings, name: str) -> list[Finding]:
    topics = Topics(kafka_options(settings))
    there = topics.partitions()
    found = [Finding("kafka", "broker", "ok", f"answers, {len(there)} topics")]
    dlq = dead_letters(name)
    if dlq not in there:
        fix = f"pipeline connector run makes it; or kafka-topics --create --topic {dlq} --config retention.ms=-1"
        return [*found, Finding("kafka", f"topic {dlq}", "warning", "is not there", fix)]
    config = topics.configs([dlq])[dlq]
    for key, wanted in (("retention.ms", "-1"), ("message.timestamp.type", "LogAppendTime")):
        if config.get(key) != wanted:
            fix = f"kafka-configs --alter --entity-type topics --entity-name {dlq} --add-config {key}={wanted}"
            found.append(Finding("kafka", f"topic {dlq}", "warning", f"{key}={config.get(key)}", fix))
    return found


def _registry(settings: Settings) -> list[Finding]:
    address = registry_address(settings)
    with closing(Subjects(address.url, address.username, address.password)) as subjects:
        count, mode = len(subjects.names()), subjects.mode()
    found = [Finding("registry", "registry", "ok", f"answers, {count} subjects")]
    if mode != "READWRITE":
        fix = f"curl -X PUT {address.url}/mode -H 'content-type: application/json' -d '{{\"mode\": \"READWRITE\"}}'"
        found.append(Finding("registry", "mode", "problem", f"{mode}: schemas cannot be pushed", fix))
    return found


def _connect(url: str, connector: Connector) -> list[Finding]:
    with closing(Connect(url)) as connect:
        errors = connect.errors(connector)
        state = connect.state(connector.name)
    found = [
        Finding("connect", key, "problem", " ".join(texts[0].split()), f"correct {key} in {connector.source}")
        for key, texts in sorted(errors.items())
    ] or [Finding("connect", "Kafka Connect", "ok", f"takes {connector.source}")]
    if state is not None:
        fix = "" if state.healthy else f"pipeline connector status {connector.name}, then restart --only-failed"
        level: Level = "ok" if state.healthy else "problem"
        found.append(Finding("connect", f"connector {connector.name}", level, state.summary, fix))
    return found
