"""A column's DEFAULT as PostgreSQL writes it in, the default that Debezium gives to its schema out.

What a function makes has a placeholder: no row says what it would have been.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from datetime import UTC, datetime

from pipeline.connect.schema import Schema

__all__ = ["default_of"]

_FUNCTION = re.compile(r"[(]?[A-Za-z0-9_.]+\(.*\)", re.DOTALL)
_LITERAL = re.compile(r"'([^']*(?:''[^']*)*)'")
_NOW = {"current_timestamp", "current_time", "current_date", "localtime", "localtimestamp"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def default_of(text: str | None, schema: Schema) -> str | int | bool | None:
    """Return a default; None where there is none, or none that Debezium can tell."""
    if text is None or schema.type == "bytes":
        return None
    made = bool(_FUNCTION.match(text)) or text.lower() in _NOW
    literal = "" if made else _literal(text)
    if literal is None:
        return None
    with suppress(ValueError):
        if schema.name == "io.debezium.data.Uuid":
            return str(uuid.UUID(int=0) if made else uuid.UUID(literal))
        if schema.name == "io.debezium.data.Json":
            return "{}" if made else literal
        if schema.type == "string":
            return literal
        if schema.type == "boolean":
            return literal.lower() == "true"
        if schema.name.startswith("io.debezium.time."):
            since = 0.0 if made else (datetime.fromisoformat(literal).replace(tzinfo=UTC) - _EPOCH).total_seconds()
            return int(since * (1_000_000 if schema.name.endswith("MicroTimestamp") else 1000))
        return 0 if made else int(literal)
    return None


def _literal(text: str) -> str | None:
    """Return what stands in quotes; without quotes all of it."""
    if "'" not in text:
        return None if text.startswith("NULL::") else text
    found = _LITERAL.search(text)
    return found[1].replace("''", "'") if found else None
