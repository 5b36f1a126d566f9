"""What JsonConverter writes of a key or a value in, with its schema; what the Avro converters write of it out.

Their AvroData makes an Avro schema of Kafka Connect's, which is registered as ``<topic>-key`` or ``<topic>-value``; the
record is the schema's id and the Avro body. NULL has no bytes. The schema's text is Java's, so that both make one
version. Schemas are remembered: the registry is asked once for each of a topic.
"""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any, Protocol  # JSON

import fastavro

from pipeline.codec import frame
from pipeline.connect.schema import Schema, json_text, schema_of
from pipeline.errors import PoisonError

__all__ = ["AvroWriter", "Registers", "avro_text"]

_NAMESPACE, _UNNAMED = "io.confluent.connect.avro", "ConnectDefault"
_PAYLOAD = b',"payload":'  # a schema has no such key, and within its strings quotes are escaped
_NAME = re.compile(r"[^\W\d]\w*")
_CACHED = 1000
_DEFAULT_PRECISION = 64
_TYPES = {"int8": "int", "int16": "int", "int32": "int", "int64": "long", "float32": "float", "float64": "double"}
_DATA = "org.apache.kafka.connect.data."
_LOGICAL = {f"{_DATA}Date": "date", f"{_DATA}Time": "time-millis", f"{_DATA}Timestamp": "timestamp-millis"}
_WRONG = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)

Fit = Callable[[Any], Any]
"""Takes JSON, and returns what fastavro writes."""

_FITS: dict[str, Fit] = {"bytes": b64decode, "float": float, "double": float}


class Registers(Protocol):
    """The registry."""

    def register(self, subject: str, text: str) -> int:
        """Register a text, and return its id. Raises SchemaError where that cannot be done."""


class AvroWriter:
    """The converter of keys (``of`` is "key") or values ("value").

    ``unions``: a struct that can be NULL is a union at the top too, as Confluent's converter has it.
    """

    def __init__(self, registry: Registers, of: str, *, unions: bool) -> None:
        self._registry = registry
        self._of = of
        self._unions = unions
        self._known: dict[tuple[str, bytes], Callable[[Any], bytes]] = {}

    def __call__(self, topic: str, described: bytes) -> bytes | None:
        """Convert ``{"schema":…,"payload":…}``; NULL is None.

        Raises SchemaError while the registry does not take the schema, PoisonError for what Avro cannot hold.
        """
        schema, _, rest = described.removeprefix(b'{"schema":').partition(_PAYLOAD)
        if rest == b"null}":
            return None
        write = self._known.get((topic, schema))
        try:
            if write is None:
                write = self._writer(topic, json.loads(schema))
                if len(self._known) >= _CACHED:
                    self._known.clear()
                self._known[topic, schema] = write
            return write(json.loads(rest[:-1]))
        except _WRONG as error:
            raise PoisonError(f"{self._of}: Avro cannot hold it ({type(error).__name__})") from None

    def _writer(self, topic: str, described: Any) -> Callable[[Any], bytes]:
        schema = schema_of(described)
        text = avro_text(schema, unions=self._unions)
        plain, fit = _Plain().of(schema)
        if schema.type == "struct" and schema.optional and not self._unions:
            plain = plain[1]
            fit = _inner(fit)
        parsed = fastavro.parse_schema(plain)
        schema_id = self._registry.register(f"{topic}-{self._of}", text)

        def write(value: Any) -> bytes:
            body = io.BytesIO()
            fastavro.schemaless_writer(body, parsed, fit(value))
            return frame(schema_id, body.getvalue())

        return write


def avro_text(schema: Schema, *, unions: bool) -> str:
    """Return the Avro schema of Connect's, as Java writes it; ``unions`` as AvroWriter has it.

    Raises PoisonError for a name that Avro does not allow.
    """
    made = _Text().of(schema, "")
    return json_text(made[1] if schema.type == "struct" and schema.optional and not unions else made)


