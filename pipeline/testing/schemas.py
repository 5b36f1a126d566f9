"""Message classes in, schema ids and schema texts out: what registry and ``pipeline schema push`` give, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from pipeline.app import Pipeline
from pipeline.avro import schema_of
from pipeline.codec import Decoder, encode, frame
from pipeline.errors import PoisonError, SchemaError
from pipeline.event import Event, Job, Message

__all__ = ["Schemas", "own_value"]

_FIRST = 1 << 31  # no registry gives such ids, and writers do not remember them


class Schemas:
    """Every schema of a class of this process has an id: whether it was pushed is not what these tests ask."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, bytes], int] = {}
        self._texts: dict[int, str] = {}
        self._models: dict[int, type[Message]] = {}
        self.decoder = _AtHand(self)

    def find(self, app: Pipeline, subject: str, fingerprint: bytes) -> list[int]:
        """Return the id of a schema; nothing where no class of this process has it."""
        if (subject, fingerprint) not in self._ids:
            for model in (*app.messages, *_classes()):
                if model.message_type.format != "avro" or app.subject_of(model) != subject:
                    continue
                schema = schema_of(model)
                if schema.fingerprint == fingerprint:
                    schema_id = self._ids[subject, fingerprint] = _FIRST + len(self._ids)
                    self._texts[schema_id] = schema.text
                    self._models[schema_id] = model
                    break
        return [self._ids[subject, fingerprint]] if (subject, fingerprint) in self._ids else []

    def message(self, app: Pipeline, name: str | None, payload: bytes) -> Message:
        """Return what was written, and learn the id before its payload: a real registry may have given it.

        Several classes of a process may share a type name: it is the one that has the id or, of those whose values are
        JSON, the newest that would write the same bytes.
        """
        kind = "avro" if payload[:1] == b"\0" else "json"
        known = [one for one in (*app.messages, *_classes()) if one.message_type.name == name]
        models = [one for one in known if one.message_type.format == kind]
        if not models:
            raise SchemaError(f"{name}: no message class of this name", remedy="import the module that has it")
        for model in models if models[0].message_type.format == "json" else ():
            with suppress(PoisonError):
                message = own_value(payload, model)
                if encode(message, None) == payload:
                    return message
        model = models[0]
        if model.message_type.format == "avro":
            schema_id = int.from_bytes(payload[1:5], "big")
            model = self._models.setdefault(schema_id, model)
            self._texts.setdefault(schema_id, schema_of(model).text)
        return own_value(payload, model)

    def reframed(self, app: Pipeline, message: Message, payload: bytes) -> bytes:
        """Return a payload that this process wrote for a database, with the id that its schema has here."""
        model = type(message)
        if model.message_type.format == "json":
            return payload
        return frame(self.find(app, app.subject_of(model), schema_of(model).fingerprint)[0], payload[5:])

    def text(self, schema_id: int) -> str:
        """Return the schema's text. Raises SchemaError."""
        if schema_id not in self._texts:
            raise SchemaError(f"schema id {schema_id}: not known in this test", retryable=True)
        return self._texts[schema_id]


class _AtHand(Decoder):
    """Asks nobody: all schemas are here, and no thread's time must decide what comes first."""

    def at_hand(self, value: bytes | None) -> bool:  # noqa: ARG002
        """Always."""
        return True


def own_value(value: bytes, model: type[Message]) -> Message:
    """Decode what this process's own class has written, whatever id stands before it."""
    return Decoder(_Own(model)).decode(value, model)


class _Own:
    def __init__(self, model: type[Message]) -> None:
        self._model = model

    def text(self, _schema_id: int) -> str:
        return schema_of(self._model).text


def _classes() -> Iterator[type[Message]]:
    """Give all message classes of this process, the newest first: a test may define one of an older one's name."""
    waiting: list[type[Message]] = [Event, Job]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if model not in {Event, Job}:
            yield model
