"""The parts of a union in, its Avro union out, with the way of a value into its branch and back.

A value goes into the branch of its own type, never into the first that looks like it, and comes back as what it was.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, RootModel

from pipeline.errors import ConfigError
from pipeline.shape import Convert, Scope, Shape

__all__ = ["union"]


def union(parts: list[Shape], where: str, scope: Scope) -> Shape:
    """Return ``["null", X, …]``: None first, the others as declared, unions within laid open."""
    flat = {_slot(branch): branch for part in parts for branch in part.branches or (part,)}
    if len(flat) < sum(len(part.branches) or 1 for part in parts) and not _only_null_twice(parts, flat):
        raise ConfigError(
            f"{where}: two parts of the union are one type in Avro, so a reader could not tell them apart",
            remedy="Avro has one text, one bytes, one int-like, one list and one dict in a union: leave one out, or "
            "put each into a model of its own",
        )
    branches = sorted(flat.values(), key=lambda branch: branch.kind is not types.NoneType)
    inner = [branch for branch in branches if branch.kind is not types.NoneType]
    schema = [branch.schema for branch in branches]
    if len(inner) == 1:
        there, back = inner[0].to_avro, inner[0].from_avro
        to_avro: Convert | None = (lambda v: None if v is None else there(v)) if there else None
        from_avro: Convert | None = (lambda v: None if v is None else back(v)) if back else None
        return Shape(schema, inner[0].kind, to_avro, from_avro, tuple(branches))
    scope.named_branches = scope.named_branches or any(_named(branch) for branch in inner)
    return Shape(schema, object, _choose(inner, scope), _restore(inner, scope), tuple(branches))


def _only_null_twice(parts: list[Shape], flat: Mapping[str, Shape]) -> bool:
    total = [_slot(branch) for part in parts for branch in part.branches or (part,)]
    return len([slot for slot in total if slot != "null"]) == len([slot for slot in flat if slot != "null"])


def _choose(inner: list[Shape], scope: Scope) -> Convert:
    """Return how a value finds its branch: by its own type, else by a base of it. The tuple tells fastavro."""
    named = [(branch.kind, _name(branch, scope), branch.to_avro) for branch in inner]
    exact = {kind: (name, convert) for kind, name, convert in named}

    def choose(value: Any) -> Any:
        if value is None:
            return None
        found = exact.get(type(value)) or next(
            ((name, convert) for kind, name, convert in named if isinstance(value, _RUNTIME.get(kind, kind))), None
        )
        if found is None:
            raise TypeError("no part of the union has this type")
        name, convert = found
        return name, convert(value) if convert else value

    return choose


def _restore(inner: list[Shape], scope: Scope) -> Convert:
    """Return how a branch's data becomes an instance, so that pydantic need not guess."""
    named = {_name(branch, scope): branch for branch in inner if _named(branch)}
    plain = {branch.kind: branch.from_avro for branch in inner if not _named(branch)}

    def restore(value: Any) -> Any:
        if not isinstance(value, tuple):
            convert = plain.get(type(value))
            return convert(value) if convert else value
        name, data = value
        branch = named.get(name)
        if branch is None or branch.from_avro is None:
            return data
        if issubclass(branch.kind, BaseModel):
            return branch.kind.model_validate(branch.from_avro(data), strict=False, by_alias=False, by_name=True)
        return branch.kind(data)  # type: ignore[call-arg]  # an Enum, by its value

    return restore


_RUNTIME: dict[type, Any] = {list: (list, tuple, set, frozenset), dict: Mapping}
_NAMED = ("record", "enum")


def _named(shape: Shape) -> bool:
    """Tell whether it is a record or an enum: only those have a name in a union."""
    return issubclass(shape.kind, Enum) or (issubclass(shape.kind, BaseModel) and not issubclass(shape.kind, RootModel))


def _slot(shape: Shape) -> str:
    """What must be different in all branches of a union: the name, else Avro's type."""
    if isinstance(shape.schema, str):
        return shape.schema
    return str(shape.schema["name"] if _named(shape) else shape.schema["type"])


def _name(shape: Shape, scope: Scope) -> str:
    """What fastavro calls the branch."""
    return scope.full(_slot(shape)) if _named(shape) else _slot(shape)
