"""numeric in PostgreSQL's binary form, as Java has it: to the last digit, however many there are."""

from __future__ import annotations

import base64
import json
import struct
from decimal import Context, Decimal
from typing import cast

import pytest

from pipeline.connect import binary

WIDE = Context(prec=200_000)


def sent(text: str) -> bytes:
    """What numeric_send makes of a number."""
    sign, digits = (0x4000, text[1:]) if text[0] == "-" else (0, text)
    whole, _, fraction = digits.partition(".")
    scale = len(fraction)
    whole = whole.lstrip("0")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[at : at + 4]) for at in range(0, len(whole + fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and not groups[0]:
        groups, weight = groups[1:], weight - 1
    while groups and not groups[-1]:
        groups = groups[:-1]
    if not groups:
        sign, weight = 0, 0
    return struct.pack(">HhHH", len(groups), weight, sign, scale) + b"".join(struct.pack(">H", one) for one in groups)


@pytest.mark.parametrize(
    "text",
    [
        "0", "0.00", "1", "-1.50", "123.4500", "10000", "0.000012", "99999999999999999999.9999",
        "1234567890123456789012345678901234567891", "-0.1234567890123456789012345678901234567891",
        "1" * 5_000,
    ],
    ids=lambda text: f"{text[:12]}, {len(text)} characters",
)  # fmt: skip
def test_no_digit_is_lost(text: str) -> None:
    data = sent(text)
    functions = {name: cast("object", one) for name, one in binary.FUNCTIONS.items()}
    plain = functions["plain"](functions["decimal"](data))  # type: ignore[operator]
    assert plain == text
    wanted = Decimal(text).normalize(WIDE)
    told = json.loads(functions["scaled"](data))  # type: ignore[operator]
    number = int.from_bytes(base64.b64decode(told["value"]), "big", signed=True)
    assert Decimal(number).scaleb(-told["scale"], WIDE) == wanted
    assert told["scale"] == max(0, -int(wanted.as_tuple().exponent)) if wanted else told["scale"] == 0
    exact = base64.b64decode(json.loads(functions["exact_json"](data)))  # type: ignore[operator]
    scale = len(text.partition(".")[2])
    assert Decimal(int.from_bytes(exact, "big", signed=True)).scaleb(-scale, WIDE) == Decimal(text)


def test_the_longest_number_that_postgresql_has_is_told_whole() -> None:
    text = "-" + "12" * 65_536 + "." + "34" * 8_191
    plain, decimal = binary.FUNCTIONS["plain"], binary.FUNCTIONS["decimal"]
    assert plain(decimal(sent(text))) == text  # type: ignore[operator]
