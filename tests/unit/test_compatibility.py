from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compatibility import breaks, explain, is_transitive


def record(*fields: Any, name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


OLD = record(field("a", "string"))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (record(field("a", "string"), field("b", "int")), ["field b", "no default"]),
        (record(field("a", "long")), ["field a", "was string and is long"]),
        (record(field("a", "string"), name="S"), ["was R and is S"]),
    ],
)
def test_a_break_names_field_and_rule_and_remedy(new: Any, words: list[str]) -> None:
    (found,) = breaks(new, OLD)
    assert all(word in str(found) for word in words)
    assert found.remedy


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        record(field("a", "string"), field("b", "int", default=0)),
        record(field("a", ["null", "string"])),
        record(field("a", "bytes")),
        record(),
        record(field("z", "string", aliases=["a"])),
        record(field("a", "string", doc="other words")),
    ],
)
def test_what_avro_resolves_is_no_break(new: Any) -> None:
    assert breaks(new, OLD) == []


@pytest.mark.parametrize(
    ("reader", "writer", "where"),
    [
        ({"type": "array", "items": "string"}, {"type": "array", "items": "long"}, "a[]"),
        ({"type": "map", "values": "string"}, {"type": "map", "values": "long"}, "a{}"),
        (record(field("x", "string"), name="N"), record(field("x", "long"), name="N"), "a.x"),
        ("string", ["null", "string"], "a"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, {"type": "enum", "name": "E", "symbols": ["A", "B"]}, "a"),
        (["null", record(field("x", "string"), name="N")], ["null", record(field("x", "long"), name="N")], "a.x"),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2},
            {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 3},
            "a",
        ),
        ({"type": "fixed", "name": "F", "size": 2}, {"type": "fixed", "name": "F", "size": 3}, "a"),
    ],
)
def test_breaks_inside_of_types_are_found_where_they_are(reader: Any, writer: Any, where: str) -> None:
    assert [found.field for found in breaks(record(field("a", reader)), record(field("a", writer)))] == [where]


def test_a_type_that_holds_itself_is_compared_once() -> None:
    tree = record(field("value", "string"), field("children", {"type": "array", "items": "Tree"}), name="Tree")
    other = record(field("value", "long"), field("children", {"type": "array", "items": "Tree"}), name="Tree")
    assert breaks(tree, tree) == []
    assert "value" in {found.field for found in breaks(tree, other)}


def test_modes_look_in_their_direction() -> None:
    more = record(field("a", "string"), field("b", "int"))
    assert explain("NONE", more, OLD) == []
    assert explain("FORWARD", more, OLD) == []  # old readers skip a field that they do not know
    assert "new code cannot read" in explain("BACKWARD_TRANSITIVE", more, OLD)[0]
    assert "running consumers cannot read" in explain("FULL", OLD, more)[0]
    assert [is_transitive(mode) for mode in ("FULL", "FULL_TRANSITIVE")] == [False, True]


_LEAVES = st.sampled_from(["string", "bytes", "int", "long", "float", "double", "boolean", "null"])
_TYPES: st.SearchStrategy[Any] = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"type": st.just("map"), "values": inner}),
        st.lists(_LEAVES, min_size=1, max_size=3, unique=True),
    ),
    max_leaves=3,
)
_RECORDS = st.dictionaries(st.sampled_from(["a", "b", "c"]), _TYPES, max_size=3).map(
    lambda fields: record(*(field(name, kind) for name, kind in fields.items()))
)


@given(reader=_RECORDS, writer=_RECORDS)
def test_where_nothing_breaks_what_was_written_can_be_read(reader: Any, writer: Any) -> None:
    if breaks(reader, writer):
        return
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(writer), _example(writer))
    stream.seek(0)
    fastavro.schemaless_reader(stream, fastavro.parse_schema(writer), fastavro.parse_schema(reader))


@given(schema=_RECORDS)
def test_a_schema_never_breaks_itself(schema: Any) -> None:
    assert breaks(schema, schema) == []


def _example(kind: Any) -> Any:
    if isinstance(kind, list):
        return _example(kind[-1])
    if isinstance(kind, dict):
        if kind["type"] == "record":
            return {one["name"]: _example(one["type"]) for one in kind["fields"]}
        return [_example(kind["items"])] if kind["type"] == "array" else {"k": _example(kind["values"])}
    values = {"string": "x", "bytes": b"x", "int": 1, "long": 1, "float": 1.0, "double": 1.0, "boolean": True}
    return values.get(kind)
