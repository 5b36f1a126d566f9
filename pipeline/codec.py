"""Messages in, record values out, and back: Avro in the registry's wire format, or JSON.

A message is encoded when its row is written, with the id of its own exact schema, so a payload that does not fit
fails the business transaction. Wire format: magic byte 0, four bytes of schema id (big-endian), the Avro body.
"""

from __future__ import annotations

import io
import json
import struct
from functools import cache
from typing import Any, Protocol, TypeVar

import fastavro
from fastavro import _read_py, _write_py
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from pipeline.annotation import alone, field_shape
from pipeline.avro import recursive, schema_of
from pipeline.errors import PoisonError, SchemaError
from pipeline.event import Message
from pipeline.shape import Scope

__all__ = ["Decoder", "WriterSchemas", "encode", "frame", "unframe"]

M = TypeVar("M", bound=Message)
_HEADER = 5
_TYPE_CHARS = 200
_MAGIC = b"\0"
_WRONG = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What fastavro raises for a value that does not fit."""


class WriterSchemas(Protocol):
    """Where the schema of an id is looked up: the registry, cached."""

    def text(self, schema_id: int) -> str:
        """Return the schema's text. Raises SchemaError, retryable while the registry cannot be asked."""


def frame(schema_id: int, body: bytes) -> bytes:
    """Put the wire format's head before an Avro body."""
    return _MAGIC + _four_bytes(schema_id) + body


def unframe(value: bytes) -> tuple[int, memoryview]:
    """Return schema id and Avro body. Raises PoisonError where the head is not one."""
    if len(value) < _HEADER or value[:1] != _MAGIC:
        raise PoisonError(f"value of {len(value)} bytes is not in the registry's wire format (first byte not 0)")
    return int.from_bytes(value[1:_HEADER], "big"), memoryview(value)[_HEADER:]


def encode(message: Message, schema_id: int | None) -> bytes:
    """Return a message's value. ``schema_id`` is that of its own exact schema; JSON needs none.

    Raises SchemaError when the message does not fit its schema (it was changed behind pydantic's back, a number is
    too large, a time has no zone).
    """
    kind = message.message_type
    if kind.format == "json":
        return _json(message)
    if schema_id is None:
        raise SchemaError(f"{kind.name}: an Avro value needs a schema id")
    write, schema, convert = _encoder(type(message))
    buffer = io.BytesIO()
    buffer.write(_MAGIC + _four_bytes(schema_id))
    try:
        write(buffer, schema, convert(message))
    except _WRONG as error:
        raise SchemaError(
            f"{kind.name}: a value does not fit its schema{_field_at_fault(message)} ({type(error).__name__})",
            remedy="nothing was written; make the message by its constructor, which checks it",
        ) from None
    return buffer.getvalue()


