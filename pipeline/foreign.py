"""Records that others wrote in, messages and their ids out: topics whose records are not this pipeline's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.errors import ConfigError, PipelineError, PoisonError
from pipeline.event import Message
from pipeline.record import Record

__all__ = ["Decode", "EventId", "Foreign", "foreign"]

Decode = Literal["json"] | Callable[[Record], Any]
EventId = str | Callable[[Record], str]


@dataclass(frozen=True, slots=True)
class Foreign:
    """How the records of a topic are read. ``event_id`` names a header, or makes the id of a record."""

    model: type[Message]
    decode: Decode
    event_id: EventId | None

    def message(self, record: Record) -> Message:
        """Return the message. Raises PoisonError where the record is wrong in itself."""
        name = self.model.message_type.name
        if record.value is None:
            raise PoisonError(f"{name}: the value is empty")
        try:
            if self.decode == "json":
                return self.model.model_validate_json(record.value, by_alias=True, by_name=True, extra="ignore")
            made = self.decode(record)
        except ValidationError as error:
            errors = error.errors(include_input=False)
            fields = ", ".join(sorted({str(e["loc"][0]) if e["loc"] else "?" for e in errors}))
            raise PoisonError(f"{name}: does not fit its model in: {fields}") from None
        except PipelineError:
            raise
        except Exception as error:
            raise PoisonError(f"{name}: its decoder raised {type(error).__name__}") from error
        if not isinstance(made, self.model):
            raise PoisonError(f"{name}: its decoder returned a {type(made).__name__}")
        return made

    def id_of(self, record: Record) -> bytes | None:
        """Return the id of a record, the same wherever it is read; None where it has none. Raises PoisonError."""
        if self.event_id is None:
            return None
        if isinstance(self.event_id, str):
            return next((value for name, value in record.headers if name == self.event_id), None)
        try:
            return self.event_id(record).encode()
        except Exception as error:
            name = self.model.message_type.name
            raise PoisonError(f"{name}: its event_id raised {type(error).__name__}") from error


def foreign(
    model: type[Message], topic: str | None, decoder: Decode | None, event_id: EventId | None
) -> Foreign | None:
    """Return how a topic of others is read; None where the topic is the event's own. Raises ConfigError."""
    if topic is None:
        if decoder is not None or event_id is not None:
            raise ConfigError(f"consumer: {model.__name__}: decoder= and event_id=", remedy="they go with topic=")
        return None
    if not (decoder is None or decoder == "json" or callable(decoder)):
        raise ConfigError(
            f"consumer: topic {topic}: decoder={decoder!r}",
            remedy='"json", or a function of a Record that returns the event',
        )
    return Foreign(model, decoder or "json", event_id)
