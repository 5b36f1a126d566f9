"""PostgreSQL's binary forms of times and numbers in, Java's text of them out: what the router's expressions call."""

from __future__ import annotations

import base64
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from pipeline.connect.expansion import quoted
from pipeline.connect.java import double_text, float_text

__all__ = ["FUNCTIONS"]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
_PLAIN = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}  # as Debezium names them
_LATEST, _EARLIEST = 2**63 - 1, -(2**63)


def _uuid_text(data: bytes) -> str:
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


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
    count, weight, sign, scale = struct.unpack_from(">hhHH", data)
    if sign in _SPECIAL:
        return Decimal(_SPECIAL[sign])
    digits = struct.unpack_from(f">{count}H", data, 8)
    whole = int("".join(f"{digit:04}" for digit in digits) or "0")
    exponent = (weight + 1 - count) * 4 + scale
    unscaled = whole * 10**exponent if exponent >= 0 else whole // 10**-exponent
    return Decimal((int(sign == 0x4000), tuple(map(int, str(unscaled))), -scale))


def _plain(value: Decimal) -> str:
    return format(value, "f") if value.is_finite() else _PLAIN[str(value)]


def _unscaled(value: Decimal) -> bytes:
    """Return Java's BigInteger, as bytes."""
    sign, digits, _ = value.as_tuple()
    number = int("".join(map(str, digits))) * (-1 if sign else 1)
    return number.to_bytes((number if number >= 0 else ~number).bit_length() // 8 + 1, "big", signed=True)


def _scaled(data: bytes) -> bytes:
    """Return JSON of a number that has its own scale: without zeros at the end."""
    value = _decimal(data)
    sign, digits, exponent = value.normalize().as_tuple() if value else (0, (0,), 0)
    if not isinstance(exponent, int):
        return b"null"
    if exponent > 0:
        digits, exponent = (*digits, *[0] * exponent), 0
    text = base64.b64encode(_unscaled(Decimal((sign, digits, exponent)))).decode()
    return f'{{"scale":{-exponent},"value":"{text}"}}'.encode()


def _iso_date(data: bytes) -> str:
    return f"{date(2000, 1, 1) + timedelta(days=int.from_bytes(data, 'big', signed=True))}Z"


def _iso_time(data: bytes) -> str:
    return f"{_clock(_EPOCH + timedelta(microseconds=int.from_bytes(data, 'big')))}Z"


def _iso_timestamp(data: bytes) -> str:
    at = _EPOCH + timedelta(microseconds=int.from_bytes(data, "big", signed=True))
    return f"{at.date()}T{_clock(at)}Z"


def _zoned(data: bytes, precision: int) -> str:
    since = int.from_bytes(data, "big", signed=True)
    if since in {_LATEST, _EARLIEST}:
        return "infinity" if since > 0 else "-infinity"
    at = _EPOCH + timedelta(microseconds=since)
    if not precision:
        return f"{at.date()}T{_clock(at)}Z"
    return f"{at.date()}T{at:%H:%M:%S}.{at.microsecond:06}"[: 20 + precision] + "Z"


def _clock(at: datetime) -> str:
    """Return the time as Java writes it: no zeros at the end of the fraction."""
    return f"{at:%H:%M:%S.%f}".rstrip("0").rstrip(".") if at.microsecond else f"{at:%H:%M:%S}"


FUNCTIONS: dict[str, object] = {
    "base64": base64.b64encode,
    "base64_url": base64.urlsafe_b64encode,
    "decimal": _decimal,
    "double": _double,
    "double_text": double_text,
    "encoded": _encoded,
    "iso_date": _iso_date,
    "iso_time": _iso_time,
    "iso_timestamp": _iso_timestamp,
    "number": _number,
    "plain": _plain,
    "quoted": quoted,
    "real": _real,
    "scaled": _scaled,
    "unscaled": _unscaled,
    "uuid_text": _uuid_text,
    "zoned": _zoned,
}
"""By the names that expressions have for them."""
