"""PostgreSQL's binary forms of times and numbers in, Java's text of them out: what the router's expressions call."""

from __future__ import annotations

import base64
import struct
from datetime import date, timedelta
from decimal import ROUND_DOWN, Context, Decimal

from pipeline.connect.expansion import quoted
from pipeline.connect.java import double_text, float_text

__all__ = ["FUNCTIONS"]

_FIRST = date(2000, 1, 1)  # PostgreSQL's epoch
_UNIX_DAYS = 10_957  # … since Unix's, in days
_UNIX_US = 946_684_800_000_000  # … and in microseconds
_CYCLE_DAYS = 146_097  # 400 years of the Gregorian calendar
_DAY_US = 86_400_000_000
_LATEST, _EARLIEST = 2**63 - 1, -(2**63)
_INFINITE_DAYS = {2**31 - 1: 2_146_033_979, -(2**31): -2_147_472_691}  # as Debezium writes infinity
_INFINITE_MS = {_LATEST: 9_223_372_036_825_200_000, _EARLIEST: -9_223_372_036_832_400_000}
_INFINITE_TEXT = {_LATEST: "+292278994-08-16T23:00:00Z", _EARLIEST: "-292275055-05-16T23:00:00Z"}
_EXACT = Context(prec=200_000)  # digits, more than any numeric has: Python's own context rounds to 28
_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
_PLAIN = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}  # as Debezium names them


def _uuid_text(data: bytes) -> str:
    return f"{data[:4].hex()}-{data[4:10].hex('-', 2)}-{data[10:].hex()}"


def _encoded(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def _number(text: str) -> str:
    """Return a number as JSON has it: what is none stands in quotes."""
    return f'"{text}"' if text[-1] in "Ny" else text


def _real(data: bytes) -> str:
    return float_text(struct.unpack(">f", data)[0])


def _double(data: bytes) -> str:
    return double_text(struct.unpack(">d", data)[0])


def _decimal(data: bytes) -> Decimal:
    count, weight, sign, scale = struct.unpack_from(">HhHH", data)
    if sign in _SPECIAL:
        return Decimal(_SPECIAL[sign])
    groups = struct.unpack_from(f">{count}H", data, 8)
    digits = tuple(map(int, "".join(f"{group:04}" for group in groups))) or (0,)
    whole = Decimal((int(sign == 0x4000), digits, (weight + 1 - count) * 4))
    return whole.quantize(Decimal((0, (1,), -scale)), ROUND_DOWN, _EXACT)


def _plain(value: Decimal) -> str:
    return format(value, "f") if value.is_finite() else _PLAIN[str(value)]


def _unscaled(value: Decimal) -> bytes:
    """Return Java's BigInteger, as bytes."""
    number = int(value.scaleb(-int(value.as_tuple().exponent), _EXACT))
    return number.to_bytes((number if number >= 0 else ~number).bit_length() // 8 + 1, "big", signed=True)


def _exact(data: bytes) -> str | None:
    """Return a number with its scale; what is none has no such form."""
    return str(value) if (value := _decimal(data)).is_finite() else None


def _exact_json(data: bytes) -> bytes:
    return quoted(base64.b64encode(_unscaled(value))) if (value := _decimal(data)).is_finite() else b"null"


def _scaled(data: bytes) -> bytes:
    """Return JSON of a number that has its own scale: without zeros at the end."""
    value = _decimal(data)
    if not value.is_finite():
        return b"null"
    value = value.normalize(_EXACT)
    if int(value.as_tuple().exponent) > 0:
        value = value.quantize(Decimal(1), context=_EXACT)
    text = base64.b64encode(_unscaled(value)).decode()
    return f'{{"scale":{-int(value.as_tuple().exponent)},"value":"{text}"}}'.encode()


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _days(data: bytes) -> int:
    """Return a date as days since 1970."""
    since = _signed(data)
    return _INFINITE_DAYS.get(since, since + _UNIX_DAYS)


def _micros(data: bytes) -> int:
    """Return a timestamp as microseconds since 1970, infinity as the last that there are."""
    since = _signed(data)
    return since if since == _EARLIEST else min(since + _UNIX_US, _LATEST)


def _millis(data: bytes) -> int:
    since = _signed(data)
    return _INFINITE_MS.get(since, (since + _UNIX_US) // 1000)


def _nanos(data: bytes) -> int:
    """Return a timestamp as nanoseconds since 1970; what lies beyond 64 bits is the last that they hold."""
    return max(_EARLIEST, min(_micros(data) * 1000, _LATEST))


def _iso_date(data: bytes) -> str:
    return f"{_day_text(_days(data) - _UNIX_DAYS)}Z"


def _iso_time(data: bytes) -> str:
    return f"{_clock(_signed(data) % _DAY_US)}Z"


def _iso_timestamp(data: bytes) -> str:
    since = _signed(data)
    if since in _INFINITE_TEXT:
        return _INFINITE_TEXT[since]
    days, of_day = divmod(since, _DAY_US)
    return f"{_day_text(days)}T{_clock(of_day)}Z"


def _zoned(data: bytes, precision: int) -> str:
    since = _signed(data)
    if since in _INFINITE_TEXT:
        return "infinity" if since > 0 else "-infinity"
    days, of_day = divmod(since, _DAY_US)
    return f"{_day_text(days)}T{_clock(of_day, precision)}Z"


def _day_text(days: int) -> str:
    """Return a day since 2000 as Java writes it, in any year."""
    cycles, rest = divmod(days, _CYCLE_DAYS)
    at = _FIRST + timedelta(days=rest)
    year = at.year + 400 * cycles
    sign = "-" if year < 0 else "+" if year > 9999 else ""
    return f"{sign}{abs(year):04}-{at:%m-%d}"


def _clock(of_day: int, digits: int | None = None) -> str:
    """Return microseconds of a day with so many digits of the second; None: with those that are no zeros at the end."""
    seconds, fraction = divmod(of_day, 1_000_000)
    text = f"{fraction:06}".rstrip("0") if digits is None else f"{fraction:06}"[:digits]
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{text and '.'}{text}"


FUNCTIONS: dict[str, object] = {
    "base64": base64.b64encode,
    "base64_url": base64.urlsafe_b64encode,
    "days": _days,
    "decimal": _decimal,
    "double": _double,
    "double_text": double_text,
    "encoded": _encoded,
    "exact": _exact,
    "exact_json": _exact_json,
    "iso_date": _iso_date,
    "iso_time": _iso_time,
    "iso_timestamp": _iso_timestamp,
    "micros": _micros,
    "millis": _millis,
    "nanos": _nanos,
    "number": _number,
    "plain": _plain,
    "quoted": quoted,
    "real": _real,
    "scaled": _scaled,
    "uuid_text": _uuid_text,
    "zoned": _zoned,
}
"""By the names that expressions have for them."""
