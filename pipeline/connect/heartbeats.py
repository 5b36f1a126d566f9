"""A connector's name and converters in, Debezium's heartbeat records out."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.capture import Routed
from pipeline.connect.converters import Converter
from pipeline.connect.expansion import json_bytes
from pipeline.connect.schema import Schema, schema_text
from pipeline.errors import ConfigError
from pipeline.topics import is_topic

__all__ = ["heartbeat_topic", "heartbeats"]

_NAMES = "io.debezium.connector.common."
_KEY = Schema("struct", False, f"{_NAMES}ServerNameKey", 1, fields=(("serverName", Schema("string", False)),))
_VALUE = Schema("struct", False, f"{_NAMES}Heartbeat", 1, fields=(("ts_ms", Schema("int64", False)),))


def heartbeat_topic(where: str, get: Callable[[str], str], name: str) -> str:
    """Return the topic of the connector ``name``; ``get`` returns the value of a key. Raises ConfigError."""
    key = "topic.heartbeat.name"
    if not (topic := get(key)):
        key, topic = "topic.heartbeat.prefix", get("topic.delimiter").join((get("topic.heartbeat.prefix"), name))
    if not is_topic(topic):
        raise ConfigError(f"{where}: {key}: {topic!r} is not a topic that Kafka allows", remedy="use letters . _ and -")
    return topic


def heartbeats(
    topic: str, name: str, key: Converter, value: Converter, *, clock: Callable[[], float] = time.time
) -> Callable[[], Routed] | None:
    """Return what makes a heartbeat of the connector ``name``; None where its converters write no structs."""
    write_key, write_value = _writer(key, _KEY), _writer(value, _VALUE)
    if write_key is None or write_value is None:
        return None
    key_bytes = write_key(name)

    def beat() -> Routed:
        now_ms = int(clock() * 1000)
        return (topic, key_bytes, write_value(now_ms), [], now_ms, 0)

    return beat


def _writer(converter: Converter, schema: Schema) -> Callable[[object], bytes] | None:
    """Return what writes a struct of one field."""
    ((field, _),) = schema.fields
    if converter.kind == "string":
        return lambda value: f"Struct{{{field}={value}}}".encode()
    if (json := converter.of_structs) is None:
        return None
    if not json.schemas:
        return lambda value: json_bytes({field: value})
    head = f'{{"schema":{schema_text(schema)},"payload":'.encode()
    return lambda value: head + json_bytes({field: value}) + b"}"
