"""A connector file in, the native relay's settings out: every key honoured, without meaning here, or refused by name.

The same file runs on Kafka Connect with Debezium. Nothing in it is passed over in silence.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pipeline.connect.adjustment import change_topic
from pipeline.connect.converters import OPTIONS_WITHOUT_MEANING, converter_option
from pipeline.connect.database import database, statements
from pipeline.connect.filters import Filters, chosen, filters
from pipeline.connect.heartbeats import heartbeat_topic
from pipeline.connect.json_file import load, parse
from pipeline.connect.messages import DECODE, MessageOptions
from pipeline.connect.options import DECODER, HONOURED, NOT_YET, ROUTER, WITHOUT_MEANING
from pipeline.connect.producer import translate
from pipeline.connect.references import resolve
from pipeline.connect.routing import RouterOptions, router_options
from pipeline.connect.snapshots import OVERRIDES, SnapshotOptions, snapshot_options
from pipeline.connect.topic_creation import PREFIX as TOPIC_CREATION
from pipeline.connect.topic_creation import TopicGroup, topic_groups
from pipeline.connect.transforms import Transform, chain, names
from pipeline.errors import ConfigError

__all__ = ["ConnectorFile", "Polling", "checked", "load", "parse", "read"]

_TYPO = 0.9  # so alike is a key only to one that is meant
_NAME = re.compile(r"[a-z0-9_]{1,63}")
_REQUIRED = (
    "connector.class",
    "database.hostname",
    "database.user",
    "database.dbname",
    "key.converter",
    "value.converter",
    "transforms",
)


@dataclass(frozen=True, slots=True)
class Polling:
    """How the table is polled: the columns with a row's number and transaction, and how often."""

    seq: str
    xid: str
    every_s: float


@dataclass(frozen=True, slots=True)
class ConnectorFile:
    """A connector file that the native relay can run. ``notices`` are to be logged once; secrets do not print."""

    name: str
    slot: str
    publication: str
    creates: str  # publication.autocreate.mode
    by_root: bool  # of a publication that is created
    filters: Filters
    drops: bool  # the slot, in the end
    stream: Mapping[str, str]  # more parameters of START_REPLICATION
    snapshot: SnapshotOptions | None
    messages: MessageOptions | None  # logical messages that are outbox events
    failover: bool
    trust_slot: bool
    status_every_s: float
    heartbeat_every_s: float  # 0: never
    heartbeat_query: str
    heartbeat_topic: str
    topic_groups: tuple[TopicGroup, ...]  # as which missing topics are created; none: they are not
    encodes: bool  # JSON payloads, to Avro
    retains: bool  # rows stay in the table when they have been written
    polls: bool  # else by the WAL
    polling: Polling
    topic_prefix: str
    routers: tuple[RouterOptions, ...]
    statements: tuple[str, ...]  # at the begin of a snapshot's and of the heartbeat query's connection
    database: dict[str, str] = field(repr=False)
    producer: dict[str, str] = field(repr=False)
    notices: tuple[str, ...] = ()

    @property
    def tables_text(self) -> str:
        """The lists of tables, for messages."""
        return self.filters.text

    def captures(self, schema: str, table: str) -> bool:
        """Tell whether a table is read."""
        return self.filters.schemas(schema) and self.filters.tables(f"{schema}.{table}")

    def router_of(self, table: str) -> RouterOptions:
        """Return the router that takes the changes of "schema.table". Raises ConfigError where none does."""
        topic = change_topic(self.topic_prefix, self.routers[0].delimiter, table)
        if (found := next((router for router in self.routers if router.takes(topic)), None)) is None:
            raise ConfigError(
                f"connector {self.name}: no Event Router takes the changes of table {table}, by their topic {topic}",
                remedy="correct its predicate, or take the table out of table.include.list; to publish the changes "
                "as Debezium has them, run this file on Kafka Connect",
            )
        return found

    def sees(self, table: str, column: str) -> bool:
        """Tell whether a column of "schema.table" is read."""
        return self.filters.columns(f"{table}.{column}")


def read(path: Path, env: Mapping[str, str], *, ignore_unknown: bool = False) -> ConnectorFile:
    """Read and check a whole file. ``env`` resolves ``${env:…}``; ``ignore_unknown`` turns unknown keys into notices.

    Raises ConfigError naming file, key and remedy.
    """
    return checked(*load(path), path, env, ignore_unknown=ignore_unknown)


