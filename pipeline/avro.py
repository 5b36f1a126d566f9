"""A pydantic model in, its Avro schema and a converter to Avro's values out.

The same model always gives the same schema text, byte for byte: the text's hash finds the schema's id. What Avro
cannot say exactly (a bare Decimal, ``Any``, an enum with odd symbols) is an error when the model is first used.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache
from hashlib import sha256
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.errors import ConfigError, SchemaError
from pipeline.event import Message, PersonalMark

__all__ = ["PERSONAL", "Schema", "schema_of"]

PERSONAL = "pipeline.personal"
"""Attribute of a schema field that holds personal data."""

Json = Any  # a JSON value: typed more narrowly it says nothing more
ToAvro = Callable[[Any], Any]

_PRIMITIVES: dict[type, Json] = {
    str: "string",
    int: "long",
    float: "double",
    bool: "boolean",
    bytes: "bytes",
    date: {"type": "int", "logicalType": "date"},
    time: {"type": "long", "logicalType": "time-micros"},
    UUID: {"type": "string", "logicalType": "uuid"},
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A message class in Avro. ``text`` is exact; ``fingerprint`` its SHA-256; ``convert`` makes Avro's values."""

    name: str
    text: str
    fingerprint: bytes
    convert: Callable[[Message], Mapping[str, Any]]

    def parsed(self) -> Json:
        """The schema as JSON values."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class _Shape:
    """An annotation in Avro. ``to_avro`` is None where the Python value is Avro's value already."""

    schema: Json
    to_avro: ToAvro | None = None


@cache
def schema_of(model: type[Message]) -> Schema:
    """Return a message class's Avro schema. Raises ConfigError, naming the field, for what Avro cannot hold."""
    shape = _record(model, model.message_type.name, {})
    text = json.dumps(shape.schema, separators=(",", ":"), ensure_ascii=False)
    convert = shape.to_avro or _as_dict
    return Schema(model.message_type.name, text, sha256(text.encode()).digest(), convert)


def _as_dict(model: BaseModel) -> Mapping[str, Any]:
    return model.__dict__


def _record(model: type[BaseModel], name: str, seen: dict[str, type]) -> _Shape:
    """Return a model's record, or its name where it was already described in this schema."""
    if name in seen:
        if seen[name] is not model:
            raise ConfigError(f"{model.__name__}: two types named {name!r} in one schema", remedy="rename one of them")
        # a type may hold itself: its converter is looked up when it is needed
        return _Shape(name, lambda value: _converter(model, name)(value))
    seen[name] = model
    fields: list[dict[str, Json]] = []
    converters: list[tuple[str, ToAvro]] = []
    for field_name, info in model.model_fields.items():
        where = f"{model.__name__}.{field_name}"
        annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        shape = _shape(annotation, where, seen)
        fields.append(_field(field_name, info, shape, where))
        if shape.to_avro:
            converters.append((field_name, shape.to_avro))
    schema: dict[str, Json] = {"type": "record", "name": name, "fields": fields}
    if model.__doc__ and model.__doc__ != BaseModel.__doc__:
        schema = {"type": "record", "name": name, "doc": " ".join(model.__doc__.split()), "fields": fields}
    if not converters:
        return _Shape(schema, _as_dict)

    def convert(value: BaseModel) -> Mapping[str, Any]:
        data = dict(value.__dict__)
        for field_name, to_avro in converters:
            data[field_name] = to_avro(data[field_name])
        return data

    return _Shape(schema, convert)


@cache
def _converter(model: type[BaseModel], name: str) -> ToAvro:
    return _record(model, name, {}).to_avro or _as_dict


def _field(name: str, info: FieldInfo, shape: _Shape, where: str) -> dict[str, Json]:
    field: dict[str, Json] = {"name": name, "type": shape.schema}
    if info.description:
        field["doc"] = info.description
    if any(isinstance(mark, PersonalMark) for mark in _marks(info)):
        field[PERSONAL] = True
    if info.default is not PydanticUndefined or info.default_factory is not None:
        field["default"] = _default(info, where)
    return field


def _marks(info: FieldInfo) -> list[object]:
    """All metadata of a field, also that of an optional's inner type."""
    marks = list(info.metadata)
    for part in get_args(info.annotation):
        if get_origin(part) is Annotated:
            marks += get_args(part)[1:]
    return marks


def _default(info: FieldInfo, where: str) -> Json:
    value = info.default if info.default_factory is None else info.default_factory()  # type: ignore[call-arg]  # ours take nothing
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple | set | frozenset | dict) and not value:
        return {} if isinstance(value, dict) else []
    raise ConfigError(
        f"{where}: its default cannot be written into an Avro schema",
        remedy="use None, a plain number, text or enum member, an empty list or dict, or no default",
    )


