"""A field's annotation in, its Avro type out: models as records, and all that stands in their fields.

What Avro cannot hold exactly is a ConfigError that names the field; a value that is not of the declared type is
refused, where fastavro would write it as something else.
"""

from __future__ import annotations

import math
import operator
import re
import types
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    FutureDate,
    FutureDatetime,
    PastDate,
    PastDatetime,
    PydanticUndefinedAnnotation,
    RootModel,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.errors import ConfigError, SchemaError
from pipeline.event import Message, PersonalMark
from pipeline.shape import Convert, Json, Scope, Shape, unwrapped
from pipeline.union import union

__all__ = ["PERSONAL", "alone", "field_shape", "record"]

PERSONAL = "pipeline.personal"
"""Attribute of a schema field that holds personal data."""


def record(model: type[BaseModel], name: str, scope: Scope) -> Shape:
    """Return a model's record, or its name where it was already described in this schema."""
    _check_model(model)
    if not scope.claim(name, model, model.__name__):
        # a type may hold itself: its converters are looked up when they are needed
        late = _Late(model, name, scope.namespace)
        return Shape(name, model, late.to_avro, late.from_avro)
    shapes = {field_name: field_shape(model, field_name, scope) for field_name in model.model_fields}
    fields = [_field(n, info, shapes[n], f"{model.__name__}.{n}") for n, info in model.model_fields.items()]
    schema: dict[str, Json] = {"type": "record", "name": name, "fields": fields}
    if model.__doc__ and model.__doc__ != BaseModel.__doc__:
        schema = {"type": "record", "name": name, "doc": " ".join(model.__doc__.split()), "fields": fields}
    return Shape(schema, model, *_converters(model, shapes))


def field_shape(model: type[BaseModel], name: str, scope: Scope) -> Shape:
    """Return the shape of one field."""
    where = f"{model.__name__}.{name}"
    if not name.isascii():
        raise ConfigError(f"{where}: the name is not an Avro name", remedy="letters, digits and _, all ASCII")
    info = model.model_fields[name]
    return _shape(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation, where, scope)


def alone(name: str, shape: Shape) -> Json:
    """Return a record schema of this one field."""
    return {"type": "record", "name": "Alone", "fields": [{"name": name, "type": shape.schema}]}


def _check_model(model: type[BaseModel]) -> None:
    if not model.__pydantic_complete__:
        try:
            model.model_rebuild()
        except PydanticUndefinedAnnotation as error:
            raise ConfigError(
                f"{model.__name__}: {error.name!r} is not defined", remedy="define or import it"
            ) from None
    if model.model_config.get("extra") == "allow":
        raise ConfigError(
            f"{model.__name__}: extra='allow' holds fields that no schema knows",
            remedy="extra='forbid', or a dict field",
        )


def _converters(model: type[BaseModel], shapes: Mapping[str, Shape]) -> tuple[Convert, Convert]:
    """Return how a model becomes a dict of Avro's values, and how such a dict becomes what pydantic takes.

    An instance of a subclass goes as the declared class, unless it has fields that would be lost.
    """
    there = [(name, shape.to_avro) for name, shape in shapes.items() if shape.to_avro]
    back = [(name, shape.from_avro) for name, shape in shapes.items() if shape.from_avro]

    def to_avro(value: BaseModel) -> dict[str, Any]:
        if type(value) is not model and type(value).model_fields.keys() - shapes.keys():
            raise TypeError("a subclass with more fields than the schema has")
        data = dict(value.__dict__)
        for name, convert in there:
            data[name] = convert(data[name])
        return data

    def from_avro(value: Any) -> Any:
        data = unwrapped(value)
        for name, convert in back:
            data[name] = convert(data[name])
        return data

    return to_avro, from_avro


class _Late:
    """Converters of a type that is still being described."""

    def __init__(self, model: type[BaseModel], name: str, namespace: str) -> None:
        self._key = (model, name, namespace)
        self._shape: Shape | None = None

    def _found(self) -> Shape:
        if self._shape is None:
            model, name, namespace = self._key
            self._shape = record(model, name, Scope(namespace))
        return self._shape

    def to_avro(self, value: Any) -> Any:
        return self._found().to_avro(value)  # type: ignore[misc]  # a record always has one

    def from_avro(self, value: Any) -> Any:
        return self._found().from_avro(value)  # type: ignore[misc]  # a record always has one


