"""An outbox row's columns in, a routed record out: Debezium 3.7's Event Router with pass-through converters.

The function for a table's layout is generated once, from the options and the columns' types. A row that cannot be
routed raises Unroutable with what there is of its record; nothing else can fail.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.capture import Routed, Unroutable
from pipeline.connect.columns import ColumnType, column_type
from pipeline.errors import ConfigError
from pipeline.topics import is_topic

__all__ = ["Layout", "Placement", "Router", "RouterOptions"]

_CACHED_TOPICS = 10_000
_LATEST_US = 8_000_000_000_000_000_000  # beyond any date; PostgreSQL's infinity lies above


class Layout(Protocol):
    """One column of a table, as the source announces it."""

    @property
    def name(self) -> str:
        """The column's name."""

    @property
    def type_oid(self) -> int:
        """Its type, as in pg_type."""

    @property
    def modifier(self) -> int:
        """Its type's modifier, as in pg_attribute."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A column that goes elsewhere than into key and value."""

    column: str
    to: Literal["header", "partition"]
    alias: str


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """The router's part of a connector file, checked. ``prefix`` is how its keys begin, for messages."""

    prefix: str = "transforms.outbox."
    event_id: str = "id"
    event_key: str = "aggregateid"
    payload: str = "payload"
    timestamp: str = ""
    placements: tuple[Placement, ...] = ()
    ignore_missing: bool = False
    route_by: str = "aggregatetype"
    route_regex: str = "(?<routedByValue>.*)"
    route_replacement: str = "outbox.event.${routedByValue}"
    tombstone_on_empty: bool = False
    text_value: bool = False
    """The value is written by StringConverter: payloads of any type that has a text."""
    json_value: Callable[[bytes], bytes] | None = None
    """What makes JSON of a payload's text, where the value is written by JsonConverter."""


