"""JSON text and an Avro schema in, the record's body in Avro out: for writers that cannot encode.

Strict: a field that the schema has not, a missing one without default or a wrong type is a PoisonError, which names the
place and never the value. Times and dates are ISO 8601 (times with a zone) or Avro's own numbers, decimals numbers or
texts, bytes base64; a union takes the first branch that fits.
"""

from __future__ import annotations

import binascii
import io
import json
from base64 import b64decode
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

import fastavro
from fastavro import _write_py
from fastavro.schema import SchemaParseException

from pipeline.avro import recursive
from pipeline.errors import PoisonError, SchemaError

__all__ = ["Fitting"]

_MOST_DIGITS = 2_000  # more than any decimal's precision
_LOWEST = {"int": -(2**31), "long": -(2**63)}


class Fitting:
    """One schema. Raises SchemaError where the text is none."""

    def __init__(self, text: str) -> None:
        try:
            loaded = json.loads(text)
            self._schema: Any = fastavro.parse_schema(loaded)
            self._write = _write_py.schemaless_writer if recursive(loaded) else fastavro.schemaless_writer
        except (SchemaParseException, ValueError, TypeError, LookupError, RecursionError) as error:
            raise SchemaError("the registry's text is not a schema", retryable=True) from error
        self._named: dict[str, Any] = {}
        self._collect(self._schema)

    def _collect(self, schema: Any) -> None:
        """Remember the named types: a value may come to a name before its definition."""
        if isinstance(schema, list):
            for branch in schema:
                self._collect(branch)
        elif isinstance(schema, dict):
            if "name" in schema and "type" in schema and schema["type"] in ("record", "enum", "fixed"):
                self._named[schema["name"]] = schema
            for part in ("type", "items", "values"):
                self._collect(schema.get(part))
            for field in schema.get("fields", ()):
                self._collect(field["type"])

    def body(self, value: bytes) -> bytes:
        """Return the Avro body of a JSON text. Raises PoisonError where it does not fit."""
        buffer = io.BytesIO()
        try:
            self._write(buffer, self._schema, self._fit(self._schema, _loaded(value), "payload"))
        except PoisonError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise PoisonError(f"payload does not fit its schema ({type(error).__name__})") from None
        return buffer.getvalue()

    def _fit(self, schema: Any, value: Any, where: str) -> Any:
        if isinstance(schema, list):
            return self._union(schema, value, where)
        if isinstance(schema, str):
            schema = self._named.get(schema, {"type": schema})
        kind = schema["type"]
        if isinstance(kind, (dict, list)):
            return self._fit(kind, value, where)
        made: Callable[[Any], Any] | None = _LOGICAL.get(schema.get("logicalType", ""))
        try:
            if kind in {"record", "array", "map"}:
                return self._nested(schema, value, where)
            if made is not None:
                return made(value)
            return _plain(kind, schema, value)
        except (ValueError, TypeError, InvalidOperation, binascii.Error):
            raise PoisonError(f"{where}: is not {schema.get('logicalType') or kind}") from None

    def _nested(self, schema: Any, value: Any, where: str) -> Any:
        if schema["type"] == "array":
            items = _checked(list, value)
            return [self._fit(schema["items"], item, f"{where}[{number}]") for number, item in enumerate(items)]
        found = _checked(dict, value)
        if schema["type"] == "map":
            return {key: self._fit(schema["values"], item, f"{where}{{}}") for key, item in found.items()}
        fields = {field["name"]: field for field in schema["fields"]}
        if found.keys() - fields.keys():
            raise PoisonError(f"{where}: has fields that its schema has not")
        for name, field in fields.items():
            if name not in found and "default" not in field:
                raise PoisonError(f"{where}.{name}: is missing")
        return {
            name: self._fit(field["type"], found[name], f"{where}.{name}")
            if name in found
            else self._default(field["type"], field["default"])
            for name, field in fields.items()
        }

    def _default(self, schema: Any, value: Any) -> Any:
        """Return a default as the writer takes it: bytes stand in a schema as text, a code point for each."""
        if isinstance(schema, list):
            return None if value is None else self._default(schema[0], value)
        if isinstance(schema, str):
            schema = self._named.get(schema, {"type": schema})
        kind = schema["type"]
        if isinstance(kind, (dict, list)):
            return self._default(kind, value)
        if kind == "array":
            return [self._default(schema["items"], item) for item in value]
        if kind == "map":
            return {key: self._default(schema["values"], item) for key, item in value.items()}
        if kind == "record":
            return {
                field["name"]: self._default(field["type"], value.get(field["name"], field.get("default")))
                for field in schema["fields"]
            }
        return value.encode("iso-8859-1") if kind in {"bytes", "fixed"} else value

    def _union(self, branches: list[Any], value: Any, where: str) -> Any:
        for branch in branches:
            try:
                fitted = self._fit(branch, value, where)
            except PoisonError:
                continue
            name = branch["name"] if isinstance(branch, dict) and "name" in branch else ""
            return (name, fitted) if name and isinstance(fitted, dict) else fitted
        raise PoisonError(f"{where}: fits no branch of its union")


def _loaded(value: bytes) -> Any:
    try:
        return json.loads(value, parse_float=Decimal)
    except (ValueError, RecursionError):
        raise PoisonError("payload is not JSON") from None


def _checked(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _plain(kind: str, schema: Any, value: Any) -> Any:
    if kind in _LOWEST:
        number = _whole(value)
        if not _LOWEST[kind] <= number < -_LOWEST[kind]:
            raise ValueError
        return number
    if kind in {"float", "double"}:
        return float(_number(value))
    if kind in {"bytes", "fixed"}:
        raw = b64decode(_checked(str, value), validate=True)
        if len(raw) != schema.get("size", len(raw)):
            raise ValueError
        return raw
    if kind == "enum" and value not in schema["symbols"]:
        raise ValueError
    if kind == "null":
        if value is not None:
            raise ValueError
        return None
    return _checked({"string": str, "enum": str, "boolean": bool}[kind], value)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise TypeError
    return value


def _exact(value: int | Decimal) -> int | Decimal:
    """Return a number that has digits to be written out: ``1e999999999`` would fill the memory with them."""
    if isinstance(value, Decimal) and not (value.is_finite() and abs(value.adjusted()) <= _MOST_DIGITS):
        raise ValueError
    return value


def _whole(value: Any) -> int:
    if (number := int(_exact(_number(value)))) != value:
        raise ValueError
    return number


def _decimal(value: Any) -> Decimal:
    return Decimal(_exact(Decimal(value) if isinstance(value, str) else _number(value)))


def _instant(value: Any) -> Any:
    if not isinstance(value, str):
        return _whole(value)
    if (at := datetime.fromisoformat(value)).tzinfo is None:
        raise ValueError
    return at


def _local(value: Any) -> Any:
    if not isinstance(value, str):
        return _whole(value)
    if (at := datetime.fromisoformat(value)).tzinfo is not None:
        raise ValueError
    return at


_LOGICAL: dict[str, Callable[[Any], Any]] = {
    "decimal": _decimal,
    "uuid": lambda value: UUID(_checked(str, value)),
    "date": lambda value: date.fromisoformat(value) if isinstance(value, str) else _whole(value),
    "time-millis": lambda value: time.fromisoformat(value) if isinstance(value, str) else _whole(value),
    "time-micros": lambda value: time.fromisoformat(value) if isinstance(value, str) else _whole(value),
    "timestamp-millis": _instant,
    "timestamp-micros": _instant,
    "local-timestamp-millis": _local,
    "local-timestamp-micros": _local,
}
