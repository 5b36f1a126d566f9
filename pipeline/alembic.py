"""What Alembic's autogenerate may look at: everything but the schema ``pipeline``, which has its own migrations.

In ``env.py``: ``context.configure(…, include_name=include_name)``, or ``include_object`` where that is the one in use.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["include_name", "include_object"]

_SCHEMA = "pipeline"


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Tell Alembic whether to reflect a schema, or what is in one."""
    return (name if type_ == "schema" else parent_names.get("schema_name")) != _SCHEMA


def include_object(object: object, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:  # noqa: A002 — Alembic's names
    """Tell Alembic whether to compare a table, or what belongs to one."""
    del name, type_, reflected, compare_to
    return getattr(getattr(object, "table", object), "schema", None) != _SCHEMA
