"""A column's type and binary form in, what Debezium and Kafka Connect make of it out.

Each entry is Python source, as the router is generated: ``v`` stands for the bytes, which are not NULL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.connect.schema import Schema

__all__ = ["ColumnType", "Modes", "column_type"]

_UNIX_US = 946_684_800_000_000  # PostgreSQL's epoch, 2000-01-01, in microseconds of Unix time


@dataclass(frozen=True, slots=True)
class Modes:
    """``binary.handling.mode``, ``time.precision.mode`` and ``decimal.handling.mode``."""

    binary: str = "bytes"
    time: str = "adaptive"
    decimal: str = "precise"


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
_SIGNED = "int.from_bytes(v, 'big', signed=True)"
_INTEGER = f"str({_SIGNED})"
_SINCE_1970_US = f"({_SIGNED} + {_UNIX_US})"
_ENCODINGS = {"base64": "base64(v)", "base64-url-safe": "base64_url(v)", "hex": "v.hex()"}

_TYPES: dict[int, ColumnType] = {
    # no type of PostgreSQL: what is always NULL, and can stand anywhere
    0: ColumnType("null", Schema("bytes"), text="v", string="v", json="v", raw="v", payload="v", number="0"),
    16: _numeric("boolean", "boolean", "('true' if v == b'\\1' else 'false')"),
    17: ColumnType("bytea", Schema("bytes"), json="quoted(base64(v))", raw="v", payload="v"),
    18: _textual('"char"', "v"),
    19: _textual("name", "v"),
    20: _numeric("bigint", "int64", _INTEGER),
    21: _numeric("smallint", "int16", _INTEGER),
    23: _numeric("integer", "int32", _INTEGER, number=_SIGNED),
    25: _textual("text", "v"),
    26: _numeric("oid", "int64", "str(int.from_bytes(v, 'big'))"),
    114: _textual("json", "v", _JSON),
    700: ColumnType("real", Schema("float32"), text="real(v)", json="number(real(v))"),
    701: ColumnType("double precision", Schema("float64"), text="double(v)", json="number(double(v))"),
    1042: _textual("character", "v"),
    1043: _textual("character varying", "v"),
    2950: _textual("uuid", "uuid_text(v)", "io.debezium.data.Uuid", payload=False),
    3802: _textual("jsonb", "v[1:]", _JSON),  # behind the version byte
}
_ISO = {1082: ("IsoDate", "iso_date"), 1083: ("IsoTime", "iso_time"), 1114: ("IsoTimestamp", "iso_timestamp")}
_TEMPORAL = {1082: "date", 1083: "time", 1114: "timestamp", 1184: "timestamp with time zone"}


def column_type(oid: int, modifier: int, modes: Modes = Modes()) -> ColumnType:
    """Return what is known of a type; for one that is not known, an entry with which nothing can be done."""
    if oid == 17 and modes.binary != "bytes":
        return _textual("bytea", _ENCODINGS[modes.binary], payload=False)
    if oid in _TEMPORAL:
        return _temporal(oid, 6 if modifier < 0 else modifier, modes.time)
    if oid == 1700:
        return _decimal(modifier, modes.decimal)
    return _TYPES.get(oid) or ColumnType(f"type {oid}")


def _temporal(oid: int, precision: int, mode: str) -> ColumnType:
    """Return a type of times, which has a form for each precision of ``mode``."""
    name = f"{_TEMPORAL[oid]}({precision})" if oid == 1114 and precision <= 3 else _TEMPORAL[oid]
    if oid == 1184:
        return _textual(name, f"zoned(v, {precision})", "io.debezium.time.ZonedTimestamp", payload=False)
    if mode == "isostring":
        logical, function = _ISO[oid]
        return _textual(name, f"{function}(v)", f"io.debezium.time.{logical}", payload=False)
    connect = mode == "connect"
    unit = {"connect": "", "microseconds": "Micro", "nanoseconds": "Nano"}.get(mode, "Micro" if precision > 3 else "")
    if oid == 1083 and mode == "adaptive_time_microseconds":
        unit = "Micro"
    if oid == 1082:
        unit, kind, value = "", "int32", "days(v)"
    elif oid == 1083:
        value = {"": f"{_SIGNED} // 1000", "Micro": _SIGNED, "Nano": f"{_SIGNED} * 1000"}[unit]
        kind = "int64" if unit else "int32"
    else:
        value, kind = {"": "millis(v)", "Micro": "micros(v)", "Nano": "nanos(v)"}[unit], "int64"
    logical = {1082: "Date", 1083: "Time", 1114: "Timestamp"}[oid]
    package = "org.apache.kafka.connect.data" if connect else "io.debezium.time"
    made = _numeric(name, kind, f"str({value})", f"{package}.{unit}{logical}")
    if connect:  # Java's Date, which StringConverter writes in words
        return replace(made, text="")
    return replace(made, timestamp_ms=f"{_SINCE_1970_US} // 1000") if oid == 1114 else made


def _decimal(modifier: int, mode: str) -> ColumnType:
    """Return numeric: with a scale of its own where the type has one, else with each row's."""
    if mode == "string":
        return _textual("numeric", "plain(decimal(v))", payload=False)
    if mode == "double":
        text = "double_text(float(decimal(v)))"
        return ColumnType("numeric", Schema("float64"), text=text, json=f"number({text})")
    if modifier < 0:
        parts = (("scale", Schema("int32", optional=False)), ("value", Schema("bytes", optional=False)))
        schema = Schema("struct", name="io.debezium.data.VariableScaleDecimal", version=1, fields=parts)
        return ColumnType("numeric without a scale", replace(schema, doc="Variable scaled decimal"), json="scaled(v)")
    precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
    parameters = (("scale", str(scale)), ("connect.decimal.precision", str(precision)))
    schema = Schema("bytes", name="org.apache.kafka.connect.data.Decimal", version=1, parameters=parameters)
    return ColumnType("numeric", schema, text="exact(v)", json="exact_json(v)")
