"""A record's value in, what a person may see of it out: decoded, with personal data masked unless it is revealed.

Looking never fails: bytes that cannot be decoded come with the reason instead. What cannot be known to be free of
personal data is masked.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import fastavro
from fastavro import _read_py

from pipeline.avro import PERSONAL, recursive, schema_of
from pipeline.codec import WriterSchemas, unframe
from pipeline.errors import PoisonError
from pipeline.event import Message
from pipeline.failure import MASK

__all__ = ["Payload", "look"]

_UNREADABLE = (
    ValueError, TypeError, LookupError, EOFError, OverflowError, StopIteration, MemoryError, RecursionError
)  # fmt: skip

Json = Any  # a decoded value or a schema: typed more narrowly it says nothing more


@dataclass(frozen=True, slots=True)
class Payload:
    """What is in a value. ``problem`` says why ``data`` is None; ``masked`` that something was hidden.

    ``secrets`` are the hidden values as text, so that they are hidden elsewhere too (the record's key).
    """

    name: str | None
    schema_id: int | None
    data: Json
    masked: bool = False
    problem: str | None = None
    secrets: frozenset[str] = frozenset()


def look(value: bytes | None, schemas: WriterSchemas, *, model: type[Message] | None, reveal: bool) -> Payload:
    """Decode a value by the schema it was written with, or as JSON.

    ``model`` says which fields of JSON are personal; without it all of JSON is masked. Raises SchemaError while the
    registry cannot be asked.
    """
    if value is None:
        return Payload(None, None, None, problem="there is no value")
    if value[:1] != b"\0":
        return _look_at_json(value, model, reveal=reveal)
    try:
        schema_id, body = unframe(value)
    except PoisonError as error:
        return Payload(None, None, None, problem=error.what)
    schema = json.loads(schemas.text(schema_id))
    name = str(schema.get("name")) if isinstance(schema, dict) else None
    stream = io.BytesIO(body)
    # the C reader ends the process where bytes nest too deeply; the Python one raises
    read = _read_py.schemaless_reader if recursive(schema) else fastavro.schemaless_reader
    try:
        data = read(stream, fastavro.parse_schema(schema), None)
    except _UNREADABLE as error:
        return Payload(name, schema_id, None, problem=f"not a record of schema id {schema_id}: {type(error).__name__}")
    if stream.tell() != len(body):
        return Payload(name, schema_id, None, problem=f"bytes left over after a record of schema id {schema_id}")
    return _payload(name, schema_id, schema, data, reveal=reveal)


def _look_at_json(value: bytes, model: type[Message] | None, *, reveal: bool) -> Payload:
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return Payload(None, None, None, problem="neither the registry's wire format nor JSON")
    if model is None:
        return Payload(None, None, data if reveal else _blank(data), masked=not reveal)
    return _payload(model.message_type.name, None, schema_of(model).parsed(), data, reveal=reveal)


def _payload(name: str | None, schema_id: int | None, schema: Json, data: Json, *, reveal: bool) -> Payload:
    if reveal:
        return Payload(name, schema_id, data)
    secrets: set[str] = set()
    shown = _mask(schema, data, _named(schema), secrets)
    return Payload(name, schema_id, shown, bool(secrets), secrets=frozenset(secrets))


def _mask(schema: Json, data: Json, names: dict[str, Json], secrets: set[str]) -> Json:
    """Return the data with personal fields masked: what any branch of a union calls personal is."""
    if isinstance(schema, str) and schema in names:
        schema = names[schema]
    if isinstance(schema, list):
        for branch in schema:
            data = _mask(branch, data, names, secrets)
        return data
    if not isinstance(schema, dict):
        return data
    if schema["type"] == "array" and isinstance(data, list):
        return [_mask(schema["items"], item, names, secrets) for item in data]
    if schema["type"] == "map" and isinstance(data, dict):
        return {key: _mask(schema["values"], item, names, secrets) for key, item in data.items()}
    if schema["type"] != "record" or not isinstance(data, dict):
        return data
    shown = dict(data)
    for field in schema["fields"]:
        found = shown.get(field["name"])
        if found is None or found == MASK:
            continue
        if field.get(PERSONAL):
            secrets.update(_leaves(found))
            shown[field["name"]] = MASK
        else:
            shown[field["name"]] = _mask(field["type"], found, names, secrets)
    return shown


def _leaves(value: Json) -> set[str]:
    if isinstance(value, dict):
        return {leaf for item in value.values() for leaf in _leaves(item)}
    if isinstance(value, list):
        return {leaf for item in value for leaf in _leaves(item)}
    return {str(value)}


def _blank(data: Json) -> Json:
    """Return the shape of a JSON value: names stay, values are masked."""
    if isinstance(data, dict):
        return {key: _blank(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_blank(item) for item in data]
    return None if data is None else MASK


def _named(schema: Json) -> dict[str, Json]:
    found: dict[str, Json] = {}
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            if isinstance(node.get("name"), str) and node.get("type") in {"record", "enum", "fixed"}:
                found[node["name"]] = node
                found[f"{node.get('namespace', '')}.{node['name']}".lstrip(".")] = node
            stack += [node[key] for key in ("items", "values", "type") if isinstance(node.get(key), dict | list)]
            stack += [field["type"] for field in node.get("fields", ())]
    return found
