"""Kafka Connect's schemas, and how JsonConverter writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any  # JSON

__all__ = ["Schema", "json_text", "schema_of", "schema_text"]

_JSON_NAMES = {"float32": "float", "float64": "double"}
_NAMES = {text: name for name, text in _JSON_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Schema:
    """``type`` as Connect names it, in small letters. ``fields`` of a struct, ``items`` of an array."""

    type: str
    optional: bool = True
    name: str = ""
    version: int | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    default: str | float | bool | None = None
    fields: tuple[tuple[str, Schema], ...] = ()
    items: Schema | None = None
    doc: str = ""


def schema_text(schema: Schema) -> str:
    """Return a schema's JSON, its keys in JsonConverter's order."""
    return json_text(_described(schema))


def schema_of(made: dict[str, Any]) -> Schema:
    """Return the schema that ``schema_text`` wrote."""
    return Schema(
        type=_NAMES.get(made["type"], made["type"]),
        optional=made["optional"],
        name=made.get("name", ""),
        version=made.get("version"),
        parameters=tuple(made.get("parameters", {}).items()),
        default=made.get("default"),
        fields=tuple((field["field"], schema_of(field)) for field in made.get("fields", ())),
        items=schema_of(made["items"]) if "items" in made else None,
        doc=made.get("doc", ""),
    )


def json_text(value: object) -> str:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _described(schema: Schema) -> dict[str, object]:
    made: dict[str, object] = {"type": _JSON_NAMES.get(schema.type, schema.type)}
    if schema.items is not None:
        made["items"] = _described(schema.items)
    if schema.type == "struct":
        made["fields"] = [{**_described(field), "field": name} for name, field in schema.fields]
    made["optional"] = schema.optional
    if schema.name:
        made["name"] = schema.name
    if schema.version is not None:
        made["version"] = schema.version
    if schema.doc:
        made["doc"] = schema.doc
    if schema.parameters:
        made["parameters"] = dict(schema.parameters)
    if schema.default is not None:
        made["default"] = schema.default
    return made