class Decoder:
    """Record values in, messages of a given class out, by the schema that each was written with."""

    def __init__(self, schemas: WriterSchemas) -> None:
        self._schemas = schemas
        self._writers: dict[int, Any] = {}
        self._pairs: dict[tuple[int, type[Message]], tuple[Any, Any, Any]] = {}

    def decode(self, value: bytes | None, model: type[M]) -> M:
        """Return the message. What its class does not have is left out: a newer version wrote it.

        Raises PoisonError when the bytes are wrong in themselves; SchemaError when the schema cannot be had
        (retryable) or its records cannot be read as this model (the code must change, the record is sound).
        """
        if value is None:
            raise PoisonError(f"{model.message_type.name}: the value is empty")
        if model.message_type.format == "json":
            return _validate(
                model, lambda: model.model_validate_json(value, by_alias=True, by_name=True, extra="ignore")
            )
        schema_id, body = unframe(value)
        read, writer, reader = self._pairs.get((schema_id, model)) or self._pair(schema_id, model)
        restore = schema_of(model).restore
        stream = io.BytesIO(body)
        try:
            data = read(stream, writer, reader, return_named_type=restore is not None)
        except SchemaResolutionError as error:
            raise SchemaError(
                f"{model.message_type.name}: cannot be read from schema id {schema_id}: {error}",
                remedy="pipeline schema check; then deploy a model that can read what was written",
            ) from None
        except (*_WRONG, EOFError, StopIteration, MemoryError) as error:
            raise PoisonError(
                f"{model.message_type.name}: not a record of schema id {schema_id} ({type(error).__name__})"
            ) from None
        if stream.tell() != len(body):
            raise PoisonError(f"{model.message_type.name}: bytes left over after a record of schema id {schema_id}")
        if restore is None:
            return _validate(model, lambda: model.model_validate(data, strict=False, by_alias=False, by_name=True))
        return _validate(model, lambda: model.model_validate(restore(data), strict=False, by_alias=False, by_name=True))

    def at_hand(self, value: bytes | None) -> bool:
        """Tell whether ``value`` can be decoded without asking the registry, which takes its time."""
        return not value or value[:1] != _MAGIC or int.from_bytes(value[1:_HEADER], "big") in self._writers

    def record_name(self, value: bytes) -> str:
        """Return the full Avro name of the record in ``value``, by its schema."""
        writer = self._writer(unframe(value)[0])
        return str(writer.get("name", "")) if isinstance(writer, dict) else ""

    def _pair(self, schema_id: int, model: type[Message]) -> tuple[Any, Any, Any]:
        """Return fastavro's reader, writer schema and reader schema: None where they are the same, which is quicker."""
        writer, reader = self._writer(schema_id), _parsed(model)
        same = writer == reader
        read = _read_py.schemaless_reader if recursive(writer) else fastavro.schemaless_reader
        pair = self._pairs[schema_id, model] = (read, writer, None if same else reader)
        return pair

    def _writer(self, schema_id: int) -> Any:
        found = self._writers.get(schema_id)
        if found is None:
            try:
                found = fastavro.parse_schema(json.loads(self._schemas.text(schema_id)))
            except (SchemaParseException, *_WRONG) as error:
                raise SchemaError(f"schema id {schema_id}: the registry's text is not a schema") from error
            self._writers[schema_id] = found
        return found


def _validate(model: type[M], make: Any) -> M:
    try:
        return make()  # type: ignore[no-any-return]
    except ValidationError as error:
        fields = ", ".join(sorted({str(e["loc"][0]) if e["loc"] else "?" for e in error.errors(include_input=False)}))
        raise PoisonError(f"{model.message_type.name}: does not fit its model in: {fields}") from None


def _json(message: Message) -> bytes:
    try:
        return message.model_dump_json(by_alias=True, round_trip=True, warnings="error").encode()
    except (PydanticSerializationError, *_WRONG) as error:
        raise SchemaError(
            f"{message.message_type.name}: cannot be written as JSON: {type(error).__name__}",
            remedy="nothing was written; text must be UTF-8, and the message made by its constructor, which checks it",
        ) from None


def _field_at_fault(message: Message) -> str:
    """Name the first field that does not encode by itself, and the Avro type it has. Never its value."""
    for name in type(message).model_fields:
        shape = field_shape(type(message), name, Scope(""))  # with all its names: it stands alone
        schema = alone(name, shape)
        try:
            value = message.__dict__[name]
            encoded = shape.to_avro(value) if shape.to_avro else value
            _write(type(message))(io.BytesIO(), fastavro.parse_schema(schema), {name: encoded})
        except _WRONG:
            wanted = json.dumps(schema["fields"][0]["type"])
            found = type(message.__dict__.get(name)).__name__
            return f" in field {name!r}: a {found}, the schema has {wanted[:_TYPE_CHARS]}"
    return ""


@cache
def _encoder(model: type[Message]) -> tuple[Any, Any, Any]:
    """Return fastavro's writer, its schema, and how the model becomes what it writes."""
    return _write(model), _parsed(model), schema_of(model).convert


_four_bytes = struct.Struct(">I").pack


@cache
def _write(model: type[Message]) -> Any:
    """Return fastavro's writer. Its C code ends the process on deep nesting, so what nests freely goes by Python's."""
    return _write_py.schemaless_writer if recursive(schema_of(model).parsed()) else fastavro.schemaless_writer


@cache
def _parsed(model: type[Message]) -> Any:
    return fastavro.parse_schema(schema_of(model).parsed())
