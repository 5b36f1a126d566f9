"""Models as Avro schemas: what a type becomes, what is refused, and that the text never moves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NewType, Optional, TypeVar

import fastavro
import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NaiveDatetime, RootModel, SecretStr

from pipeline import Event, Money, Personal
from pipeline.avro import PERSONAL, recursive, schema_of
from pipeline.errors import ConfigError

T = TypeVar("T")
OrderId = NewType("OrderId", str)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Box(BaseModel, Generic[T]):
    inside: T


class Tags(RootModel[list[str]]):
    pass


class Node(BaseModel):
    name: str
    next: Optional[Node] = None  # noqa: UP045 — the old form must work too


class Left(BaseModel):
    x: int


class Right(BaseModel):
    x: int


def event(**annotations: Any) -> type[Event]:
    """An event with a key and these fields; a tuple is (annotation, default)."""
    body: dict[str, Any] = {"__annotations__": {"k": str}, "__module__": __name__}
    for name, value in annotations.items():
        annotation, *default = value if isinstance(value, tuple) else (value,)
        body["__annotations__"][name] = annotation
        body.update({name: default[0]} if default else {})
    return type("Made", (Event,), body, aggregate="order", key="k")


def fields(model: type[Event]) -> dict[str, Any]:
    return {field["name"]: field for field in schema_of(model).parsed()["fields"]}


@pytest.mark.parametrize(
    ("annotation", "avro"),
    [
        (str, "string"),
        (int, "long"),
        (bytes, "bytes"),
        (Money, {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}),
        (Money | None, ["null", {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}]),
        (
            Annotated[Decimal | None, Field(max_digits=5, decimal_places=0)],
            ["null", {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 0}],
        ),
        (AwareDatetime, {"type": "long", "logicalType": "timestamp-micros"}),
        (Literal["a", "b"], "string"),
        (Literal[1, 2], "long"),
        (Literal["a", None], ["null", "string"]),  # noqa: PYI061 — as users write it
        (OrderId, "string"),
        (Tags, {"type": "array", "items": "string"}),
        (tuple[int, ...], {"type": "array", "items": "long"}),
        (Sequence[int], {"type": "array", "items": "long"}),
        (Mapping[str, int], {"type": "map", "values": "long"}),
        (int | str | None, ["null", "long", "string"]),
        (Personal[int | None] | str, ["null", "long", "string"]),
        (Colour | None, ["null", {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}]),
        (Box[int], {"type": "record", "name": "Box_int", "fields": [{"name": "inside", "type": "long"}]}),
    ],
)
def test_a_type_becomes_avro(annotation: Any, avro: Any) -> None:
    assert fields(event(v=annotation))["v"]["type"] == avro


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Decimal, "a Decimal needs its digits"),
        (Any, "has no Avro type"),
        (list, "has no Avro type"),
        (dict[int, str], "has no Avro type"),
        (tuple[int, str], "has no Avro type"),
        (NaiveDatetime, "has no Avro type"),
        (SecretStr, "has no Avro type"),
        (Literal["a", 1], "this Literal has no Avro type"),
        (IntEnum("Level", {"LOW": 1}), "not all Avro symbols"),
        (Enum("Odd", {"A": "not a symbol"}), "not all Avro symbols"),
        (bytes | Money, "two parts of the union are one type"),
        (datetime | int, "two parts of the union are one type"),
        (list[int] | list[str], "two parts of the union are one type"),
    ],
)
def test_what_avro_cannot_hold_exactly_is_refused_by_field(annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"Made\.v: .*{message}"):
        schema_of(event(v=annotation))


@pytest.mark.parametrize(
    ("annotation", "default", "kind", "avro"),
    [
        (str, "x", "string", "x"),
        (float, 1, "double", 1),
        (str | None, None, ["null", "string"], None),
        (str | None, "x", ["string", "null"], "x"),
        (int | str, "x", ["string", "long"], "x"),
        (list[int], [], {"type": "array", "items": "long"}, []),
        (frozenset[int], frozenset(), {"type": "array", "items": "long"}, []),
        (dict[str, int], Field(default_factory=dict), {"type": "map", "values": "long"}, {}),
        (
            Colour | None,
            Colour.BLUE,
            [{"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}, "null"],
            "blue",
        ),
    ],
)
def test_a_default_is_written_and_its_branch_comes_first(annotation: Any, default: Any, kind: Any, avro: Any) -> None:
    found = fields(event(v=(annotation, default)))["v"]
    assert (found["type"], found["default"]) == (kind, avro)
    fastavro.parse_schema(schema_of(event(v=(annotation, default))).parsed())


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(str, None), (int, True), (Money, 0), (list[int], [1]), (float, float("inf")), (Left, Left(x=1)), (int, "x")],
)
def test_a_default_that_does_not_fit_its_type_is_refused(annotation: Any, default: Any) -> None:
    with pytest.raises(ConfigError, match=r"Made\.v: its default"):
        schema_of(event(v=(annotation, default)))


def test_a_factory_that_gives_something_new_each_time_gives_no_default() -> None:
    made = event(v=(str, Field(default_factory=lambda: "anything")), w=(int, Field(default_factory=lambda data: 1)))
    assert "default" not in fields(made)["v"]
    assert "default" not in fields(made)["w"]


@pytest.mark.parametrize(
    "annotation", [Personal[str], Personal[str] | None, list[Personal[str]], dict[str, list[Personal[str]]]]
)
def test_personal_data_is_marked_at_any_depth(annotation: Any) -> None:
    assert fields(event(v=annotation))["v"][PERSONAL] is True
    assert PERSONAL not in fields(event(v=annotation))["k"]


def test_two_types_of_one_name_are_refused_also_when_they_are_enums() -> None:
    with pytest.raises(ConfigError, match="two types named 'Colour'"):
        schema_of(event(a=Colour, b=Enum("Colour", {"GREEN": "green"})))


def test_a_name_within_a_namespace_is_found_also_inside_a_nested_message() -> None:
    class Inner(Event, aggregate="order", key="k", name="other.place.Inner"):
        k: str
        colour: Colour

    class Outer(Event, aggregate="order", key="k", name="com.shop.Outer"):
        k: str
        colour: Colour
        inner: Inner
        again: Outer | None = None

    parsed = schema_of(Outer).parsed()
    assert parsed["name"] == "com.shop.Outer"
    fastavro.parse_schema(parsed)


def test_extra_fields_and_odd_field_names_are_refused() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    with pytest.raises(ConfigError, match="extra='allow'"):
        schema_of(event(v=Open))
    with pytest.raises(ConfigError, match="not an Avro name"):
        schema_of(event(größe=int))


def test_a_name_that_is_not_defined_is_said() -> None:
    class Vague(Event, aggregate="order", key="k"):
        k: str
        what: Undefined  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigError, match="'Undefined' is not defined"):
        schema_of(Vague)


def test_doc_texts_are_kept_as_they_are_and_lone_surrogates_refused() -> None:
    assert fields(event(v=(int, Field(description="Größe, 日本"))))["v"]["doc"] == "Größe, 日本"
    with pytest.raises(ConfigError, match="surrogate"):
        schema_of(event(v=(int, Field(description="\ud800"))))


def test_recursion_is_seen_through_names_lists_and_namespaces() -> None:
    class Chain(Event, aggregate="order", key="k", name="a.b.Chain"):
        k: str
        rest: list[Chain] = Field(default_factory=list)

    class Twice(Event, aggregate="order", key="k"):
        k: str
        one: Left
        two: Left

    assert recursive(schema_of(Chain).parsed())
    assert recursive(schema_of(event(v=Node)).parsed())
    assert not recursive(schema_of(Twice).parsed())
    assert recursive(json.loads('{"type":"record","name":"R","namespace":"n","fields":[{"name":"a","type":"n.R"}]}'))


def test_the_text_is_the_same_in_every_process() -> None:
    code = (
        "from pipeline.demo.shop import OrderPlaced\nfrom pipeline.avro import schema_of\n"
        "print(schema_of(OrderPlaced).fingerprint.hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