# ── fields ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _field(name: str, info: FieldInfo, shape: Shape, where: str) -> dict[str, Json]:
    entry: dict[str, Json] = {"name": name, "type": shape.schema}
    if info.description:
        entry["doc"] = info.description
    if any(isinstance(mark, PersonalMark) for mark in (*info.metadata, *_marks(info.annotation))):
        entry[PERSONAL] = True
    if info.default_factory in {list, dict, set, frozenset, tuple}:
        entry["default"] = {} if info.default_factory is dict else []
    elif info.default_factory is None and info.default is not PydanticUndefined:
        branch, entry["default"] = _default(info.default, shape, where)
        if shape.branches:  # Avro wants the default's branch first
            entry["type"] = [branch.schema, *(b.schema for b in shape.branches if b is not branch)]
    return entry


def _marks(annotation: Any) -> list[object]:
    """All metadata inside an annotation, at any depth."""
    marks = list(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else []
    if hasattr(annotation, "__value__"):
        return _marks(annotation.__value__)
    for part in get_args(annotation):
        marks += _marks(part)
    return marks


def _default(value: Any, shape: Shape, where: str) -> tuple[Shape, Json]:
    """Return the branch that a default belongs to, and its JSON."""
    for branch in shape.branches or (shape,):
        if value is None and branch.kind is types.NoneType:
            return branch, None
        if isinstance(value, Enum) and branch.kind is type(value):
            return branch, value.value
        if type(value) is branch.kind and branch.kind in {str, int, bool}:
            return branch, value
        if branch.kind is float and type(value) in {float, int} and math.isfinite(value):
            return branch, value
        empty = isinstance(value, Mapping | list | tuple | set | frozenset) and not value
        if empty and branch.kind is (dict if isinstance(value, Mapping) else list):
            return branch, {} if branch.kind is dict else []
    raise ConfigError(
        f"{where}: its default cannot be written into an Avro schema",
        remedy="None for an optional field, a number, text or enum member of the field's type, an empty list or dict, "
        "Field(default_factory=…), or no default",
    )


# ── types ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _shape(annotation: Any, where: str, scope: Scope) -> Shape:
    """Return an annotation's Avro. Raises ConfigError naming ``where``."""
    annotation, metadata = _peeled(annotation)
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation is Decimal:
        return _decimal(metadata, where)
    if origin in {Union, types.UnionType}:
        parts = [types.NoneType if part is None else part for part in inside]
        return union([_shape(Annotated[(p, *metadata)] if metadata else p, where, scope) for p in parts], where, scope)
    if origin in {list, set, frozenset, Sequence} or (origin is tuple and inside[1:] == (...,)):
        return _array(_shape(inside[0], where, scope), copy=origin is not list)
    if origin in {dict, Mapping} and _peeled(inside[0])[0] is str:
        return _map(_shape(inside[1], where, scope))
    if origin is Literal:
        return _literal(inside, where, scope)
    if isinstance(annotation, type):
        if annotation in _ALIASES:
            annotation = _ALIASES[annotation]
        if annotation is datetime:
            return Shape({"type": "long", "logicalType": "timestamp-micros"}, datetime, _aware(where))
        if annotation is time:
            return Shape({"type": "long", "logicalType": "time-micros"}, time, _without_zone(where))
        if issubclass(annotation, Enum):
            return _enum(annotation, where, scope)
        if issubclass(annotation, RootModel):
            return _root(annotation, where, scope)
        if issubclass(annotation, BaseModel):
            return record(annotation, _nested_name(annotation), scope)
        if annotation in _PRIMITIVES:
            schema, convert = _PRIMITIVES[annotation]
            return Shape(schema, annotation, convert)
    raise ConfigError(
        f"{where}: {annotation!r} has no Avro type",
        remedy="str, int, float, bool, bytes, Decimal with digits, datetime, date, time, UUID, Enum, a model, "
        "list, set, tuple[X, ...], dict[str, X], or a union of these",
    )


_ALIASES: dict[Any, type] = {
    AwareDatetime: datetime,
    PastDatetime: datetime,
    FutureDatetime: datetime,
    PastDate: date,
    FutureDate: date,
}

# The converters refuse what fastavro would write as something else: 1.5 as 1, "no" as true, any text as a UUID.
_PRIMITIVES: dict[type, tuple[Json, Convert | None]] = {
    str: ("string", str.__str__),
    int: ("long", operator.index),
    float: ("double", None),
    bool: ("boolean", {True: True, False: False}.__getitem__),
    bytes: ("bytes", None),
    date: ({"type": "int", "logicalType": "date"}, None),
    UUID: ({"type": "string", "logicalType": "uuid"}, UUID.__str__),
    types.NoneType: ("null", None),
}


def _peeled(annotation: Any) -> tuple[Any, tuple[object, ...]]:
    """Return what is inside Annotated, NewType and type aliases, and the metadata on the way."""
    metadata: tuple[object, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata = (*metadata, *more)
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__") and not isinstance(annotation, type):
            annotation = annotation.__value__
        else:
            return annotation, metadata


def _nested_name(model: type[BaseModel]) -> str:
    """Name inside another schema, which gives its namespace to all within. ``Box[int]`` is ``Box_int``."""
    if issubclass(model, Message):
        return model.message_type.name.rpartition(".")[2]
    return re.sub(r"\W+", "_", model.__name__).strip("_") if "[" in model.__name__ else model.__name__


def _decimal(metadata: tuple[object, ...], where: str) -> Shape:
    precision = scale = None
    for mark in metadata:
        for part in (mark, *getattr(mark, "metadata", ())):
            precision = getattr(part, "max_digits", None) or precision
            scale = next((v for v in (getattr(part, "decimal_places", None), scale) if v is not None), None)
    if precision is None or scale is None:
        raise ConfigError(
            f"{where}: a Decimal needs its digits",
            remedy="Annotated[Decimal, Field(max_digits=18, decimal_places=2)], or pipeline.Money",
        )
    limit = Decimal(10) ** (precision - scale)

    def within(value: Decimal) -> Decimal:
        if not -limit < value < limit:
            raise ValueError("more digits than declared")
        return value

    schema = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    return Shape(schema, Decimal, within)


def _aware(where: str) -> Convert:
    def in_utc(value: datetime) -> datetime:
        if value.tzinfo is None:
            raise SchemaError(f"{where}: a time without zone", remedy="datetime.now(UTC), or any other aware datetime")
        return value.astimezone(UTC)  # raises for what no reader could hold

    return in_utc


def _without_zone(where: str) -> Convert:
    def as_it_is(value: time) -> time:
        if value.tzinfo is not None:
            raise SchemaError(f"{where}: a time of day with a zone, which Avro cannot keep", remedy="a datetime")
        return value

    return as_it_is


def _literal(choices: tuple[object, ...], where: str, scope: Scope) -> Shape:
    kinds = {type(choice) for choice in choices}
    inner = kinds - {types.NoneType}
    if len(inner) != 1 or not inner <= {str, int}:
        raise ConfigError(f"{where}: this Literal has no Avro type", remedy="a Literal of texts only, or of ints only")
    shapes = [_shape(kind, where, scope) for kind in inner]
    if types.NoneType in kinds:
        return union([_shape(types.NoneType, where, scope), *shapes], where, scope)
    return shapes[0]


def _enum(annotation: type[Enum], where: str, scope: Scope) -> Shape:
    symbols = [member.value for member in annotation]
    if not symbols or not all(isinstance(s, str) and re.fullmatch(r"[A-Za-z_]\w*", s, re.ASCII) for s in symbols):
        raise ConfigError(
            f"{where}: the values of {annotation.__name__} are not all Avro symbols",
            remedy="text values of letters, digits and _, not beginning with a digit",
        )
    schema: Json = annotation.__name__
    if scope.claim(annotation.__name__, annotation, where):
        schema = {"type": "enum", "name": annotation.__name__, "symbols": symbols}
    return Shape(schema, annotation, {member: member.value for member in annotation}.__getitem__, unwrapped)


def _root(model: type[RootModel[Any]], where: str, scope: Scope) -> Shape:
    """A RootModel is what it holds, without a record around it."""
    inner = field_shape(model, "root", scope)
    if inner.branches:
        raise ConfigError(f"{where}: {model.__name__} is a union in a RootModel", remedy="use the union itself")
    convert = inner.to_avro
    to_avro = (lambda value: convert(value.root)) if convert else operator.attrgetter("root")
    return Shape(inner.schema, model, to_avro, inner.from_avro)


def _array(item: Shape, *, copy: bool) -> Shape:
    there, back = item.to_avro, item.from_avro
    to_avro: Convert | None = (lambda values: [there(value) for value in values]) if there else list if copy else None
    from_avro: Convert | None = (lambda values: [back(value) for value in values]) if back else None
    return Shape({"type": "array", "items": item.schema}, list, to_avro, from_avro)


def _map(item: Shape) -> Shape:
    there, back = item.to_avro, item.from_avro
    to_avro: Convert | None = (lambda values: {k: there(v) for k, v in values.items()}) if there else dict
    from_avro: Convert | None = (lambda values: {k: back(v) for k, v in values.items()}) if back else None
    return Shape({"type": "map", "values": item.schema}, dict, to_avro, from_avro)
