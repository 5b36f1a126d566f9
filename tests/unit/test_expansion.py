"""Expanded JSON: where no run of Debezium can say what is right, and numbers as Java writes them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.connect.expansion import Expansion
from pipeline.connect.java import double_text, float_text
from pipeline.connect.schema import schema_text


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ('{"a": [{"x": {"p": 1}}, {"x": {"q": 2}}]}', "struct"),
        ('{"a": [{"x": 1}, {"x": 12345678901}, {"x": 1.5}]}', "struct"),
        ("[1, 2]", "array"),
        ("[]", "array"),
        ('{"a": 123456789012345678901234567890}', "struct"),
        ('{"a": [{"x": 1}, {"x": "t"}]}', ""),
        ('{"a": [[1], ["t"]]}', ""),
    ],
)
def test_what_ends_debeziums_task_is_published_whole(document: str, kind: str) -> None:
    schema, made = Expansion().typed("payload", document.encode())
    assert (schema.type if schema else "") == kind
    expected = json.loads(document) if kind else document
    assert json.loads(made) == expected
    assert json.loads(Expansion().encode(document.encode())) == json.loads(document)


def test_a_schema_names_what_it_describes() -> None:
    schema, _ = Expansion().typed("payload", b'{"a": {"b": [{"c": 1.5}, {"d": true}]}, "e": [[{"f": "t"}]]}')
    assert schema is not None
    text = schema_text(schema)
    assert [name in text for name in ('"payload"', '"payload.a"', '"payload.a.b"')] == [True] * 3
    assert '"payload.e"' not in text  # Debezium has no names within arrays of arrays


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_as_java_writes_it_is_that_number(value: float) -> None:
    text = double_text(value)
    assert float(text) == value
    assert ("E" in text) is (value != 0 and not 1e-3 <= abs(value) < 1e7)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_of_single_precision_has_the_fewest_digits(value: float) -> None:
    assert len(float_text(value).strip("-0.").split("E")[0]) <= 10
    assert math.isclose(float(float_text(value)), value, rel_tol=1e-7, abs_tol=1e-45)
