"""A payload's JSON text in, what the Event Router's expansion and JsonConverter make of it out.

Never fails: what cannot be expanded becomes a JSON string, as in Debezium. Where Debezium's task would end, because one
field has several types or an array stands at the top, the document stays as it is; with schemas it becomes a string
where no schema holds all of it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any  # JSON

from pipeline.connect.adjustment import Adjust, as_it_is
from pipeline.connect.java import double_text
from pipeline.connect.schema import Schema, json_text

__all__ = ["Expansion", "json_bytes", "quoted"]

_ABSENT = object()
_ESCAPED = re.compile(r"\\(?:u[0-9a-f]{4}|.)|[\U00010000-\U0010ffff]")
_MARK = secrets.token_hex(16)  # before a number that Java writes in another way than Python
_MARKED = re.compile(rf'"{_MARK}([^"]*)"')
_WIDER = {("int32", "int64"), ("int32", "float64"), ("int64", "float64")}


class _NotUniform(ValueError):
    """An array that Debezium refuses to expand."""


class _Double(str):
    """A floating-point number as Java writes it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Expansion:
    """``keep_null`` and ``keep_empty``: fields that are null, or an empty array, stay instead of being left out.
    ``field_names`` adjusts the names of fields; of two that become one the first is there.
    """

    keep_null: bool = False
    keep_empty: bool = False
    field_names: Adjust = as_it_is

    def encode(self, text: bytes) -> bytes:
        """Return a payload as JSON."""
        try:
            return json_bytes(self._expanded(text))
        except (ValueError, RecursionError):
            return quoted(text)

    def typed(self, name: str, text: bytes) -> tuple[Schema | None, bytes]:
        """Return a payload's schema, under the payload's ``name``, and its JSON; None: a string, as its column is."""
        try:
            value = self._expanded(text)
            return _schema(name, value), json_bytes(value)
        except (ValueError, RecursionError):
            return None, quoted(text)

    def fields(self, text: bytes) -> dict[str, Any]:
        """Return what is left of an object. Raises ValueError or RecursionError where it is none, or not uniform."""
        value = self._expanded(text) if text[:1] in {b"{", b"["} else None
        if not isinstance(value, dict):
            raise ValueError("its content is no JSON object")
        return {name: 0.0 if isinstance(one, _Double) else one for name, one in value.items()}

    def _expanded(self, text: bytes) -> Any:
        """Return what is left of a document. Raises ValueError or RecursionError."""
        if text[:1] not in {b"{", b"["}:
            raise ValueError
        value = self._value(_DECODER.raw_decode(text.decode())[0])
        return [] if value is _ABSENT else value  # an array at the top stays

    def _value(self, node: Any) -> Any:
        """Return what is left of a node, or _ABSENT. Raises _NotUniform."""
        if node is None:
            return None if self.keep_null else _ABSENT
        if isinstance(node, dict):
            fields: dict[str, Any] = {}
            for name, inner in node.items():
                if (value := self._value(inner)) is not _ABSENT:
                    fields.setdefault(self.field_names(name), value)
            return fields
        if isinstance(node, list):
            return self._array(node) if node else [] if self.keep_empty else _ABSENT
        return node

    def _array(self, nodes: list[Any]) -> list[Any]:
        """Return an array whose elements are of one kind; objects get each other's fields, as null."""
        kinds = {_kind(node) for node in nodes if node is not None}
        if len(kinds) > 1 or (not kinds and not self.keep_null):
            raise _NotUniform
        made = [None if node is None else self._value(node) for node in nodes]
        if made and next((node for node in made if node is not None), None) is _ABSENT:
            raise _NotUniform
        made = [[] if node is _ABSENT else node for node in made]
        if kinds == {"object"}:
            names = dict.fromkeys(name for node in made if node is not None for name in node)
            return [None if node is None else {name: node.get(name) for name in names} for node in made]
        return made


def quoted(text: str | bytes) -> bytes:
    """Return a JSON string."""
    return json_bytes(text if isinstance(text, str) else text.decode(errors="replace"))


def _schema(name: str, value: Any) -> Schema:
    """Return the schema of what was expanded. Raises _NotUniform."""
    if value is None:
        return Schema("bytes")
    if isinstance(value, dict):
        fields = (
            (field, _schema(f"{name}.{field}" if name.strip() else field, inner)) for field, inner in value.items()
        )
        return Schema("struct", name=name, fields=tuple(fields))
    if isinstance(value, list):
        return Schema("array", items=_element(name, value))
    kind = _kind(value)
    return Schema({"bool": "boolean", "str": "string", "int": "int32", "long": "int64"}.get(kind, "float64"))


def _element(name: str, values: list[Any]) -> Schema:
    """Return the schema of an array's elements. Raises _NotUniform."""
    if not values:
        return Schema("string")
    there = [value for value in values if value is not None]
    if not there or not isinstance(there[0], dict):
        name = ""
    found = list(dict.fromkeys(_schema(name, _present(value)) for value in there)) or [Schema("bytes")]
    made = found[0]
    for one in found[1:]:
        made = _merged(made, one)
    if made.type == "struct":
        known = dict(made.fields)
        filled = dict.fromkeys((field for value in there for field in value), Schema("bytes")) | known
        made = replace(made, fields=tuple(filled.items()), optional=len(found) == 1 or len(there) < len(values))
    return made


def _present(value: Any) -> Any:
    """Leave out of an element what only others have."""
    return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def _merged(left: Schema, right: Schema) -> Schema:
    """Return a schema that holds what either holds. Raises _NotUniform."""
    if left == right or right.type == "bytes" or (right.type, left.type) in _WIDER:
        return left
    if left.type == "bytes" or (left.type, right.type) in _WIDER:
        return right
    if left.type == right.type == "struct":
        fields = dict(left.fields)
        for name, schema in right.fields:
            fields[name] = _merged(fields[name], schema) if name in fields else schema
        return replace(left, fields=tuple(fields.items()))
    if left.items is not None and right.items is not None:
        return replace(left, items=_merged(left.items, right.items))
    raise _NotUniform


def json_bytes(value: Any) -> bytes:
    """Write JSON as Jackson does."""
    text = _ESCAPED.sub(_as_jackson, json_text(value))
    return (_MARKED.sub(r"\1", text) if _MARK in text else text).encode(errors="replace")


def _as_jackson(found: re.Match[str]) -> str:
    """Write what Jackson escapes as it does: hex in capitals, pairs of surrogates beyond the first plane."""
    text = found[0]
    if text[0] == "\\":
        return f"\\u{text[2:].upper()}" if text[1] == "u" else text
    pair = text.encode("utf-16-be").hex().upper()
    return f"\\u{pair[:4]}\\u{pair[4:]}"


def _kind(node: Any) -> str:
    if isinstance(node, dict):
        return "object"
    if isinstance(node, _Double):
        return "double"
    if isinstance(node, bool | list | str):
        return type(node).__name__
    if isinstance(node, int):
        return "int" if -(2**31) <= node < 2**31 else "long" if -(2**63) <= node < 2**63 else "double"
    return "double"


def _double(text: str) -> float | _Double:
    """Read a floating-point number; one that Java writes in another way carries its text."""
    value = float(text)
    written = double_text(value)
    if not math.isfinite(value):
        return _Double(written)  # in quotes, as Jackson does it
    return value if written == repr(value) else _Double(_MARK + written)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_double)
