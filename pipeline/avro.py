"""A message class in, its exact Avro schema and the way of a message to Avro's values and back out.

The same model always gives the same schema text, byte for byte: the text's hash finds the schema's id. What Avro
cannot say exactly (a bare Decimal, ``Any``, an enum with odd symbols) is an error when the model is first used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

from pipeline.annotation import PERSONAL, record
from pipeline.errors import ConfigError
from pipeline.event import Message
from pipeline.shape import Scope

__all__ = ["PERSONAL", "Schema", "recursive", "schema_of"]

Json = Any  # a JSON value: typed more narrowly it says nothing more


@dataclass(frozen=True, slots=True)
class Schema:
    """A message class in Avro. ``text`` is exact; ``fingerprint`` its SHA-256; ``convert`` makes Avro's values.

    ``restore`` is set where a union needs its branches' names to be read: it takes data in which each named type of
    a union is ``(name, value)``, and returns what the model validates.
    """

    name: str
    text: str
    fingerprint: bytes
    convert: Callable[[Message], Mapping[str, Any]]
    restore: Callable[[Any], Any] | None = None

    def parsed(self) -> Json:
        """The schema as JSON values."""
        return json.loads(self.text)


@cache
def schema_of(model: type[Message]) -> Schema:
    """Return a message class's Avro schema. Raises ConfigError, naming the field, for what Avro cannot hold."""
    full = model.message_type.name
    namespace, _, name = full.rpartition(".")
    scope = Scope(namespace)
    shape = record(model, name, scope)
    text = json.dumps({**shape.schema, "name": full}, separators=(",", ":"), ensure_ascii=False)
    try:
        fingerprint = sha256(text.encode()).digest()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{full}: a doc text or default holds a lone surrogate", remedy="use text that UTF-8 can hold"
        ) from None
    assert shape.to_avro is not None  # a record always has one
    return Schema(full, text, fingerprint, shape.to_avro, shape.from_avro if scope.named_branches else None)


def recursive(schema: Json) -> bool:
    """Tell whether a schema holds itself: its records nest as deep as their bytes say."""
    return _reenters(schema, "", frozenset())


def _reenters(schema: Json, namespace: str, around: frozenset[str]) -> bool:
    if isinstance(schema, list):
        return any(_reenters(part, namespace, around) for part in schema)
    if isinstance(schema, str):
        return schema in around or f"{namespace}.{schema}" in around
    if not isinstance(schema, dict):
        return False
    if schema.get("type") in {"record", "error"}:
        name, space = str(schema.get("name", "")), str(schema.get("namespace", namespace))
        full = name if "." in name or not space else f"{space}.{name}"
        inner = full.rpartition(".")[0]
        return any(_reenters(f.get("type"), inner, around | {full}) for f in schema.get("fields", ()))
    return any(_reenters(schema.get(key), namespace, around) for key in ("type", "items", "values"))
