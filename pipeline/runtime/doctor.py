"""Settings and a connector file in, what is wrong with the servers, and how to mend it, out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from psycopg.conninfo import make_conninfo

from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.connect.database import PARAMETERS
from pipeline.connect.file import load
from pipeline.connect.java import java_regex, java_replacement
from pipeline.connect.options import ROUTER
from pipeline.connect.references import resolve
from pipeline.connect.rest import Connect
from pipeline.connect.routing import column_names
from pipeline.connect.shards import expanded
from pipeline.connector import Connector
from pipeline.endpoints import connect_url, kafka_options, libpq_environment, postgres_dsn, registry_address
from pipeline.errors import ConfigError, PipelineError
from pipeline.finding import Finding, Level
from pipeline.kafka import diagnosis as kafka
from pipeline.kafka.admin import Topics
from pipeline.postgres import diagnosis as postgres
from pipeline.registry.subjects import Subjects
from pipeline.runtime.topics import plan_topics
from pipeline.topics import dead_letters

__all__ = ["PROVIDERS", "diagnose"]

PROVIDERS = tuple(postgres.PROVIDERS)

_ROUTER = "io.debezium.transforms.outbox.EventRouter"
_RELAY = "pipeline-relay"  # as it calls itself to the server
_JAVA_LIMIT = "producer.override.max.request.size"


def diagnose(
    settings: Settings,
    file: Path,
    *,
    provider: str = "",
    app: Pipeline | None = None,
    app_name: str = "",
    now: Callable[[], float] = time.time,
) -> Iterator[Finding]:
    """Look at all servers that a connector file needs, and at the topics that ``app`` declares, if there is one.

    ``app_name`` is what remedies call it, ``module:attribute``. A server that is away is a finding. Raises ConfigError.
    """
    shards = expanded(Connector(*load(file), str(file)))
    told: set[tuple[str, str]] = set()
    named = app_name or "MODULE:APP"
    for one in shards:
        found = [
            replace(finding, fix=finding.fix.replace(" FILE", f" {file}").replace(" MODULE:APP", f" {named}"))
            for finding in _of(settings, one, shards, provider, app, now)
            if (finding.area, finding.check) not in told  # with an earlier shard
        ]
        told |= {(finding.area, finding.check) for finding in found}
        yield from found


def _of(
    settings: Settings,
    connector: Connector,
    shards: Sequence[Connector],
    provider: str,
    app: Pipeline | None,
    now: Callable[[], float],
) -> Iterator[Finding]:
    name = connector.name
    publications = [one.config["publication.name"] for one in shards] if len(shards) > 1 else []
    asked = _Asked(settings, Path(connector.source), connector.config, publications)
    first = connector == shards[0]
    yield from postgres.examine(asked.dsn, asked.capture, provider=provider, known=not first, now=now)
    yield from _asked("kafka", "broker", lambda: _kafka(settings, name, asked if first else None, now))
    if app is not None:
        yield from _retention(app, asked)
        if first:
            yield from _asked("kafka", "topics", lambda: _declared(app, settings))
    if first:
        yield from _asked("registry", "registry", lambda: _registry(settings))
    url = connect_url(settings)
    if url and asked.capture.polls:
        yield from _asked("connect", "Kafka Connect", lambda: _not_on_connect(url, name))
    elif url:
        yield from _asked("connect", "Kafka Connect", lambda: _connect(url, connector, asked.dsn, asked.capture.slot))


class _Asked:
    """What a connector file asks of the servers; of its references only those that are needed are resolved."""

    def __init__(self, settings: Settings, file: Path, texts: Mapping[str, str], shards: Sequence[str] = ()) -> None:
        try:
            known = libpq_environment(postgres_dsn(settings))
        except ConfigError:
            known = {}
        self._file = file
        self._texts = texts
        self._env = {**known, **os.environ}
        prefixes = [f"transforms.{one.strip()}." for one in texts.get("transforms", "").split(",")]
        self._router = next((one for one in prefixes if texts.get(f"{one}type") == _ROUTER), "")
        parts = {part: self.key(key) for key, part in PARAMETERS.items() if self.key(key)}
        if "," in parts.get("host", ""):
            parts["target_session_attrs"] = "primary"
        self.dsn = make_conninfo("", **parts)
        tables = (re.sub(r"\\(.)", r"\1", one).strip() for one in self.key("table.include.list").split(","))
        columns = ("table.field.event.id", "table.field.event.key", "table.field.event.payload", "route.by.field")
        timestamp = self.option("table.field.event.timestamp")
        named = [*map(self.option, columns), timestamp, *self._placed()]
        self.capture = postgres.Capture(
            slot=self.key("slot.name", "debezium"),
            publication=self.key("publication.name", "dbz_publication"),
            tables=tuple(one for one in tables if re.fullmatch(r"\w+\.\w+", one)),
            creates=self.word("publication.autocreate.mode", "all_tables") != "disabled",
            columns=tuple(dict.fromkeys(one for one in named if one)),
            timestamp=timestamp,
            failover=self.word("slot.failover") == "true",
            snapshot=self.word("snapshot.mode", "initial"),
            polls=self.word("pipeline.capture", "wal") == "polling",
            seq=self.key("pipeline.polling.seq", "seq"),
            xid=self.key("pipeline.polling.xid", "xid"),
            shards=tuple(shards),
            key=self.option("table.field.event.key"),
            adjust=column_names(self.word("field.name.adjustment.mode", "none"), texts),
        )

    def key(self, key: str, default: str = "") -> str:
        """Return a key's value, references resolved."""
        return resolve(self._texts.get(key, default), f"{self._file}: {key}", self._env)

    def word(self, key: str, default: str = "") -> str:
        """Return the value of a key whose values are known words: their case does not matter."""
        return self.key(key, default).strip().lower()

    def option(self, option: str) -> str:
        """Return an option of the Event Router; empty where there is none."""
        return self.key(self._router + option, ROUTER[option][1]) if self._router else ""

    def _placed(self) -> list[str]:
        """Return the columns that go into headers, the envelope or the partition, and must be there."""
        if self.option("table.field.additional.missing").strip().lower() == "ignore":
            return []
        return [one.partition(":")[0].strip() for one in self.option("table.fields.additional.placement").split(",")]

    def published(self, dead: str) -> kafka.Published:
        """Say what rows that are there ask of the broker. Raises PipelineError."""
        limit = self.key(_JAVA_LIMIT)
        own = int(limit) if limit.isdecimal() else None
        route = self.option("route.by.field")
        if not route:
            return kafka.Published(dead, limit_bytes=own)
        key, payload = self.option("table.field.event.key"), self.option("table.field.event.payload")
        found = postgres.retained(self.dsn, self.capture, route=route, key=key, payload=payload)
        try:
            regex = java_regex(self.option("route.topic.regex"))
            replacement = java_replacement(self.option("route.topic.replacement"), regex)
        except (re.error, ValueError) as error:
            raise ConfigError(
                f"{self._file}: {self._router}route.topic.regex and replacement: {error}", remedy="correct them"
            ) from error
        sizes: dict[str, int] = {}
        for value, size in found.routes.items():
            matched = regex.fullmatch(value)
            topic = replacement(matched) if matched else value
            sizes[topic] = max(size, sizes.get(topic, 0))
        return kafka.Published(dead, sizes, found.unpublished_s, own)


