"""Typed messages, as the application declares them: events that happened, jobs that should be done.

A message is a frozen pydantic model. Its wire name comes from the class or from ``name=``, never from the module,
so that moving a file changes no schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError
from pipeline.topics import check_name

__all__ = ["Event", "Format", "Job", "Message", "MessageType", "Money", "Personal", "PersonalMark"]

Format = Literal["avro", "json"]
T = TypeVar("T")


class PersonalMark:
    """Marks a field as personal data: named so in the schema, masked wherever a person looks."""

    def __repr__(self) -> str:
        return "PersonalMark()"


Personal = Annotated[T, PersonalMark()]
"""``Personal[str]``: a field with personal data."""

Money = Annotated[Decimal, Field(max_digits=18, decimal_places=2)]
"""A Decimal with 18 digits, two of them behind the point. Declare another as this one is declared."""


@dataclass(frozen=True, slots=True)
class MessageType:
    """What is known of a message class without an instance.

    ``name`` is the full Avro record name, ``stream`` the aggregate of an event or the queue of a job,
    ``key`` the field that gives the record's key (a job without one is keyed by its id).
    """

    kind: Literal["event", "job"]
    name: str
    stream: str
    key: str | None
    format: Format


class Message(BaseModel):
    """What events and jobs have in common. Not to be used itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    message_type: ClassVar[MessageType]


class Event(Message):
    """Something that happened to an aggregate.

    ``class OrderPlaced(Event, aggregate="order", key="order_id")``: goes to topic ``outbox.event.order``, keyed by
    ``order_id``. ``name`` and ``namespace`` set the Avro name, ``format="json"`` leaves Avro out.
    """

    def __init_subclass__(
        cls,
        *,
        aggregate: str = "",
        key: str = "",
        name: str = "",
        namespace: str = "",
        format: Format = "avro",  # noqa: A002 — the field's word
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        parent: MessageType | None = getattr(cls, "message_type", None)
        if parent is not None:
            aggregate, key = aggregate or parent.stream, key or parent.key or ""
        if not aggregate or not key:
            raise ConfigError(
                f"event {cls.__name__}: aggregate and key are needed",
                remedy=f'class {cls.__name__}(Event, aggregate="order", key="order_id")',
            )
        cls.message_type = MessageType("event", _full_name(cls, name, namespace), check_name(aggregate), key, format)

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        _check_key(cls)


class Job(Message):
    """Something that should be done.

    ``class SendReceipt(Job, queue="email")``: goes to the queue's topic, ``<app>.jobs.email``. Jobs have no order
    between them unless their handler asks for it; then ``key`` says among which.
    """

    def __init_subclass__(
        cls,
        *,
        queue: str = "default",
        key: str | None = None,
        name: str = "",
        namespace: str = "",
        format: Format = "avro",  # noqa: A002 — the field's word
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.message_type = MessageType("job", _full_name(cls, name, namespace), check_name(queue), key, format)

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        _check_key(cls)


def _full_name(cls: type[Message], name: str, namespace: str) -> str:
    full = f"{namespace}.{name or cls.__name__}" if namespace else name or cls.__name__
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", full, re.ASCII):
        raise ConfigError(
            f"{cls.__name__}: {full!r} is not an Avro name",
            remedy="letters, digits, _ and dots; set name= or namespace=",
        )
    return full


def _check_key(cls: type[Message]) -> None:
    key = cls.message_type.key
    if key is not None and key not in cls.model_fields:
        raise ConfigError(
            f"{cls.__name__}: key={key!r} is not one of its fields", remedy=f"one of: {', '.join(cls.model_fields)}"
        )
