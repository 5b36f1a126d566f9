"""A column's type and binary form in, what Debezium and Connect's String converters make of it out.

Each entry is Python source, as the router is generated: ``v`` stands for the bytes, which are not NULL.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ColumnType", "column_type"]

_UNIX_US = 946_684_800_000_000  # PostgreSQL's epoch, 2000-01-01, in microseconds of Unix time


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What can be done with a type. Each is an expression of ``v``; empty: not possible, or not honoured yet.

    ``text``: as StringConverter writes it. ``string``: the same where Connect's type is STRING, as the route needs.
    ``timestamp_ms``: as the router's timestamp. ``payload``: as the bytes of the value. ``number``: as a partition.
    """

    name: str
    text: str = ""
    string: str = ""
    timestamp_ms: str = ""
    payload: str = ""
    number: str = ""


_TEXTUAL = {"text": "v", "string": "v", "payload": "v"}
_JSONB = {"text": "v[1:]", "string": "v[1:]", "payload": "v[1:]"}  # behind the version byte
_INTEGER = "str(int.from_bytes(v, 'big', signed=True))"
_SINCE_1970_US = f"(int.from_bytes(v, 'big', signed=True) + {_UNIX_US})"

_TYPES: dict[int, ColumnType] = {
    16: ColumnType("boolean", text="('true' if v == b'\\1' else 'false')"),
    17: ColumnType("bytea", payload="v"),
    18: ColumnType('"char"', **_TEXTUAL),
    19: ColumnType("name", **_TEXTUAL),
    20: ColumnType("bigint", text=_INTEGER),
    21: ColumnType("smallint", text=_INTEGER),
    23: ColumnType("integer", text=_INTEGER, number="int.from_bytes(v, 'big', signed=True)"),
    25: ColumnType("text", **_TEXTUAL),
    114: ColumnType("json", **_TEXTUAL),
    1042: ColumnType("character", **_TEXTUAL),
    1043: ColumnType("character varying", **_TEXTUAL),
    1114: ColumnType("timestamp", text=f"str({_SINCE_1970_US})", timestamp_ms=f"{_SINCE_1970_US} // 1000"),
    2950: ColumnType("uuid", text="uuid_text(v)", string="uuid_text(v)"),
    3802: ColumnType("jsonb", **_JSONB),
}
_MILLIS = ColumnType("timestamp(3)", text=f"str({_SINCE_1970_US} // 1000)", timestamp_ms=f"{_SINCE_1970_US} // 1000")


def column_type(oid: int, modifier: int) -> ColumnType:
    """Return what is known of a type; for one that is not known, an entry with which nothing can be done."""
    if oid == 1114 and 0 <= modifier <= 3:  # Debezium: adaptive precision
        return _MILLIS
    return _TYPES.get(oid) or ColumnType(f"type {oid}")
