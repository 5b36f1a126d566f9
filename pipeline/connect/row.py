"""A table's columns in, Python expressions of them out: text for the function that the router generates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.connect.binary import FUNCTIONS
from pipeline.connect.columns import ColumnType, column_type
from pipeline.connect.converters import Converter, expression
from pipeline.connect.defaults import default_of
from pipeline.connect.routing import Placement, RouterOptions
from pipeline.connect.schema import Schema
from pipeline.errors import ConfigError

__all__ = ["PLACEMENT", "Declared", "Layout", "Row", "of_variable"]

Declared = Callable[[], Mapping[str, tuple[bool, str | None]]]
"""Returns, of each of a table's columns, whether it can be NULL, and its DEFAULT as PostgreSQL writes it."""

PLACEMENT = "table.fields.additional.placement"
_VARIABLE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\bv\b""")
_WANTED = {
    "string": "a text column",
    "payload": "bytea, text, json or jsonb",
    "timestamp_ms": "timestamp without time zone",
    "number": "integer",
}
_WRITTEN = {
    "string": "text, uuid, integer, boolean, json or timestamp",
    "simple": "bytea, text, uuid, integer, boolean, json or timestamp",
    "json": "bytea, text, uuid, integer, boolean, json or timestamp",
    "bytes": "bytea",
    "binary": "bytea, or a delegate.converter.type",
}


class Layout(Protocol):
    """One column of a table, as the source announces it."""

    @property
    def name(self) -> str:
        """The column's name."""

    @property
    def type_oid(self) -> int:
        """Its type, as in pg_type."""

    @property
    def modifier(self) -> int:
        """Its type's modifier, as in pg_attribute."""


class Row:
    """The columns of ``table`` while their function is written, by their names as the router's options have them.
    ``names`` are those used, the arguments in order; ``scope`` has what the expressions call.
    """

    def __init__(
        self, options: RouterOptions, table: str, columns: Sequence[Layout], declared: Declared = dict
    ) -> None:
        self.options = options
        self.table = table
        self.names: list[str] = []
        self.scope: dict[str, object] = dict(FUNCTIONS)
        self._columns = self._named(columns)
        self._types = {
            name: column_type(column.type_oid, column.modifier, options.modes) for name, column in self._columns.items()
        }
        self._declared = declared() if options.described else {}

    def __contains__(self, column: str) -> bool:
        return column in self._types

    @property
    def columns(self) -> list[str]:
        """The columns that are used, as the table has them."""
        return [self._columns[name].name for name in self.names]

    def variable(self, column: str) -> str:
        """Return the argument that has a column's bytes."""
        if column not in self.names:
            self.names.append(column)
        return f"c{self.names.index(column)}"

    def type(self, column: str, option: str) -> ColumnType:
        """Return a column's type. Raises ConfigError where ``option`` names a column that is not there."""
        if column not in self._types:
            raise ConfigError(f"{self._where(column, option)}, is not there", remedy=f"there are {self._all()}")
        return self._types[column]

    def schema(self, column: str) -> Schema:
        """Return Connect's schema of a column, as the table declares it."""
        schema = self._types[column].schema or Schema("bytes")
        optional, default = self._declared.get(self._columns[column].name, (True, None))
        return replace(schema, optional=optional, default=default_of(default, schema))

    def use(self, column: str, form: str, option: str) -> str:
        """Return the expression that gives a column in a form of its ColumnType; None where it is NULL."""
        kind = self.type(column, option)
        text = str(getattr(kind, form))
        if not text:
            wanted = _WANTED[form]
            raise ConfigError(
                f"{self._where(column, option)}, is of {kind.name}, which is not honoured there",
                remedy=f"use {wanted} there instead of {kind.name}",
            )
        return self._of(column, text, "None")

    def converted(self, converter: Converter, column: str, option: str, *, text_too: bool = False) -> str:
        """Return the expression of a column as a converter writes it: bytes, or where ``text_too`` a str for them."""
        kind = self.type(column, option)
        text, null = expression(converter, kind, self.schema(column))
        if not text:
            raise ConfigError(
                f"{self._where(column, option)}, is of {kind.name}, which its converter does not write",
                remedy=f"use {_WRITTEN[converter.kind]} there, or another converter",
            )
        return self._of(column, text if text_too else _encoded(text), null)

    def placed(self, *to: str) -> list[Placement]:
        """Return the placements of these kinds, without those of missing columns where they are ignored."""
        ignored = self.options.ignore_missing
        return [one for one in self.options.placements if one.to in to and not (ignored and one.column not in self)]

    def _named(self, columns: Sequence[Layout]) -> dict[str, Layout]:
        """Return the columns by the names that options have for them. Raises ConfigError where two become one."""
        made: dict[str, Layout] = {}
        for column in columns:
            name = self.options.field_names(column.name)
            if (other := made.setdefault(name, column)) is not column:
                raise ConfigError(
                    f"table {self.table}: columns {other.name!r} and {column.name!r} are both {name!r} to the router",
                    remedy="take one out by column.exclude.list, or set field.name.adjustment.mode=avro_unicode",
                )
        return made

    def _of(self, column: str, text: str, null: str) -> str:
        name = self.variable(column)
        if text == "v" and null == "None":
            return name
        return f"({of_variable(text, name)} if {name} is not None else {null})"

    def _where(self, column: str, option: str) -> str:
        return f"table {self.table}: column {column!r}, named by {self.options.prefix}{option}"

    def _all(self) -> str:
        return ", ".join(self._types)


def of_variable(text: str, name: str) -> str:
    """Return a ColumnType's expression with ``name`` in the place of its ``v``; what stands in quotes stays."""
    return _VARIABLE.sub(lambda found: found[0] if found[0] != "v" else name, text)


def _encoded(text: str) -> str:
    """Return an expression for bytes: Python's str where a type is written as text."""
    plain = text in {"v", "v[1:]"} or text.startswith(("b'", "quoted("))
    return text if plain else f"encoded({text})"
