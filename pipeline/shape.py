"""What Avro makes of one annotation, and the names that one schema has given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError

__all__ = ["Convert", "Json", "Scope", "Shape", "unwrapped"]

Json = Any  # a JSON value: typed more narrowly it says nothing more
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """An annotation in Avro.

    ``kind`` is the type of its Python values. ``to_avro`` and ``from_avro`` are None where nothing is to be done;
    ``from_avro`` is for data in which every named type of a union stands as ``(name, value)``. ``branches`` are a
    union's parts.
    """

    schema: Json
    kind: type
    to_avro: Convert | None = None
    from_avro: Convert | None = None
    branches: tuple[Shape, ...] = ()


@dataclass(slots=True)
class Scope:
    """What one schema has named so far. ``named_branches``: a union needs names to tell what a value was."""

    namespace: str
    seen: dict[str, type] = field(default_factory=dict)
    named_branches: bool = False

    def full(self, name: str) -> str:
        """Return a name with the schema's namespace."""
        return f"{self.namespace}.{name}" if self.namespace else name

    def claim(self, name: str, owner: type, where: str) -> bool:
        """Tell whether ``name`` is new here. Raises ConfigError where it is another type's, or no Avro name."""
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ConfigError(f"{where}: {name!r} is not an Avro name", remedy="letters, digits and _, all ASCII")
        if name not in self.seen:
            self.seen[name] = owner
            return True
        if self.seen[name] is not owner:
            raise ConfigError(f"{where}: two types named {name!r} in one schema", remedy="rename one of them")
        return False


def unwrapped(value: Any) -> Any:
    """Drop the name that a writer's union put before a value, where the reader has no union."""
    return value[1] if isinstance(value, tuple) else value