def _asked(area: str, check: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return ask()
    except PipelineError as error:
        return [Finding(area, check, "problem", error.what, error.remedy)]


def _kafka(settings: Settings, name: str, asked: _Asked | None, now: Callable[[], float]) -> list[Finding]:
    """Look at the broker, and at the topics of rows that are there, unless that was done for another shard (None)."""
    dead, found = dead_letters(name), []
    try:
        published = asked.published(dead) if asked else kafka.Published(dead)
    except PipelineError as error:
        published = kafka.Published(dead)
        if isinstance(error, ConfigError):  # else the database is away, which other findings say
            found.append(Finding("kafka", "topics of the file", "problem", error.what, error.remedy))
    return [*found, *kafka.examine(Topics(kafka_options(settings)), published, now=now)]


def _retention(app: Pipeline, asked: _Asked) -> Iterator[Finding]:
    """Compare what becomes of rows: the application's outbox against the connector file."""
    mine, theirs = app.outbox.retain, asked.word("pipeline.retain", "pruned")
    if mine != theirs:
        fix = f"pipeline.retain={mine} in FILE, or Outbox(retain={theirs!r}): snapshots and reconcile go by the file"
        yield Finding("outbox", "retention", "problem", f"{theirs} in the file, {mine} in the application", fix)
    elif mine == "none" and asked.capture.slot not in app.outbox.slots:
        found = f"{asked.capture.slot} is none of the application's: {', '.join(app.outbox.slots)}"
        fix = f"name it in Outbox(slots=…): rows would be lost while {asked.capture.slot} is missing"
        yield Finding("outbox", "slots of the application", "problem", found, fix)
    elif mine == "none":
        yield Finding("outbox", "retention", "ok", "none: rows are deleted by the transaction that writes them")


def _declared(app: Pipeline, settings: Settings) -> list[Finding]:
    """Compare the application's topics, those of its retries and dead letters among them, with the broker's."""
    found = []
    for change in plan_topics(app, settings):
        if change.action == "keep":
            continue
        level: Level = "problem" if change.action == "create" else "warning"
        allow = "" if change.action == "create" else f" --allow {change.action}"
        fix = f"pipeline topics apply MODULE:APP{allow}" if change.open else "declare as many partitions as there are"
        found.append(Finding("kafka", f"topic {change.topic}", level, f"{change.action}: {change.detail}", fix))
    return found or [Finding("kafka", "topics of the application", "ok", "are as it declares them")]


def _registry(settings: Settings) -> list[Finding]:
    address = registry_address(settings)
    with closing(Subjects(address.url, address.username, address.password)) as subjects:
        count, mode = len(subjects.names()), subjects.mode()
    found = [Finding("registry", "registry", "ok", f"answers, {count} subjects")]
    if mode != "READWRITE":
        fix = (
            f"curl -X PUT {address.url}/mode -u USER:PASSWORD -H 'content-type: application/json' "
            """-d '{"mode": "READWRITE"}'"""
        )
        found.append(Finding("registry", "mode", "problem", f"{mode}: schemas cannot be pushed", fix))
    return found


def _not_on_connect(url: str, name: str) -> list[Finding]:
    """Who polls is a native relay: a connector of that name would publish each row once more."""
    with closing(Connect(url)) as connect:
        state = connect.state(name)
    if state is None:
        return []
    fix = f"pipeline connector stop {name}: the relay that polls takes its slot over"
    return [Finding("connect", f"connector {name}", "problem", f"{state.summary}, and its table is to be polled", fix)]


def _connect(url: str, connector: Connector, dsn: str, slot: str) -> list[Finding]:
    with closing(Connect(url)) as connect:
        said = connect.check(connector)
        state = connect.state(connector.name)
    found = [
        Finding("connect", key, "problem", " ".join(texts[0].split()), f"correct {key} in {connector.source}")
        for key, texts in sorted(said.errors.items())
    ] or [Finding("connect", "Kafka Connect", "ok", f"takes {connector.source}")]
    for key, near in said.unknown.items():
        fix = f"did you mean {near}?" if near else f"remove {key} from {connector.source}"
        found.append(Finding("connect", key, "warning", "is unknown, and passed over in silence", fix))
    if state is not None and state.rests:
        fix = f"pipeline connector resume {connector.name}, once no native relay reads its slot"
        found.append(Finding("connect", f"connector {connector.name}", "note", state.summary, fix))
    elif state is not None and state.healthy and postgres.reader(dsn, slot).startswith(_RELAY):
        text = f"{state.summary}, but a native relay reads slot {slot}: it waits for it, and publishes nothing"
        fix = f"stop the relay (kill -TERM), or pipeline connector stop {connector.name}: docs/adopt.md"
        found.append(Finding("connect", f"connector {connector.name}", "problem", text, fix))
    elif state is not None:
        fix = "" if state.healthy else f"pipeline connector status {connector.name}, then restart --only-failed"
        level: Level = "ok" if state.healthy else "problem"
        found.append(Finding("connect", f"connector {connector.name}", level, state.summary, fix))
    return found
