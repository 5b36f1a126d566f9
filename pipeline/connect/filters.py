"""The include and exclude lists of a connector file in, which tables and columns are read out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.connect.java import java_regex
from pipeline.errors import ConfigError

__all__ = ["Filters", "chosen", "filters", "listed", "split"]

Names = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Filters:
    """Predicates on "schema", "schema.table" and "schema.table.column"; ``text`` names the lists, for messages."""

    schemas: Names
    tables: Names
    columns: Names
    text: str


def filters(where: str, get: Callable[[str], str], *, needed: bool) -> Filters:
    """Read the lists of schemas, tables and columns. Raises ConfigError, also where one of tables is ``needed``."""
    if needed and not (get("table.include.list") or get("table.exclude.list") or get("schema.include.list")):
        raise ConfigError(
            f"{where}: table.include.list: is missing: every table would be taken for an outbox",
            remedy="add table.include.list: pipeline.outbox",
        )
    others = ("table.exclude.list", "schema.include.list", "schema.exclude.list")
    more = ", ".join(f"{key}={get(key)}" for key in others if get(key))
    return Filters(
        schemas=chosen(where, get, "schema"),
        tables=chosen(where, get, "table"),
        columns=chosen(where, get, "column"),
        text=(get("table.include.list") or ".*") + (f" ({more})" if more else ""),
    )


def chosen(where: str, get: Callable[[str], str], what: str) -> Names:
    """Return what tells whether ``what``.include.list or .exclude.list takes a name; without both, any is taken.

    Raises ConfigError, also where both are there.
    """
    include, exclude = f"{what}.include.list", f"{what}.exclude.list"
    if get(include) and get(exclude):
        raise ConfigError(f"{where}: {exclude}: {include} is there too", remedy="keep one of the two")
    key = include if get(include) else exclude
    try:
        within = listed(get(key))
    except re.error as error:
        raise ConfigError(f"{where}: {key}: {error}", remedy="correct the regular expression") from error
    return within if get(include) else lambda name: not within(name)


def split(text: str) -> list[str]:
    """Return the items of a list: commas part them, a comma behind a backslash is one."""
    items = re.findall(r"(?:\\.|[^,\\])+\\?", text, re.DOTALL)
    return [item for found in items if (item := found.strip().replace("\\,", ","))]


def listed(text: str) -> Names:
    """Return what tells whether an expression of a list matches a whole name, in any case. Raises re.error."""
    items = split(text)
    whole = re.compile("|".join(f"(?:{java_regex(item).pattern})" for item in items), re.IGNORECASE)
    return lambda name: bool(items) and whole.fullmatch(name) is not None
