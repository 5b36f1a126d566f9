"""Messages in, record values out, and back: Avro in the registry's wire format, or JSON.

A message is encoded when its row is written, with the id of its own exact schema, so a payload that does not fit
fails the business transaction. Wire format: magic byte 0, four bytes of schema id (big-endian), the Avro body.
"""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any, Protocol, TypeVar

import fastavro
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException
from pydantic import ValidationError

from pipeline.avro import schema_of
from pipeline.errors import PoisonError, SchemaError
from pipeline.event import Message

__all__ = ["Decoder", "WriterSchemas", "encode", "frame", "subject_of", "unframe"]

M = TypeVar("M", bound=Message)
_HEADER = 5
_MAGIC = b"\0"


class WriterSchemas(Protocol):
    """Where the schema of an id is looked up: the registry, cached."""

    def text(self, schema_id: int) -> str:
        """Return the schema's text. Raises SchemaError, retryable while the registry cannot be asked."""


def subject_of(topic: str, name: str) -> str:
    """Subject of a record type on a topic (TopicRecordNameStrategy)."""
    return f"{topic}-{name}"


def frame(schema_id: int, body: bytes) -> bytes:
    """Put the wire format's head before an Avro body."""
    return _MAGIC + schema_id.to_bytes(4, "big") + body


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
        return message.model_dump_json().encode()
    if schema_id is None:
        raise SchemaError(f"{kind.name}: an Avro value needs a schema id")
    model = type(message)
    buffer = io.BytesIO()
    buffer.write(frame(schema_id, b""))
    try:
        fastavro.schemaless_writer(buffer, _parsed(model), schema_of(model).convert(message))
    except (TypeError, ValueError, OverflowError, AttributeError, LookupError, ArithmeticError) as error:
        raise SchemaError(
            f"{kind.name}: a value does not fit its schema {_field_at_fault(message)}: {type(error).__name__}",
            remedy="nothing was written; make the message by its constructor, which checks it",
        ) from None
    return buffer.getvalue()


class Decoder:
    """Record values in, messages of a given class out, by the schema that each was written with."""

    def __init__(self, schemas: WriterSchemas) -> None:
        self._schemas = schemas
        self._writers: dict[int, Any] = {}
        self._pairs: dict[tuple[int, type[Message]], tuple[Any, Any]] = {}

    def decode(self, value: bytes | None, model: type[M]) -> M:
        """Return the message.

        Raises PoisonError when the bytes are wrong in themselves; SchemaError when the schema cannot be had
        (retryable) or its records cannot be read as this model (the code must change, the record is sound).
        """
        if value is None:
            raise PoisonError(f"{model.message_type.name}: the value is empty")
        if model.message_type.format == "json":
            return _validate(model, lambda: model.model_validate_json(value))
        schema_id, body = unframe(value)
        pair = self._pairs.get((schema_id, model)) or self._pair(schema_id, model)
        stream = io.BytesIO(body)
        try:
            data = fastavro.schemaless_reader(stream, *pair)
        except SchemaResolutionError as error:
            raise SchemaError(
                f"{model.message_type.name}: cannot be read from schema id {schema_id}: {error}",
                remedy="pipeline schema check; then deploy a model that can read what was written",
            ) from None
        except (EOFError, ValueError, IndexError, TypeError, OverflowError, StopIteration, MemoryError) as error:
            raise PoisonError(
                f"{model.message_type.name}: not a record of schema id {schema_id} ({type(error).__name__})"
            ) from None
        if stream.tell() != len(body):
            raise PoisonError(f"{model.message_type.name}: bytes left over after a record of schema id {schema_id}")
        return _validate(model, lambda: model.model_validate(data))

    def record_name(self, value: bytes) -> str:
        """Return the full Avro name of the record in ``value``, by its schema."""
        return str(self._writer(unframe(value)[0]).get("name", ""))

    def _pair(self, schema_id: int, model: type[Message]) -> tuple[Any, Any]:
        """Return writer and reader schema, the reader as None where they are the same: decoding is then quicker."""
        writer, reader = self._writer(schema_id), _parsed(model)
        pair = self._pairs[schema_id, model] = (writer, None if writer == reader else reader)
        return pair

    def _writer(self, schema_id: int) -> Any:
        found = self._writers.get(schema_id)
        if found is None:
            try:
                found = fastavro.parse_schema(json.loads(self._schemas.text(schema_id)))
            except (ValueError, SchemaParseException) as error:
                raise SchemaError(f"schema id {schema_id}: the registry's text is not a schema") from error
            self._writers[schema_id] = found
        return found


def _validate(model: type[M], make: Any) -> M:
    try:
        return make()  # type: ignore[no-any-return]
    except ValidationError as error:
        fields = ", ".join(sorted({str(e["loc"][0]) if e["loc"] else "?" for e in error.errors(include_input=False)}))
        raise PoisonError(f"{model.message_type.name}: does not fit its model in: {fields}") from None


def _field_at_fault(message: Message) -> str:
    """Name the first field that does not encode by itself, for the error's text. Never its value."""
    model = type(message)
    data = schema_of(model).convert
    try:
        values = data(message)
    except (TypeError, ValueError, AttributeError, LookupError):
        return ""
    for field in _parsed(model)["fields"]:
        alone = {"type": "record", "name": "Alone", "fields": [field]}
        try:
            fastavro.schemaless_writer(io.BytesIO(), fastavro.parse_schema(alone), values)
        except SchemaParseException:
            continue  # the field names a type that another field defines
        except (TypeError, ValueError, OverflowError, AttributeError, LookupError, ArithmeticError):
            return f" in field {field['name']!r}"
    return ""


@cache
def _parsed(model: type[Message]) -> Any:
    return fastavro.parse_schema(schema_of(model).parsed())
