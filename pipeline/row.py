"""The values of outbox rows, as PostgreSQL takes them: columns, placeholders, keys, headers, data for COPY."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import count
from typing import Any
from uuid import UUID

from pipeline.errors import ConfigError, SchemaError

__all__ = ["COLUMNS", "copy_data", "headers_text", "key_text", "numbered", "placeholders", "quoted", "storable"]

COLUMNS = ("id", "aggregatetype", "aggregateid", "type", "payload", "topic", "headers", "traceparent")

_PIECE = 1 << 18  # bytes


def placeholders(columns: Sequence[str], extra: int, payload: str) -> str:
    """Return one row of ``%s`` in parentheses, for columns of COLUMNS and ``extra`` further ones.

    The casts say what a parameter is, so that a codec that the application has set on its connection (asyncpg's for
    jsonb, say) is not applied to what is encoded already. A uuid or jsonb goes into a text column as well.
    """
    json_value = "CAST(CAST(%s AS text) AS jsonb)"
    casts = {"id": "CAST(%s AS uuid)", "headers": json_value, "payload": json_value if payload == "json" else "%s"}
    return f"({', '.join([*(casts.get(name, '%s') for name in columns), *['%s'] * extra])})"


def numbered(sql: str) -> str:
    """Return SQL with ``$1``, ``$2`` … in place of ``%s``, and single percent signs."""
    numbers = count(1)
    return re.sub("%[s%]", lambda found: f"${next(numbers)}" if found[0] == "%s" else "%", sql)


def key_text(value: object, name: str) -> str:
    """Return a key as text. Kafka compares bytes, so one value must always give the same text. Raises SchemaError."""
    if type(value) is str and value.isascii() and value and "\0" not in value:
        return value
    value = value.value if isinstance(value, Enum) else value
    if not isinstance(value, str | int | UUID) or isinstance(value, bool):
        raise SchemaError(f"{name}: its key field holds a {type(value).__name__}", remedy="str, int or UUID")
    text = str(value)
    if not text:
        raise SchemaError(f"{name}: its key field is empty", remedy="give it a value: order is kept per key")
    if not storable(text):
        raise SchemaError(
            f"{name}: its key holds a NUL or a lone surrogate, which PostgreSQL's text cannot", remedy="leave it out"
        )
    return text


def headers_text(headers: Mapping[str, str]) -> str:
    """Return headers as JSON. Raises ConfigError naming the one that is not text, never its value."""
    if not isinstance(headers, Mapping):
        raise ConfigError(f"headers: a {type(headers).__name__}", remedy='a dict: headers={"name": "text"}')
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or not storable(name) or not storable(value):
            raise ConfigError(
                f"header {name!r}: names and values are texts without NUL and lone surrogates",
                remedy="str(value), or json.dumps(value)",
            )
    return json.dumps(dict(headers), ensure_ascii=False)


def copy_data(rows: Sequence[tuple[Any, ...]]) -> Iterator[bytes]:
    """Yield rows of COLUMNS in COPY's binary format, in pieces of some hundred KiB."""
    pieces = [_COPY_HEAD]
    size = 0
    fields: dict[str, bytes] = {}  # aggregates, types and topics are few

    def few(text: str) -> bytes:
        found = fields[text] = _field(text.encode())
        return found

    for event_id, stream, key, name, payload, topic, headers, traceparent in rows:
        key_bytes = key.encode()
        pieces += (
            _ROW_AND_ID, event_id.bytes, fields.get(stream) or few(stream),
            _length(len(key_bytes)), key_bytes, fields.get(name) or few(name),
            _length(len(payload)), payload, fields.get(topic) or few(topic),
            _NULL if headers is None else _field(b"\1" + headers.encode()),  # jsonb's version
            _NULL if traceparent is None else _field(traceparent.encode()),
        )  # fmt: skip
        size += len(payload) + 200
        if size > _PIECE:
            yield b"".join(pieces)
            pieces, size = [], 0
    pieces.append(_COPY_END)
    yield b"".join(pieces)


_length = struct.Struct("!i").pack
_NULL = _length(-1)
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_ROW_AND_ID = struct.pack("!hi", len(COLUMNS), 16)


def _field(value: bytes) -> bytes:
    return _length(len(value)) + value


def quoted(identifier: str) -> str:
    """Return an SQL identifier in quotes."""
    return '"' + identifier.replace('"', '""').replace("%", "%%") + '"'


def storable(text: str) -> bool:
    """Tell whether PostgreSQL's text can hold it: no NUL, no half of a surrogate pair."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))
