"""A column's type and binary form in, what Debezium and Kafka Connect make of it out.

Each entry is Python source, as the router is generated: ``v`` stands for the bytes, which are not NULL.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.connect.schema import Schema

__all__ = ["ColumnType", "column_type"]

_UNIX_US = 946_684_800_000_000  # PostgreSQL's epoch, 2000-01-01, in microseconds of Unix time


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What can be done with a type. Each is an expression of ``v``; empty: not possible, or not honoured.

    ``schema``: Connect's. ``text``: Java's toString, as StringConverter writes it. ``string``: the same where Connect's
    type is STRING, as the route needs. ``json``: as JsonConverter writes it. ``raw``: the bytes, where
    Connect's type is BYTES. ``payload``: as the bytes of the value. ``timestamp_ms``: as the router's timestamp.
    ``number``: where Connect's type is INT32, as a partition or a version.
    """

    name: str
    schema: Schema | None = None
    text: str = ""
    string: str = ""
    json: str = ""
    raw: str = ""
    payload: str = ""
    timestamp_ms: str = ""
    number: str = ""


def _textual(name: str, text: str, logical: str = "", *, payload: bool = True) -> ColumnType:
    schema = Schema("string", name=logical, version=1 if logical else None)
    return ColumnType(name, schema, text=text, string=text, json=f"quoted({text})", payload=text if payload else "")


def _numeric(name: str, kind: str, text: str, logical: str = "", **more: str) -> ColumnType:
    schema = Schema(kind, name=logical, version=1 if logical else None)
    return ColumnType(name, schema, text=text, json=text, **more)


_JSON = "io.debezium.data.Json"
_INTEGER = "str(int.from_bytes(v, 'big', signed=True))"
_SINCE_1970_US = f"(int.from_bytes(v, 'big', signed=True) + {_UNIX_US})"

_TYPES: dict[int, ColumnType] = {
    # no type of PostgreSQL: what is always NULL, and can stand anywhere
    0: ColumnType("null", Schema("bytes"), text="v", string="v", json="v", raw="v", payload="v", number="0"),
    16: _numeric("boolean", "boolean", "('true' if v == b'\\1' else 'false')"),
    17: ColumnType("bytea", Schema("bytes"), json="quoted(base64(v))", raw="v", payload="v"),
    18: _textual('"char"', "v"),
    19: _textual("name", "v"),
    20: _numeric("bigint", "int64", _INTEGER),
    21: _numeric("smallint", "int16", _INTEGER),
    23: _numeric("integer", "int32", _INTEGER, number="int.from_bytes(v, 'big', signed=True)"),
    25: _textual("text", "v"),
    114: _textual("json", "v", _JSON),
    1042: _textual("character", "v"),
    1043: _textual("character varying", "v"),
    1114: _numeric(
        "timestamp",
        "int64",
        f"str({_SINCE_1970_US})",
        "io.debezium.time.MicroTimestamp",
        timestamp_ms=f"{_SINCE_1970_US} // 1000",
    ),
    2950: _textual("uuid", "uuid_text(v)", "io.debezium.data.Uuid", payload=False),
    3802: _textual("jsonb", "v[1:]", _JSON),  # behind the version byte
}
_MILLIS = _numeric(
    "timestamp(3)",
    "int64",
    f"str({_SINCE_1970_US} // 1000)",
    "io.debezium.time.Timestamp",
    timestamp_ms=f"{_SINCE_1970_US} // 1000",
)


def column_type(oid: int, modifier: int) -> ColumnType:
    """Return what is known of a type; for one that is not known, an entry with which nothing can be done."""
    if oid == 1114 and 0 <= modifier <= 3:  # Debezium: adaptive precision
        return _MILLIS
    return _TYPES.get(oid) or ColumnType(f"type {oid}")