class _Text:
    """One schema, while it is described: a name that was defined stands for what it means."""

    def __init__(self) -> None:
        self._defined: set[str] = set()
        self._unnamed = 0

    def of(self, schema: Schema, space: str) -> Any:
        """Return a type; ``space`` is the namespace that it stands in."""
        made = self._record(schema, space) if schema.type == "struct" else self._plain(schema, space)
        if not schema.optional:
            return made
        return ["null", made] if schema.default is None else [made, "null"]

    def _plain(self, schema: Schema, space: str) -> Any:
        made: dict[str, Any] = {"type": _TYPES.get(schema.type, schema.type)}
        if schema.items is not None:
            made["items"] = self.of(schema.items, space)
        made |= _decimal(schema) | _properties(schema)
        return made if len(made) > 1 else made["type"]

    def _record(self, schema: Schema, space: str) -> Any:
        own, _, name = schema.name.rpartition(".")
        if not schema.name:
            self._unnamed += 1
            own, name = _NAMESPACE, _UNNAMED + (str(self._unnamed) if self._unnamed > 1 else "")
        full = f"{own}.{name}" if own else name
        if full in self._defined:
            return name if own == space else full
        self._defined.add(full)
        made: dict[str, Any] = {"type": "record", "name": _checked(name)}
        if own != space:
            made["namespace"] = own
        made["fields"] = [self._field(name, inner, own) for name, inner in schema.fields]
        return made | _properties(schema)

    def _field(self, name: str, schema: Schema, space: str) -> dict[str, Any]:
        made = {"name": _checked(name), "type": self.of(schema, space)}
        if schema.optional or schema.default is not None:
            made["default"] = schema.default
        return made


def _properties(schema: Schema) -> dict[str, Any]:
    """Return what Connect adds to a type, in its order."""
    made: dict[str, Any] = {}
    if schema.doc:
        made["connect.doc"] = schema.doc
    if schema.version is not None:
        made["connect.version"] = schema.version
    if schema.parameters:
        made["connect.parameters"] = dict(schema.parameters)
    if schema.default is not None:
        made["connect.default"] = schema.default
    if schema.name:
        made["connect.name"] = schema.name
    if schema.type in {"int8", "int16"}:
        made["connect.type"] = schema.type
    if logical := _LOGICAL.get(schema.name) or (schema.name == f"{_DATA}Decimal" and "decimal"):
        made["logicalType"] = logical
    return made


def _decimal(schema: Schema) -> dict[str, int]:
    if schema.name != f"{_DATA}Decimal":
        return {}
    found = dict(schema.parameters)
    precision = found.get("connect.decimal.precision", _DEFAULT_PRECISION)
    return {"scale": int(found["scale"]), "precision": int(precision)}


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PoisonError(f"{name!r} is no name in Avro", remedy="use letters, digits and _, no digit first")
    return name


class _Plain:
    """One schema for the writer: types alone, under names of their own, and what makes its values of JSON."""

    def __init__(self) -> None:
        self._records = 0

    def of(self, schema: Schema) -> tuple[Any, Fit]:
        made, fit = self._type(schema)
        if not schema.optional:
            return made, fit
        union = ["null", made] if schema.default is None else [made, "null"]
        name = made["name"] if schema.type == "struct" else ""
        return union, lambda value: None if value is None else (name, fit(value)) if name else fit(value)

    def _type(self, schema: Schema) -> tuple[Any, Fit]:
        if schema.type == "struct":
            self._records += 1
            name = f"r{self._records}"
            inner = {field: self.of(one) for field, one in schema.fields}
            places = {field: f"f{number}" for number, field in enumerate(inner)}
            fields = [{"name": places[field], "type": one} for field, (one, _) in inner.items()]
            fits = [(field, places[field], fit) for field, (_, fit) in inner.items()]
            return {"type": "record", "name": name, "fields": fields}, lambda value: {
                place: fit(value[field]) for field, place, fit in fits
            }
        if schema.items is not None:
            items, each = self.of(schema.items)
            return {"type": "array", "items": items}, lambda value: [each(one) for one in value]
        kind = _TYPES.get(schema.type, schema.type)
        return kind, _FITS.get(kind, lambda value: value)


def _inner(fit: Fit) -> Fit:
    """Return what fits the branch of a union where there is no union."""
    return lambda value: fit(value)[1]