def _shape(annotation: Any, where: str, seen: dict[str, type]) -> _Shape:
    """Return an annotation's Avro. Raises ConfigError naming ``where``."""
    metadata: tuple[object, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = (*metadata, *more)
    origin = get_origin(annotation)
    if annotation is Decimal:
        return _Shape(_decimal(metadata, where))
    if annotation is datetime:
        return _Shape({"type": "long", "logicalType": "timestamp-micros"}, _aware(where))
    if origin in {Union, types.UnionType}:
        return _union(get_args(annotation), where, seen, metadata)
    if origin in {list, set, frozenset} or (origin is tuple and get_args(annotation)[1:] == (...,)):
        item = _shape(get_args(annotation)[0], where, seen)
        return _Shape({"type": "array", "items": item.schema}, _each(item.to_avro, origin is not list))
    if origin is dict and get_args(annotation)[0] is str:
        value = _shape(get_args(annotation)[1], where, seen)
        return _Shape({"type": "map", "values": value.schema}, _each_value(value.to_avro))
    if origin is Literal and all(isinstance(choice, str) for choice in get_args(annotation)):
        return _Shape("string")
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return _enum(annotation, where, seen)
        if issubclass(annotation, BaseModel):
            return _record(annotation, _nested_name(annotation), seen)
        if annotation in _PRIMITIVES:
            return _Shape(_PRIMITIVES[annotation])
    raise ConfigError(
        f"{where}: {annotation!r} has no Avro type",
        remedy="str, int, float, bool, bytes, Decimal with digits, datetime, date, time, UUID, Enum, a model, "
        "list, set, tuple[X, ...], dict[str, X], or a union of these",
    )


def _nested_name(model: type[BaseModel]) -> str:
    return model.message_type.name if issubclass(model, Message) else model.__name__


def _decimal(metadata: tuple[object, ...], where: str) -> Json:
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
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


def _aware(where: str) -> ToAvro:
    def check(value: datetime) -> datetime:
        if value.tzinfo is None:
            raise SchemaError(f"{where}: a time without zone", remedy="datetime.now(UTC), or any other aware datetime")
        return value

    return check


def _enum(annotation: type[Enum], where: str, seen: dict[str, type]) -> _Shape:
    symbols = [member.value for member in annotation]
    if not all(isinstance(s, str) and re.fullmatch(r"[A-Za-z_]\w*", s, re.ASCII) for s in symbols):
        raise ConfigError(
            f"{where}: the values of {annotation.__name__} are not all Avro symbols",
            remedy="text values of letters, digits and _, not beginning with a digit",
        )

    def value_of(member: Enum) -> str:
        return str(member.value)

    if annotation.__name__ in seen:
        return _Shape(annotation.__name__, value_of)
    seen[annotation.__name__] = annotation
    return _Shape({"type": "enum", "name": annotation.__name__, "symbols": symbols}, value_of)


def _union(parts: tuple[Any, ...], where: str, seen: dict[str, type], metadata: tuple[object, ...]) -> _Shape:
    """Return ``["null", X, …]``. None first, so that a default of None is allowed, as Avro wants it."""
    optional = types.NoneType in parts
    inner = [part for part in parts if part is not types.NoneType]
    shapes = [_shape(Annotated[(part, *metadata)] if metadata else part, where, seen) for part in inner]
    schema = (["null"] if optional else []) + [shape.schema for shape in shapes]
    if len(shapes) == 1:
        return _Shape(schema, _unless_none(shapes[0].to_avro))
    choices = [(_runtime_type(part), shape) for part, shape in zip(inner, shapes, strict=True)]

    def choose(value: object) -> object:
        for kind, shape in choices:
            if type(value) is kind:
                data = shape.to_avro(value) if shape.to_avro else value
                # a tuple names the branch: two records can look alike
                return (_name(shape.schema), data) if isinstance(value, BaseModel) else data
        return value

    return _Shape(schema, choose)


def _name(schema: Json) -> str:
    return str(schema if isinstance(schema, str) else schema["name"])


def _runtime_type(annotation: Any) -> object:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation


def _unless_none(to_avro: ToAvro | None) -> ToAvro | None:
    return None if to_avro is None else lambda value: None if value is None else to_avro(value)


def _each(to_avro: ToAvro | None, copy: bool) -> ToAvro | None:
    if to_avro is None:
        return list if copy else None
    return lambda values: [to_avro(value) for value in values]


def _each_value(to_avro: ToAvro | None) -> ToAvro | None:
    return None if to_avro is None else lambda values: {key: to_avro(value) for key, value in values.items()}
