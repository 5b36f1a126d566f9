"""An outbox row's columns in, a routed record out: Debezium 3.7's Event Router with pass-through converters.

The function for a table's layout is generated once, from the options and the columns' types. A row that cannot be
routed raises Unroutable with what there is of its record; nothing else can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.capture import Routed, Unroutable
from pipeline.connect.converters import text_writer
from pipeline.connect.java import java_regex, java_replacement
from pipeline.connect.routing import RouterOptions
from pipeline.connect.row import PLACEMENT, Declared, Layout, Row
from pipeline.connect.tracing import traced as traced_headers
from pipeline.connect.value import value_of
from pipeline.errors import ConfigError
from pipeline.topics import is_topic

__all__ = ["Router"]

_CACHED_TOPICS = 10_000
_LATEST_US = 8_000_000_000_000_000_000  # beyond any date; PostgreSQL's infinity lies above


class Router:
    """Makes routing functions. ``clock`` returns Unix time in seconds, for rows without a timestamp."""

    def __init__(self, options: RouterOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._clock = clock
        self._regex = java_regex(options.route_regex)
        self._replace = java_replacement(options.route_replacement, self._regex)

    def bind(
        self, table: str, columns: Sequence[Layout], declared: Declared = dict
    ) -> tuple[list[str], Callable[..., Routed]]:
        """Return the columns that are needed, and the function that takes their bytes, in this order.

        ``declared`` is asked only where schemas are written. Raises ConfigError when a column is missing, or has a type
        that cannot be used where it is used.
        """
        options = self._options
        row = Row(options, table, columns, declared)
        by = row.use(options.route_by, "string", "route.by.field")
        key = row.converted(options.key, options.event_key, "table.field.event.key")
        value = value_of(row, "by")
        event_id = row.converted(options.header, options.event_id, "table.field.event.id", text_too=True)
        headers = [*self._beside(row), f"('id', {event_id})"]
        for placed in row.placed("header"):
            what = row.converted(options.header, placed.column, PLACEMENT, text_too=True)
            headers.append(f"({placed.alias!r}, {what})")
        partition = "-1"
        for placed in row.placed("partition"):
            partition = f"negative({row.use(placed.column, 'number', PLACEMENT)})"
        timestamp = "now()"
        if options.timestamp:
            found = row.use(options.timestamp, "timestamp_ms", "table.field.event.timestamp")
            timestamp = found.replace(" else None", " else now()")
        body = (
            f"def route({', '.join(f'c{number}' for number in range(len(row.names)))}):\n"
            f"  by = {by}\n"
            f"  record = (topics.get(by), {key}, {value}, [{', '.join(headers)}], {timestamp}, {partition})\n"
            "  if record[0] is None or not -1 <= record[5] or not 0 < record[4] < latest: return odd(by, record)\n"
            "  return record\n"
        )
        topics: dict[str | bytes | None, str] = {}
        scope = row.scope | {
            "topics": topics,
            "now": lambda: int(self._clock() * 1000),
            "negative": lambda number: -1 if number is None else number if number >= 0 else -2,
            "latest": _LATEST_US // 1000,
            "odd": lambda by, record: self._odd(topics, by, record),
        }
        exec(body, scope)  # noqa: S102 — only column numbers and repr() of what comes from outside are in the text
        function: Callable[..., Routed] = scope["route"]  # type: ignore[assignment]  # made by exec
        return row.columns, function

    def _beside(self, row: Row) -> list[str]:
        """Return the headers before the event's own: those of the connector, and of the trace it was written in."""
        options = self._options
        tracing = options.tracing
        traced = tracing.field in row or not tracing.required
        if not options.context and not traced:
            return []
        write = text_writer(options.header)
        if write is None:
            raise ConfigError(
                f"table {row.table}: header.converter does not write text, as the headers "
                f"{'__debezium.context.…' if options.context else 'of a trace'} are",
                remedy="set extended.headers.enabled=false"
                if options.context
                else f"take column {tracing.field!r} out by column.exclude.list, or use another header.converter",
            )
        made = [f"({name!r}, {write(value)!r})" for name, value in options.context]
        if traced:
            carried = traced_headers(tracing)
            row.scope["traced"] = lambda text: [(name, write(value)) for name, value in carried(text)]
            text = row.use(tracing.field, "string", "tracing.span.context.field") if tracing.field in row else "None"
            made.append(f"*traced({text})")
        return made

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

    def _topic(self, value: str) -> str:
        """Name the topic as Kafka's RegexRouter does: replaced where the whole value matches, else as it is."""
        return self._replace(found) if (found := self._regex.fullmatch(value)) else value