class Router:
    """Makes routing functions. ``clock`` returns Unix time in seconds, for rows without a timestamp."""

    def __init__(self, options: RouterOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._clock = clock
        self._regex = java_regex(options.route_regex)
        self._replace = java_replacement(options.route_replacement, self._regex)

    def bind(self, table: str, columns: Sequence[Layout]) -> tuple[list[str], Callable[..., Routed]]:
        """Return the columns that are needed, and the function that takes their bytes, in this order.

        Raises ConfigError when a column is missing, or has a type that cannot be used where it is used.
        """
        return _Generator(self._options, table, columns, self._topic, self._clock).made()

    def _topic(self, value: str) -> str:
        """Name the topic as Kafka's RegexRouter does: replaced where the whole value matches, else as it is."""
        return self._replace(found) if (found := self._regex.fullmatch(value)) else value


class _Generator:
    def __init__(
        self,
        options: RouterOptions,
        table: str,
        columns: Sequence[Layout],
        topic: Callable[[str], str],
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._table = table
        self._types = {column.name: column_type(column.type_oid, column.modifier) for column in columns}
        self._topic = topic
        self._clock = clock
        self._names: list[str] = []

    def made(self) -> tuple[list[str], Callable[..., Routed]]:
        options = self._options
        route = self._use(options.route_by, "string", "route.by.field")
        key = self._use(options.event_key, "text", "table.field.event.key")
        value = self._value()
        headers = [f"('id', {self._use(options.event_id, 'text', 'table.field.event.id')})"]
        partition = "-1"
        for placed in options.placements:
            if options.ignore_missing and placed.column not in self._types:
                continue
            if placed.to == "header":
                what = self._use(placed.column, "text", "table.fields.additional.placement")
                headers.append(f"({placed.alias!r}, {what})")
            else:
                what = self._use(placed.column, "number", "table.fields.additional.placement")
                partition = f"negative({what})"
        timestamp = "now()"
        if options.timestamp:
            found = self._use(options.timestamp, "timestamp_ms", "table.field.event.timestamp")
            timestamp = found.replace(" else None", " else now()")
        body = (
            f"def route({', '.join(f'c{number}' for number in range(len(self._names)))}):\n"
            f"  by = {route}\n"
            f"  record = (topics.get(by), {_encoded(key)}, {value}, [{', '.join(headers)}], {timestamp}, {partition})\n"
            "  if record[0] is None or not -1 <= record[5] or not 0 < record[4] < latest: return odd(by, record)\n"
            "  return record\n"
        )
        topics: dict[str | bytes | None, str] = {}
        scope = {
            "topics": topics,
            "uuid_text": _uuid_text,
            "encoded": lambda text: text.encode() if isinstance(text, str) else text,
            "now": lambda: int(self._clock() * 1000),
            "negative": lambda number: -1 if number is None else number if number >= 0 else -2,
            "latest": _LATEST_US // 1000,
            "blank": bytes(range(33)),  # what Java's trim takes away
            "json_value": self._options.json_value,
            "odd": lambda by, record: self._odd(topics, by, record),
        }
        exec(body, scope)  # noqa: S102 — only column numbers and repr() of header names are in the text
        function: Callable[..., Routed] = scope["route"]  # type: ignore[assignment]  # made by exec
        return self._names, function

    def _value(self) -> str:
        options = self._options
        if options.json_value:
            return self._json_value()
        kind = self._types.get(options.payload)
        form = "text" if options.text_value and kind and not kind.payload else "payload"
        value = self._use(options.payload, form, "table.field.event.payload")
        if form == "text":
            return _encoded(value)
        if options.tombstone_on_empty and self._types[options.payload].text:  # bytes are never empty to Debezium
            name = f"c{self._names.index(options.payload)}"
            return f"(None if {name} is None or not {value}.strip(blank) else {value})"
        return value

    def _json_value(self) -> str:
        text = _encoded(self._use(self._options.payload, "string", "table.field.event.payload"))
        name = f"c{self._names.index(self._options.payload)}"
        if self._options.tombstone_on_empty:
            return f"(None if {name} is None or not {text}.strip(blank) else json_value({text}))"
        return f"(b'null' if {name} is None else json_value({text}))"

    def _use(self, column: str, form: str, option: str) -> str:
        """Return the expression that gives a column in a form; None where it is NULL."""
        kind = self._types.get(column)
        where = f"table {self._table}: column {column!r}, named by {self._options.prefix}{option}"
        if kind is None:
            raise ConfigError(f"{where}, is not there", remedy=f"there are {', '.join(self._types)}")
        expression = str(getattr(kind, form))
        if not expression:
            raise ConfigError(f"{where}, is of {kind.name}, which is not honoured there", remedy=_remedy(form, kind))
        if column not in self._names:
            self._names.append(column)
        name = f"c{self._names.index(column)}"
        if expression == "v":
            return name
        expression = re.sub(r"\bv\b", name, expression)
        return f"({expression} if {name} is not None else None)"

    def _odd(self, topics: dict[str | bytes | None, str], by: str | bytes | None, record: Routed) -> Routed:
        """Find out what is new or wrong about a row: a topic not seen before is remembered."""
        name = by.decode(errors="replace") if isinstance(by, bytes) else by
        topic = self._topic(name) if name is not None else ""
        named: Routed = (topic, *record[1:])
        if not is_topic(topic):
            wrong = "is empty" if not topic else "is not one that Kafka allows"
            raise Unroutable(f"the topic name made of column {self._options.route_by!r} {wrong}", named)
        if record[5] < -1:
            raise Unroutable("the partition is negative", (*named[:5], -1))
        if not 0 <= record[4] < _LATEST_US // 1000:
            raise Unroutable(f"the timestamp in column {self._options.timestamp!r} is out of range", named)
        if not record[4]:  # to librdkafka 0 means now
            named = (*named[:4], 1, named[5])
        if len(topics) >= _CACHED_TOPICS:
            topics.clear()
        topics[by] = topic
        return named


def java_regex(pattern: str) -> re.Pattern[str]:
    """Compile a Java regular expression. Raises re.error, also for what Python reads in another way: sets in sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        try:
            return re.compile(re.sub(r"\(\?<(?![=!])", "(?P<", pattern))
        except FutureWarning as warning:
            raise re.error(f"{warning}, which is not honoured") from warning


def java_replacement(text: str, regex: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    """Return what Java's replaceFirst puts in place of a match: ``$1``, ``${name}``, ``\\`` before any character.

    Raises ValueError for a group that does not exist.
    """
    parts: list[str | int] = []
    for literal, named, number, escaped in re.findall(r"([^$\\]+)|\$\{(\w+)\}|\$(\d)|\\(.)", text, re.DOTALL):
        if named:
            if named not in regex.groupindex:
                raise ValueError(f"there is no group {named!r}")
            parts.append(regex.groupindex[named])
        elif number:
            if int(number) > regex.groups:
                raise ValueError(f"there is no group {number}")
            parts.append(int(number))
        else:
            parts.append(literal or escaped)
    return lambda found: "".join(part if isinstance(part, str) else found[part] or "" for part in parts)


def _encoded(expression: str) -> str:
    """Return an expression for bytes: Python's str where a type is written as text."""
    return expression if re.fullmatch(r"c\d+", expression) else f"encoded({expression})"


def _uuid_text(data: bytes) -> str:
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _remedy(form: str, kind: ColumnType) -> str:
    wanted = {
        "string": "a text column",
        "text": "text, uuid, integer, boolean, json or timestamp",
        "payload": "bytea, text, json or jsonb",
        "timestamp_ms": "timestamp without time zone",
        "number": "integer",
    }[form]
    return f"use {wanted} there instead of {kind.name}"
