"""A column's DEFAULT as PostgreSQL writes it in, the default that Debezium gives to its schema out.

What a function makes has a placeholder: no row says what it would have been.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress

from pipeline.connect.schema import Schema

__all__ = ["default_of"]

_FUNCTION = re.compile(r"[(]?[A-Za-z0-9_.]+\(.*\)", re.DOTALL)
_LITERAL = re.compile(r"'([^']*(?:''[^']*)*)'")
_NOW = {"current_timestamp", "current_time", "current_date", "localtime", "localtimestamp"}
_ZERO = {
    "IsoDate": "1970-01-01Z",
    "IsoTime": "00:00:00Z",
    "IsoTimestamp": "1970-01-01T00:00:00Z",
    "ZonedTimestamp": "1970-01-01T00:00:00.000000Z",
}


def default_of(text: str | None, schema: Schema) -> str | float | bool | None:
    """Return a default; None where there is none, or none that Debezium can tell."""
    if text is None or schema.type in {"bytes", "struct"}:
        return None
    made = bool(_FUNCTION.match(text)) or text.lower() in _NOW
    literal = "" if made else _literal(text)
    if literal is None:
        return None
    with suppress(ValueError):
        if ".time." in schema.name or ".connect.data." in schema.name:
            return _ZERO.get(schema.name.rpartition(".")[2], 0) if made else None
        if schema.name == "io.debezium.data.Uuid":
            return str(uuid.UUID(int=0) if made else uuid.UUID(literal))
        if schema.name == "io.debezium.data.Json":
            return "{}" if made else literal
        if schema.type == "string":
            return literal
        if schema.type == "boolean":
            return literal.lower() == "true"
        if schema.type.startswith("float"):
            return float(literal or 0)
        return int(literal or 0)
    return None


def _literal(text: str) -> str | None:
    """Return what stands in quotes; without quotes all of it."""
    if "'" not in text:
        return None if text.startswith("NULL::") else text
    found = _LITERAL.search(text)
    return found[1].replace("''", "'") if found else None
