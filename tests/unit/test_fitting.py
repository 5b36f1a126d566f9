"""JSON texts that fit an Avro schema, and those that do not."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PoisonError
from pipeline.fitting import Fitting

ITEM = {"type": "record", "name": "shop.Item", "fields": [{"name": "sku", "type": "string"}]}
PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}
SCHEMA = {
    "type": "record",
    "name": "shop.Order",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "n", "type": "int"},
        {"name": "rate", "type": "double", "default": 0.5},
        {"name": "price", "type": [PRICE], "default": "\x7b"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 0},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}], "default": None},
        {"name": "item", "type": ["null", ITEM], "default": None},
        {"name": "items", "type": {"type": "array", "items": "shop.Item"}, "default": []},
        {"name": "raw", "type": "bytes", "default": ""},
    ],
}  # fmt: skip
ORDER = "0190a1b2-0000-7000-8000-000000000001"
FITTING = Fitting(json.dumps(SCHEMA))


def decoded(value: dict[str, object]) -> Any:
    body = FITTING.body(json.dumps(value).encode())
    return fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(SCHEMA), None)


def test_json_becomes_avro_by_the_schema() -> None:
    found = decoded(
        {"items": [{"sku": "a"}], "id": ORDER, "n": 3, "rate": 2, "price": 12.34, "at": "2026-03-01T09:30:00Z",
         "day": "2026-03-01", "item": {"sku": "ü"}, "raw": "AAE="}
    )  # fmt: skip
    assert found == {
        "id": UUID(ORDER), "n": 3, "rate": 2.0, "price": Decimal("12.34"),
        "at": datetime(2026, 3, 1, 9, 30, tzinfo=UTC), "day": date(2026, 3, 1), "item": {"sku": "ü"},
        "items": [{"sku": "a"}], "raw": b"\0\1",
    }  # fmt: skip
    left_out = decoded({"id": ORDER, "n": 1})
    assert (left_out["rate"], left_out["price"], left_out["raw"]) == (0.5, Decimal("1.23"), b"")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": "3"}, "payload.n: is not int"),
        ({"n": True}, "payload.n: is not int"),
        ({"n": 2**31}, "payload.n: is not int"),
        ({"n": 1.5}, "payload.n: is not int"),
        ({"id": "secret"}, "payload.id: is not uuid"),
        ({"at": "2026-03-01T09:30:00"}, "payload.at: is not timestamp-micros"),
        ({"items": [{"sku": 1}]}, "payload.items[0].sku: is not string"),
        ({"items": [{}]}, "payload.items[0].sku: is missing"),
        ({"item": {"sku": 1}}, "payload.item: fits no branch"),
        ({"secret": 1}, "has fields that its schema has not"),
        ({"price": 1.234}, "does not fit"),
        ({"raw": "?"}, "payload.raw: is not bytes"),
    ],
)
def test_what_does_not_fit_is_told_by_its_place_and_never_its_value(changes: dict[str, object], told: str) -> None:
    with pytest.raises(PoisonError) as raised:
        decoded({"id": ORDER, "n": 1, **changes})
    assert told in raised.value.what
    assert "secret" not in raised.value.what


@pytest.mark.parametrize("number", ["1e999999999999999999", "-1e5000", "1e-999999999999999999", "NaN"])
@pytest.mark.parametrize("field", ["n", "price"])
def test_a_number_whose_digits_would_fill_the_memory_does_not_fit(field: str, number: str) -> None:
    others = {"id": ORDER, "n": 1}
    others.pop(field, None)
    text = json.dumps(others).removesuffix("}") + f', "{field}": {number}}}'
    with pytest.raises(PoisonError, match=f"payload.{field}: "):
        FITTING.body(text.encode())


@given(st.binary(max_size=40) | st.recursive(st.none() | st.text() | st.integers() | st.floats(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "n", "price", "item", "items", "sku"]), inner)
)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_comes_only_our_error_is_raised(value: bytes) -> None:
    with contextlib.suppress(PoisonError):
        FITTING.body(value)
