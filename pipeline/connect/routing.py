"""The router's part of a connector file, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pipeline.connect.adjustment import Adjust, as_it_is, field_names, schema_names
from pipeline.connect.avro_options import APICURIO, CONFLUENT
from pipeline.connect.columns import Modes
from pipeline.connect.converters import AS_BYTES, AS_TEXT, SIMPLE, Converter, Refuse, converter
from pipeline.connect.expansion import Expansion
from pipeline.connect.java import java_regex, java_replacement
from pipeline.connect.tracing import Tracing
from pipeline.errors import ConfigError

__all__ = ["Placement", "RouterOptions", "column_names", "placements", "router_options"]

Get = Callable[[str], str]
"""Returns the value of a key, or what its absence means; the router's keys without their prefix."""

_PLACEMENT = "table.fields.additional.placement"
_EXPAND = "table.expand.json.payload"
_ADJUST = "field.name.adjustment.mode"  # of columns, and as a router's of the fields of an expanded payload


def _any(_topic: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Placement:
    """A column that goes elsewhere than into key and payload."""

    column: str
    to: Literal["header", "partition", "envelope"]
    alias: str


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """What the Event Router and the converters are told. ``prefix`` is how the router's keys begin, for messages.

    ``expansion`` is what is made of a JSON payload, None where it is not expanded; ``topic_prefix`` how the names of
    schemas begin, with ``delimiter`` behind it; ``schema_names`` and ``field_names`` adjust names, those of columns
    before the options name them; ``takes`` tells of the topic of a table's changes whether they come here; ``context``
    are headers of each record.
    """

    prefix: str = "transforms.outbox."
    event_id: str = "id"
    event_key: str = "aggregateid"
    payload: str = "payload"
    timestamp: str = ""
    schema_version: str = ""
    placements: tuple[Placement, ...] = ()
    ignore_missing: bool = False
    expansion: Expansion | None = None
    route_by: str = "aggregatetype"
    route_regex: str = "(?<routedByValue>.*)"
    route_replacement: str = "outbox.event.${routedByValue}"
    tombstone_on_empty: bool = False
    key: Converter = AS_TEXT
    value: Converter = AS_BYTES
    header: Converter = AS_TEXT
    modes: Modes = Modes()  # noqa: RUF009 — frozen
    topic_prefix: str = ""
    delimiter: str = "."
    schema_names: Adjust = as_it_is
    field_names: Adjust = as_it_is
    on_update: str = "warn"
    tracing: Tracing = Tracing()  # noqa: RUF009 — frozen
    context: tuple[tuple[str, str], ...] = ()
    takes: Callable[[str], bool] = _any

    @property
    def described(self) -> bool:
        """Tell whether schemas are written: they say which columns can be NULL, which the stream does not."""
        return self.key.described or self.value.described or self.header.described


def router_options(
    path: Path,
    prefix: str,
    get: Get,
    config: Mapping[str, str],
    refuse: Refuse,
    *,
    takes: Callable[[str], bool] = _any,
    context: tuple[tuple[str, str], ...] = (),
) -> RouterOptions:
    """Read a router's part of the file at ``path``, with the converters. Raises ConfigError, also by ``refuse``."""
    regex, replacement = get("route.topic.regex"), get("route.topic.replacement")
    key = "route.topic.regex"
    try:
        compiled = java_regex(regex)
        key = "route.topic.replacement"
        java_replacement(replacement, compiled)
    except (re.error, ValueError) as error:
        raise ConfigError(f"{path}: {prefix}{key}: {error}", remedy="correct it") from error
    value = converter("value.converter", config, "", refuse)
    placed = placements(path, prefix, get, config)
    inside = next((one.column for one in placed if one.to == "envelope"), "")
    structs = f"{prefix}{_PLACEMENT}: {inside}:envelope" if inside else f"{prefix}{_EXPAND}: 'true'"
    if (inside or get(_EXPAND) == "true") and value.of_structs is None:
        raise ConfigError(
            f"{path}: {structs} makes a struct of the value, which this value.converter does not write",
            remedy="set value.converter=org.apache.kafka.connect.json.JsonConverter",
        )
    return RouterOptions(
        prefix=prefix,
        event_id=get("table.field.event.id"),
        event_key=get("table.field.event.key"),
        payload=get("table.field.event.payload"),
        timestamp=get("table.field.event.timestamp"),
        schema_version=get("table.field.event.schema.version"),
        placements=placed,
        ignore_missing=get("table.field.additional.missing") == "ignore",
        expansion=Expansion(
            keep_null=get("table.json.payload.null.behavior") == "optional_bytes",
            keep_empty=get("table.json.payload.empty.array.behavior") == "optional_string",
            field_names=field_names(config.get(f"{prefix}{_ADJUST}", "none").strip().lower()),
        )
        if get(_EXPAND) == "true"
        else None,
        route_by=get("route.by.field"),
        route_regex=regex,
        route_replacement=replacement,
        tombstone_on_empty=get("route.tombstone.on.empty.payload") == "true",
        key=converter("key.converter", config, "", refuse),
        value=value,
        header=converter("header.converter", config, SIMPLE, refuse),
        modes=Modes(get("binary.handling.mode"), get("time.precision.mode"), get("decimal.handling.mode")),
        topic_prefix=config.get("topic.prefix", ""),
        delimiter=_delimiter(path, get),
        schema_names=schema_names(get("schema.name.adjustment.mode")),
        field_names=column_names(get(_ADJUST), config),
        on_update="skip" if "u" in _skipped(get, refuse) else get("table.op.invalid.behavior"),
        tracing=Tracing(
            get("tracing.span.context.field"),
            get("tracing.operation.name"),
            get("tracing.with.context.field.only") == "true",
        ),
        context=context,
        takes=takes,
    )


def _delimiter(path: Path, get: Get) -> str:
    if not re.fullmatch(r"[\w.-]+", text := get("topic.delimiter"), re.ASCII):
        raise ConfigError(f"{path}: topic.delimiter: {text!r} cannot stand in a topic's name", remedy="use . _ or -")
    return text


def column_names(mode: str, config: Mapping[str, str]) -> Adjust:
    """Return what adjusts names of columns: for an Avro converter Debezium does so unasked."""
    avro = {config.get("key.converter"), config.get("value.converter")} & {APICURIO, CONFLUENT}
    return field_names("avro" if mode == "none" and avro else mode)


def _skipped(get: Get, refuse: Refuse) -> set[str]:
    """Return the operations that are left out; without inserts (c) there would be nothing to publish."""
    text = get("skipped.operations")
    found = {part.strip() for part in text.split(",")}
    if found - {"none", "t", "u", "d"}:
        refuse("skipped.operations", text, ("none", "a list of u, d, t"))
    return found


def placements(path: Path, prefix: str, get: Get, config: Mapping[str, str]) -> tuple[Placement, ...]:
    """Read ``table.fields.additional.placement``. Raises ConfigError."""
    made: list[Placement] = []
    where = f"{path}: {prefix}{_PLACEMENT}"
    if prefix + _PLACEMENT in config and not get(_PLACEMENT).strip():
        raise ConfigError(f"{where}: is empty", remedy="name columns, or remove it")
    for text in filter(None, (part.strip() for part in get(_PLACEMENT).split(","))):
        column, *rest = (part.strip() for part in text.split(":"))
        if not column or len(rest) not in {1, 2} or rest[0] not in {"header", "envelope", "partition"}:
            raise ConfigError(
                f"{where}: {text!r} is not column:placement[:alias]",
                remedy="placement is header, envelope or partition",
            )
        to = cast(Literal["header", "partition", "envelope"], rest[0])
        made.append(Placement(column, to, rest[-1] if rest[1:] else column))
    names = ["payload", *(one.alias for one in made if one.to == "envelope")]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: the envelope would have two fields {name!r}", remedy="give one an alias")
    return tuple(made)
