"""Typed messages, as the application declares them: events that happened, jobs that should be done.

A message is a frozen pydantic model. Its wire name comes from the class or from ``name=``, never from the module,
so that moving a file changes no schema.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

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
    ``key`` the field that gives the record's key (a job without one is keyed by its id). ``track`` says whether a
    job's row in ``pipeline.job`` tells of it.
    """

    kind: Literal["event", "job"]
    name: str
    stream: str
    key: str | None
    format: Format
    track: bool = False


class Message(BaseModel):
    """What events and jobs have in common. Not to be used itself."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        # JSON holds neither bytes nor infinity by itself
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="strings",
    )

    message_type: ClassVar[MessageType]


class Event(Message):
    """Something that happened to an aggregate.

    ``class OrderPlaced(Event, aggregate="order", key="order_id")``: goes to topic ``outbox.event.order``, keyed by
    ``order_id``. ``name`` sets the full Avro name, dots and all; ``format="json"`` leaves Avro out. A subclass takes
    over all but the name.
    """

    def __init_subclass__(
        cls,
        *,
        aggregate: str = "",
        key: str = "",
        name: str = "",
        format: Format | None = None,  # noqa: A002 — the field's word
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if parent := _parent(cls):
            aggregate, key = aggregate or parent.stream, key or parent.key or ""
        if not aggregate or not key:
            raise ConfigError(
                f"event {cls.__name__}: aggregate and key are needed",
                remedy=f'class {cls.__name__}(Event, aggregate="order", key="order_id")',
            )
        wire = format or (parent.format if parent else "avro")
        cls.message_type = MessageType("event", _full_name(cls, name), check_name(aggregate), key, wire)

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        _check_fields(cls)


class Job(Message):
    """Something that should be done.

    ``class SendReceipt(Job, queue="email")``: goes to the queue's topic, ``<app>.jobs.email``. Jobs have no order
    between them unless their handler asks for it; then ``key`` says among which. Without ``queue``: ``default``. A
    subclass takes over all but the name. ``track=False`` is faster, and loses list, show, cancel, retry, unique,
    progress, results and flows.
    """

    def __init_subclass__(
        cls,
        *,
        queue: str = "",
        key: str | None = None,
        name: str = "",
        format: Format | None = None,  # noqa: A002 — the field's word
        track: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if parent := _parent(cls):
            queue, key = queue or parent.stream, key or parent.key
        wire = format or (parent.format if parent else "avro")
        if track is None:
            track = parent.track if parent else True
        cls.message_type = MessageType("job", _full_name(cls, name), check_name(queue or "default"), key, wire, track)

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        _check_fields(cls)


def _parent(cls: type[Message]) -> MessageType | None:
    """What the class that this one derives from is; raises ConfigError for a field of that name."""
    if "message_type" in inspect.get_annotations(cls):
        raise ConfigError(f"{cls.__name__}: a field may not be named message_type", remedy="name it otherwise")
    return getattr(cls, "message_type", None)


def _full_name(cls: type[Message], name: str) -> str:
    """The Avro name: as given, else the class's. ``Box[int]``, as pydantic names it, is ``Box_int``."""
    own = cls.__name__
    full = name or (re.sub(r"\W+", "_", own).strip("_") if "[" in own else own)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", full, re.ASCII):
        raise ConfigError(f"{own}: {full!r} is not an Avro name", remedy="ASCII letters, digits, _ and dots; set name=")
    return full


def _check_fields(cls: type[Message]) -> None:
    key = cls.message_type.key
    if key is not None and key not in cls.model_fields:
        known = f"one of: {', '.join(cls.model_fields)}" if cls.model_fields else "it has no fields yet: declare it"
        raise ConfigError(f"{cls.__name__}: key={key!r} is not one of its fields", remedy=known)
    for name, info in cls.model_fields.items() if cls.message_type.format == "json" else ():
        read = info.validation_alias
        known_names = {name, *(map(str, read.choices) if isinstance(read, AliasChoices) else [read])}
        if info.serialization_alias and info.serialization_alias not in known_names:
            raise ConfigError(
                f"{cls.__name__}.{name}: written as {info.serialization_alias!r}, which is not read back",
                remedy="alias= for both ways, or validation_alias=AliasChoices(…) with the name that is written",
            )