def checked(
    name: str, texts: Mapping[str, str], path: Path, env: Mapping[str, str], *, ignore_unknown: bool = False
) -> ConnectorFile:
    """Check the keys of a connector that was read from ``path``. Raises ConfigError, as ``read``."""
    config = _Config(path, {key: resolve(text, f"{path}: {key}", env) for key, text in texts.items()}, ignore_unknown)
    return config.checked(name)


class _Config:
    """The keys of one file, while they are checked."""

    def __init__(self, path: Path, values: dict[str, str], ignore_unknown: bool) -> None:
        self._path = path
        self._values = values
        self._ignore_unknown = ignore_unknown
        self._notices: list[str] = []
        self._transforms: list[Transform] = []
        self._context: tuple[tuple[str, str], ...] = ()

    def checked(self, name: str) -> ConnectorFile:
        for key in _REQUIRED:
            if not self._values.get(key, "").strip():
                raise ConfigError(f"{self._path}: {key}: is missing", remedy=f"add {key}{_example(key)}")
        topic_prefix = self._values.get("topic.prefix", name)
        self._context = self._context_headers(topic_prefix)
        messages, headers = f"{topic_prefix}.message", dict(self._context)
        self._transforms = chain(
            self._path, self._values, lambda topic: headers if topic != messages else (), self._refuse
        )
        self._classify()
        routers = tuple(self._router(one) for one in self._transforms if not one.decodes)
        producer = {key: text for key, text in self._values.items() if key.startswith("producer.override.")}
        return ConnectorFile(
            name=name,
            slot=self._identifier("slot.name"),
            publication=self._get("publication.name"),
            creates=self._get("publication.autocreate.mode"),
            by_root=self._get("publish.via.partition.root") == "true",
            filters=filters(str(self._path), self._get, needed=not any(one.decodes for one in self._transforms)),
            drops=self._get("slot.drop.on.stop") == "true",
            stream=self._stream(),
            snapshot=snapshot_options(str(self._path), self._get, lambda key: self._milliseconds(key, 0), self._values),
            messages=self._messages(messages, routers),
            failover=self._get("slot.failover") == "true",
            trust_slot=self._get("offset.mismatch.strategy") in {"trust_slot", "trust_greater_lsn"},
            status_every_s=self._milliseconds("status.update.interval.ms") / 1000,
            heartbeat_every_s=self._heartbeat(),
            heartbeat_query=self._get("heartbeat.action.query"),
            heartbeat_topic=heartbeat_topic(str(self._path), self._get, topic_prefix),
            topic_groups=topic_groups(self._path, self._values),
            encodes=self._encodes(routers),
            retains=self._get("pipeline.retain") == "pruned",
            polls=self._polls(routers),
            polling=Polling(
                self._get("pipeline.polling.seq"),
                self._get("pipeline.polling.xid"),
                self._milliseconds("poll.interval.ms") / 1000,
            ),
            topic_prefix=topic_prefix,
            routers=routers,
            statements=statements(self._get("database.initial.statements")),
            database=database(str(self._path), self._get, self._notices.append),
            producer=translate(producer, self._path, self._notices.append),
            notices=tuple(self._notices),
        )

    def _classify(self) -> None:
        """Look at each key: refuse it, note it, or check it against the values that are honoured."""
        ours = tuple(one.prefix for one in self._transforms)
        predicates = tuple(f"predicates.{name}." for name in names(self._values, "predicates"))
        for key, value in self._values.items():
            known = self._known(key)
            if known is not None:
                if known[0] and _canonical(value, known[0]) not in known[0]:
                    raise self._refusal(key, value, known[0])
            elif key.startswith(("producer.override.", f"{OVERRIDES}.")):
                pass  # checked where it is used
            elif option := converter_option(key, self._values):
                self._converter_option(key, *option)
            elif why := _found(key, WITHOUT_MEANING):
                self._notices.append(f"{key} has no meaning in the native relay: {WITHOUT_MEANING[why]}")
            elif key.startswith((*predicates, TOPIC_CREATION)):
                pass  # checked with the transforms, with the groups
            elif not key.startswith(ours) and (listed := _found(key, NOT_YET)):
                if listed != key and difflib.get_close_matches(key, HONOURED, 1, _TYPO):
                    self._unknown(key)
                    continue
                raise ConfigError(
                    f"{self._path}: {key}: is known, but the native relay does not honour it yet",
                    remedy="remove it, or run this file on Kafka Connect",
                )
            else:
                self._unknown(key)
        for key, (accepted, default) in HONOURED.items():
            if key not in self._values and accepted and default and default not in accepted:
                raise ConfigError(
                    f"{self._path}: {key}: is missing; Debezium takes {default!r} then, which is not honoured here",
                    remedy=f"set it: {' | '.join(accepted)}",
                )

    def _known(self, key: str) -> tuple[tuple[str, ...], str] | None:
        """Return the values that a key may have, and its default; None where it is not honoured."""
        for one in self._transforms:
            if key.startswith(one.prefix):
                return (DECODER if one.decodes else ROUTER).get(key.removeprefix(one.prefix))
        return HONOURED.get(key)

    def _converter_option(self, key: str, option: str, known: tuple[str, ...]) -> None:
        if option in OPTIONS_WITHOUT_MEANING:
            self._notices.append(f"{key} has no meaning in the native relay: its converters need no such thing")
        elif known and option not in known:
            head = key.removesuffix(option)
            self._no_such(key, [head + near for near in difflib.get_close_matches(option, known, 1)])

    def _unknown(self, key: str) -> None:
        routers = [one.prefix for one in self._transforms if not one.decodes]
        known = [*HONOURED, *WITHOUT_MEANING, *(prefix + option for prefix in routers for option in ROUTER)]
        self._no_such(key, difflib.get_close_matches(key, known, 1))

    def _no_such(self, key: str, near: Sequence[str]) -> None:
        what = f"{self._path}: {key}: unknown key"
        if not self._ignore_unknown:
            hint = f"did you mean {near[0]}? else remove it" if near else "remove it"
            raise ConfigError(what, remedy=f"{hint}, or pass over it with --ignore-unknown")
        self._notices.append(f"{what}: ignored")

    def _refusal(self, key: str, value: str, accepted: tuple[str, ...]) -> ConfigError:
        return ConfigError(
            f"{self._path}: {key}: {value!r} is not honoured by the native relay",
            remedy=f"use {' | '.join(accepted)}, or run this file on Kafka Connect",
        )

    def _refuse(self, key: str, value: str, accepted: tuple[str, ...]) -> NoReturn:
        raise self._refusal(key, value, accepted)

    def _get(self, key: str) -> str:
        accepted, default = HONOURED[key]
        return _canonical(self._values.get(key, default).strip(), accepted)

    def _router(self, one: Transform) -> RouterOptions:
        def get(key: str) -> str:
            if key in HONOURED:
                return self._get(key)
            accepted, default = ROUTER[key]
            return _canonical(self._values.get(one.prefix + key, default), accepted)

        return router_options(
            self._path, one.prefix, get, self._values, self._refuse, takes=one.takes, context=self._context
        )

    def _context_headers(self, topic_prefix: str) -> tuple[tuple[str, str], ...]:
        """Return Debezium's headers of each record, with a run's id as each reading of the file is one."""
        if self._get("extended.headers.enabled") == "false":
            return ()
        values = {
            "connectorLogicalName": topic_prefix, "taskId": "0", "connectorName": "postgresql",
            "runId": str(uuid.uuid4()),
        }  # fmt: skip
        return tuple((f"__debezium.context.{name}", value) for name, value in values.items())

    def _identifier(self, key: str) -> str:
        if not _NAME.fullmatch(name := self._get(key)):
            raise ConfigError(
                f"{self._path}: {key}: {name!r} is not a slot's name", remedy="use a-z, 0-9 and _, at most 63"
            )
        return name

    def _milliseconds(self, key: str, lowest: int = 1) -> int:
        text = self._get(key)
        if not re.fullmatch(r"[0-9]{1,6}", text) or not lowest <= int(text) <= 600_000:
            raise ConfigError(
                f"{self._path}: {key}: {text!r} is not a number of milliseconds", remedy=f"use {lowest}–600000"
            )
        return int(text)

    def _polls(self, routers: Sequence[RouterOptions]) -> bool:
        """Tell whether the table is polled. A slot's options have no meaning then, a snapshot no way."""
        if self._get("pipeline.capture") == "wal":
            if "poll.interval.ms" in self._values:
                self._notices.append("poll.interval.ms has no meaning in the native relay: the WAL is not polled")
            return False
        for key, wanted, remedy in (
            ("snapshot.mode", "no_data", "use no_data; rows of before are published by pipeline connector reconcile"),
            ("pipeline.retain", "pruned", "capture by the WAL: no query finds rows that are deleted at once"),
        ):
            if (value := self._get(key)) != wanted:
                where = f"{self._path}: {key}: {value!r}"
                raise ConfigError(f"{where} does not go with pipeline.capture=polling", remedy=remedy)
        if len(routers) > 1:
            raise ConfigError(
                f"{self._path}: transforms: pipeline.capture=polling reads one table, by one Event Router",
                remedy=f"keep one of {', '.join(router.prefix.rstrip('.') for router in routers)}",
            )
        for key in ("slot.failover", "publication.autocreate.mode"):
            if key in self._values and self._get(key) not in {"false", "disabled"}:
                self._notices.append(f"{key} has no meaning with pipeline.capture=polling")
        return True

    def _encodes(self, routers: Iterable[RouterOptions]) -> bool:
        """Tell whether JSON payloads are encoded: by the header ``type``, so there must be one."""
        if self._get("pipeline.payload.encode") == "none":
            return False
        for router in routers:
            if router.value.avro:
                raise ConfigError(
                    f"{self._path}: pipeline.payload.encode: this value.converter makes Avro of payloads itself",
                    remedy="remove it, or set value.converter=org.apache.kafka.connect.storage.StringConverter",
                )
            if not any((one.to, one.alias) == ("header", "type") for one in router.placements):
                raise ConfigError(
                    f"{self._path}: pipeline.payload.encode: avro needs the record's name in a header type",
                    remedy=f"add type:header:type to {router.prefix}table.fields.additional.placement",
                )
        return True

    def _heartbeat(self) -> float:
        """Return the seconds between two heartbeats, 0 where there are none."""
        every_s = self._milliseconds("heartbeat.interval.ms", 0) / 1000
        if not every_s and self._get("heartbeat.action.query"):
            self._notices.append("heartbeat.action.query is not run: heartbeat.interval.ms is 0")
        return every_s

    def _messages(self, topic: str, routers: Iterable[RouterOptions]) -> MessageOptions | None:
        """Return which logical messages are outbox events; without what decodes them none is."""
        wanted = chosen(str(self._path), self._get, "message.prefix")
        decoder = next((one for one in self._transforms if one.decodes and one.takes(topic)), None)
        if decoder is None:
            if self._get("message.prefix.exclude.list") != ".*":
                self._notices.append(f"logical messages are not published: no transform is of type {DECODE}")
            return None
        behind = {one.prefix for one in self._transforms[self._transforms.index(decoder) :]}
        router = next((one for one in routers if one.prefix in behind and one.takes(topic)), None)
        if router is None:
            raise ConfigError(
                f"{self._path}: {decoder.prefix}type: no Event Router behind it takes the topic {topic}",
                remedy="correct the router's predicate",
            )
        if self._get("pipeline.capture") == "polling":
            raise ConfigError(
                f"{self._path}: pipeline.capture: no query finds logical messages",
                remedy=f"set pipeline.capture=wal, or take {decoder.prefix}type out of transforms",
            )
        if router.timestamp:
            raise ConfigError(
                f"{self._path}: {router.prefix}table.field.event.timestamp: no field of a logical message can be one",
                remedy="remove it: records are stamped with the time of their processing",
            )
        if self._get("binary.handling.mode") != "bytes":
            raise ConfigError(
                f"{self._path}: binary.handling.mode: {decoder.prefix}type decodes bytes only",
                remedy="remove it, or set binary.handling.mode=bytes",
            )
        include = self._values.get(decoder.prefix + "fields.null.include", "false")
        return MessageOptions(wanted, include.lower() == "true", router)

    def _stream(self) -> dict[str, str]:
        """Return what slot.stream.params adds: what pgoutput knows, and the relay does not set itself."""
        made = {}
        for pair in filter(None, (part.strip() for part in self._get("slot.stream.params").split(";"))):
            name, _, value = (part.strip() for part in pair.partition("="))
            if name != "origin" or value not in {"any", "none"}:
                raise self._refusal("slot.stream.params", pair, ("origin=none", "origin=any"))
            made[name] = value
        return made


def _canonical(value: str, accepted: tuple[str, ...]) -> str:
    """Write one of the values that are accepted as we do: the case of names does not matter, that of classes does."""
    return next((one for one in accepted if "." not in one and one == value.strip().lower()), value)


def _found(key: str, names: Mapping[str, str] | tuple[str, ...]) -> str:
    """Return the name, or the prefix, under which a key is listed; "" where it is not."""
    return next((name for name in names if key == name or (name.endswith(".") and key.startswith(name))), "")


def _example(key: str) -> str:
    accepted = HONOURED[key][0]
    return f": {accepted[0]}" if accepted else ""
