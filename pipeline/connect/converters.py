"""Kafka Connect's converters: what of a connector file says which, and what each makes of a column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from pipeline.connect.avro_options import APICURIO, AVRO_OPTIONS, CONFLUENT, AvroRegistry, avro_registry
from pipeline.connect.columns import ColumnType
from pipeline.connect.expansion import quoted
from pipeline.connect.schema import Schema, schema_text

__all__ = [
    "AS_BYTES",
    "AS_TEXT",
    "CLASSES",
    "OF_HEADERS",
    "OPTIONS_WITHOUT_MEANING",
    "SIMPLE",
    "Converter",
    "Refuse",
    "converter",
    "converter_option",
    "expression",
    "text_writer",
]

Kind = Literal["string", "bytes", "binary", "json", "simple", "avro"]
Refuse = Callable[[str, str, tuple[str, ...]], NoReturn]
"""Takes a key, its value and what is accepted instead, and raises ConfigError."""

_STORAGE = "org.apache.kafka.connect.storage"
SIMPLE = f"{_STORAGE}.SimpleHeaderConverter"
_KINDS: dict[str, Kind] = {
    f"{_STORAGE}.StringConverter": "string",
    "org.apache.kafka.connect.converters.ByteArrayConverter": "bytes",
    "io.debezium.converters.BinaryDataConverter": "binary",
    "org.apache.kafka.connect.json.JsonConverter": "json",
    SIMPLE: "simple",
    CONFLUENT: "avro",
    APICURIO: "avro",
}
CLASSES = tuple(name for name, kind in _KINDS.items() if kind != "simple")
OF_HEADERS = tuple(name for name, kind in _KINDS.items() if kind != "avro")  # those are no HeaderConverter
_TEXT = Schema("string", optional=False)
_DELEGATE = "delegate.converter.type"
_OPTIONS: dict[Kind, dict[str, tuple[str, ...]]] = {
    "string": {"converter.encoding": ("UTF-8", "UTF8", "utf-8", "utf8")},
    "json": {
        "schemas.enable": ("true", "false"),
        "decimal.format": ("BASE64", "base64"),
        "replace.null.with.default": ("true", "false"),  # NULL is NULL here in any case: docs/debezium-parity.md
    },
}
"""Of each converter: the options that mean something, and the values that are honoured."""
_NAMED = (*(name for options in _OPTIONS.values() for name in options), *AVRO_OPTIONS, _DELEGATE)
OPTIONS_WITHOUT_MEANING = ("schemas.cache.size", "schema.content", "converter.type", "plugin.version")
_OPTION = re.compile(rf"((?:key|value|header)\.converter(?:\.{re.escape(_DELEGATE)})*)\.(.+)")


@dataclass(frozen=True, slots=True)
class Converter:
    """``schemas``: JSON with its schema beside it. ``delegate``: BinaryDataConverter's, for what is not bytes.

    ``avro``: that JSON is what the relay makes Avro of behind the router, with schemas in this registry.
    """

    kind: Kind = "string"
    schemas: bool = False
    delegate: Converter | None = None
    avro: AvroRegistry | None = None

    @property
    def of_structs(self) -> Converter | None:
        """The JsonConverter that writes structs; None where they cannot be written."""
        return self if self.kind == "json" else self.delegate and self.delegate.of_structs

    @property
    def described(self) -> bool:
        """Tell whether what it writes says which columns can be NULL, and what their defaults are."""
        return self.schemas or (self.delegate is not None and self.delegate.described)


AS_TEXT = Converter()
AS_BYTES = Converter("bytes")


def converter(key: str, config: Mapping[str, str], default: str, refuse: Refuse) -> Converter:
    """Read the converter that ``key`` names, with its options. ``refuse`` is called for what is not honoured."""
    name = config.get(key, default)
    if name not in _KINDS:
        refuse(key, name, tuple(_KINDS))
    kind = _KINDS[name]
    if kind == "avro":
        if key.endswith(_DELEGATE):
            refuse(key, name, tuple(one for one in CLASSES if _KINDS[one] != "avro"))
        return Converter("json", schemas=True, avro=avro_registry(key, name, config, refuse))
    for option, accepted in _OPTIONS.get(kind, {}).items():
        if (value := config.get(f"{key}.{option}", accepted[0])) not in accepted:
            refuse(f"{key}.{option}", value, accepted)
    delegate = None
    if kind == "binary" and f"{key}.{_DELEGATE}" in config:
        delegate = converter(f"{key}.{_DELEGATE}", config, "", refuse)
    return Converter(kind, kind == "json" and config.get(f"{key}.schemas.enable", "true") == "true", delegate)


def converter_option(key: str, config: Mapping[str, str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the option that ``key`` is of a converter, and those that it may be (none: ``converter`` looks at it).

    None where it is no converter's.
    """
    if (found := _OPTION.fullmatch(key)) is None:
        return None
    avro = _KINDS.get(config.get(found[1], "")) == "avro"
    return found[2], () if avro else (*_NAMED, *OPTIONS_WITHOUT_MEANING)


def text_writer(made: Converter) -> Callable[[str], str | bytes] | None:
    """Return what writes a text that is no column; None where a converter's task would end."""
    if made.kind in {"string", "simple"}:
        return lambda text: text
    if made.kind == "json":
        head, end = (f'{{"schema":{schema_text(_TEXT)},"payload":'.encode(), b"}") if made.schemas else (b"", b"")
        return lambda text: head + quoted(text) + end
    return text_writer(made.delegate) if made.delegate else None


def expression(made: Converter, kind: ColumnType, schema: Schema) -> tuple[str, str]:
    """Return what a converter writes of a column, and of NULL, as expressions; empty where its task would end."""
    if made.kind == "string":
        return kind.text, "None"
    if made.kind == "simple":
        return kind.text or (kind.raw and f"base64({kind.raw})"), "None"
    if made.kind == "json":
        if not made.schemas or not kind.json:
            return kind.json, "b'null'"
        head = f'{{"schema":{schema_text(schema)},"payload":'.encode()
        return f"{head!r} + encoded({kind.json}) + b'}}'", repr(head + b"null}")
    if made.delegate and not kind.raw:
        return expression(made.delegate, kind, schema)
    return kind.raw, "None"
