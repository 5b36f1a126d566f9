"""Messages to record values and back: nothing changes on the way, and wrong bytes give the stated errors only."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, computed_field

from pipeline import Event, Money, Personal
from pipeline.avro import schema_of
from pipeline.codec import Decoder, encode, frame, unframe
from pipeline.errors import PoisonError, SchemaError
from pipeline.subject import subject_of

T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(Enum):
    SMALL = "small"


class Card(BaseModel):
    number: str


class Voucher(BaseModel):
    number: str  # the same fields as Card


class Cash(BaseModel):
    pass


class Line(BaseModel):
    article: str
    price: Money
    tags: frozenset[str] = frozenset()


class Node(BaseModel):
    name: str
    kids: list[Node] = Field(default_factory=list)
    next: Node | None = None


class Tags(RootModel[list[str]]):
    pass


class Pair(BaseModel, Generic[T]):
    left: T
    right: T


class Everything(Event, aggregate="order", key="key", name="com.shop.Everything"):
    """One field of every kind."""

    key: str
    number: int
    ratio: float
    flag: bool
    raw: bytes
    total: Money
    at: datetime
    day: date
    clock: time
    id: UUID
    colour: Colour
    maybe: Personal[str] | None = None
    tip: Money | None = None
    lines: list[Line] = Field(default_factory=list)
    scores: dict[str, Annotated[Decimal, Field(max_digits=6, decimal_places=3)] | None] = Field(default_factory=dict)
    choice: Colour | str | int | None = None
    paid: Card | Voucher | Cash | None = None
    history: list[Card | Voucher | None] = Field(default_factory=list)
    either: list[int] | dict[str, Size] | Size | None = None
    tree: Node | None = None
    tags: Tags | None = None
    pair: Pair[int] | None = None
    word: Literal["a", "b"] = "a"
    days: tuple[date, ...] = ()


class AsJson(Event, aggregate="order", key="key", format="json"):
    key: str
    raw: bytes
    ratio: float
    total: Money
    wire_name: int = Field(alias="wireName")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return self.wire_name * 2


class Texts:
    """Schema texts by id, as the registry would give them."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def text(self, schema_id: int) -> str:
        if not 0 < schema_id <= len(self._texts):
            raise SchemaError(f"schema id {schema_id}: unknown")
        return self._texts[schema_id - 1]


def decoder(model: type[Event]) -> Decoder:
    return Decoder(Texts(schema_of(model).text))


text = st.text(st.characters(exclude_categories=["Cs"]))
long = st.integers(-(2**63), 2**63 - 1)
money = st.decimals(-(10**16) + 1, 10**16 - 1, places=2)
payment = st.builds(Card, number=text) | st.builds(Voucher, number=text)
everything = st.builds(
    Everything,
    key=text,
    number=long,
    ratio=st.floats(allow_nan=False),
    flag=st.booleans(),
    raw=st.binary(),
    total=money,
    at=st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)).map(  # noqa: DTZ001
        lambda at: at.replace(tzinfo=UTC)
    )
    | st.datetimes(min_value=datetime(1990, 1, 1)).map(  # noqa: DTZ001
        lambda at: at.replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))
    ),
    day=st.dates(),
    clock=st.times(),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    maybe=st.none() | text,
    tip=st.none() | money,
    lines=st.lists(st.builds(Line, article=text, price=money, tags=st.frozensets(text)), max_size=3),
    scores=st.dictionaries(text, st.none() | st.decimals(-999, 999, places=3), max_size=3),
    choice=st.none() | st.sampled_from(Colour) | text | long,
    paid=st.none() | payment | st.builds(Cash),
    history=st.lists(st.none() | payment, max_size=3),
    either=st.none() | st.lists(long) | st.dictionaries(text, st.sampled_from(Size)) | st.sampled_from(Size),
    tree=st.none()
    | st.recursive(st.builds(Node, name=text), lambda inner: st.builds(Node, name=text, next=inner), max_leaves=4),
    tags=st.none() | st.builds(Tags, st.lists(text)),
    pair=st.none() | st.builds(Pair[int], left=long, right=long),
    word=st.sampled_from(["a", "b"]),
    days=st.lists(st.dates(), max_size=3).map(tuple),
)


@settings(max_examples=300)
@given(everything)
def test_every_message_comes_back_as_it_was(message: Everything) -> None:
    back = decoder(Everything).decode(encode(message, 1), Everything)
    assert back == message
    assert type(back.paid) is type(message.paid)
    assert type(back.choice) is type(message.choice)
    assert [type(item) for item in back.history] == [type(item) for item in message.history]


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda body: frame(1, body)))
def test_random_bytes_give_the_stated_errors_and_nothing_else(value: bytes) -> None:
    for model in (Everything, AsJson):
        with contextlib.suppress(SchemaError):  # PoisonError is one
            decoder(model).decode(value, model)


@settings(max_examples=300)
@given(everything, st.data())
def test_damaged_values_give_the_stated_errors_and_nothing_else(message: Everything, data: st.DataObject) -> None:
    value = bytearray(encode(message, 1))
    where = data.draw(st.integers(0, len(value) - 1))
    value[where] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SchemaError):
        decoder(Everything).decode(bytes(value[: data.draw(st.integers(where, len(value)))]), Everything)


@settings(max_examples=200)
@given(text, st.binary(), st.floats(), money, long)
def test_json_comes_back_as_it_was(key: str, raw: bytes, ratio: float, total: Decimal, number: int) -> None:
    message = AsJson(key=key, raw=raw, ratio=ratio, total=total, wireName=number)
    back = decoder(AsJson).decode(encode(message, None), AsJson)
    assert back == message or ratio != ratio


def test_json_is_written_by_its_aliases_and_without_computed_fields() -> None:
    value = encode(AsJson(key="k", raw=b"\xff", ratio=1, total=Decimal("1.50"), wireName=3), None)
    assert json.loads(value) == {"key": "k", "raw": "_w==", "ratio": 1.0, "total": "1.50", "wireName": 3}


def test_deep_nesting_in_a_record_is_poison_and_does_not_end_the_process() -> None:
    class Chain(Event, aggregate="order", key="k"):
        k: str
        rest: Chain | None = None

    deep = frame(1, b"\x00\x02" * 100_000 + b"\x00\x00")
    with pytest.raises(PoisonError):
        decoder(Chain).decode(deep, Chain)
    chain = Chain(k="")
    for _ in range(20):
        chain = Chain.model_construct(k="", rest=chain)
    assert decoder(Chain).decode(encode(chain, 1), Chain) == chain
    for _ in range(5000):
        chain = Chain.model_construct(k="", rest=chain)
    with pytest.raises(SchemaError, match="RecursionError"):
        encode(chain, 1)


class Small(Event, aggregate="order", key="key"):
    key: str
    number: int
    at: datetime | None = None
    total: Money | None = None
    id: UUID | None = None
    flag: bool | None = None
    _private: int = PrivateAttr(default=7)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"key": 3}, "key"),
        ({"key": b"bytes"}, "key"),
        ({"key": "\ud800"}, "key"),
        ({"number": 2**63}, "number"),
        ({"number": 1.5}, "number"),
        ({"number": "1"}, "number"),
        ({"at": "2026-01-01"}, "at"),
        ({"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, "at"),
        ({"total": Decimal("1e30")}, "total"),
        ({"total": Decimal("1.001")}, "total"),
        ({"total": Decimal("NaN")}, "total"),
        ({"id": "not a uuid"}, "id"),
        ({"flag": "no"}, "flag"),
    ],
)
def test_a_value_changed_behind_pydantics_back_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    message = Small(key="k", number=1).model_copy(update=changes)
    with pytest.raises(SchemaError, match=f"in field '{field}'") as caught:
        encode(message, 1)
    assert "not a uuid" not in str(caught.value)


def test_a_missing_field_and_a_time_without_zone_are_said() -> None:
    with pytest.raises(SchemaError, match="in field 'number'"):
        encode(Small.model_construct(key="k"), 1)
    with pytest.raises(SchemaError, match=r"Small\.at: a time without zone"):
        encode(Small(key="k", number=1, at=datetime(2026, 1, 1)), 1)  # noqa: DTZ001 — the point


class Opening(Event, aggregate="shop", key="shop"):
    shop: str
    at: time
    pay: Card | None = None


class GoldCard(Card):
    limit: int


class NamedCard(Card):
    def masked(self) -> str:
        return self.number[-4:]


def test_what_avro_would_leave_out_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"Opening\.at: a time of day with a zone"):
        encode(Opening(shop="s", at=time(9, 0, tzinfo=UTC)), 1)
    with pytest.raises(SchemaError, match="in field 'pay': a GoldCard"):
        encode(Opening(shop="s", at=time(9, 0), pay=GoldCard(number="1", limit=5)), 1)
    message = Opening(shop="s", at=time(9, 0), pay=NamedCard(number="1"))
    assert decoder(Opening).decode(encode(message, 1), Opening).pay == Card(number="1")


def test_private_attributes_stay_at_home() -> None:
    assert decoder(Small).decode(encode(Small(key="k", number=1), 1), Small) == Small(key="k", number=1)
    assert "_private" not in schema_of(Small).text


def test_a_strict_model_can_be_read() -> None:
    class Strict(Event, aggregate="order", key="key"):
        model_config = ConfigDict(strict=True)
        key: str
        colour: Size
        numbers: frozenset[int]

    message = Strict(key="k", colour=Size.SMALL, numbers=frozenset({1}))
    assert decoder(Strict).decode(encode(message, 1), Strict) == message


def test_an_alias_does_not_reach_avro() -> None:
    class Aliased(Event, aggregate="order", key="key"):
        key: str
        number: int = Field(alias="theNumber")

    message = Aliased(key="k", theNumber=3)
    assert decoder(Aliased).decode(encode(message, 1), Aliased) == message


def test_json_of_a_newer_version_is_read_without_what_this_one_does_not_have() -> None:
    class Line(BaseModel):
        model_config = ConfigDict(extra="forbid")
        sku: str

    class Shipped(Event, aggregate="order", key="key", format="json"):
        key: str
        lines: list[Line]

    newer = b'{"key": "k", "lines": [{"sku": "a", "weight": 3}], "carrier": "c"}'
    assert Decoder(Texts()).decode(newer, Shipped) == Shipped(key="k", lines=[Line(sku="a")])


def test_json_that_cannot_be_written_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="AsJson: cannot be written as JSON"):
        encode(AsJson(key="\ud800", raw=b"", ratio=1, total=Decimal(1), wireName=3), None)
    with pytest.raises(SchemaError, match="AsJson: cannot be written as JSON"):
        encode(AsJson(key="k", raw=b"", ratio=1, total=Decimal(1), wireName=3).model_copy(update={"key": 3}), None)


class First(Event, aggregate="order", key="key", name="Evolving"):
    key: str
    paid: Card | Voucher
    colour: Colour | None = None


class Second(Event, aggregate="order", key="key", name="Evolving"):
    key: str
    paid: Card | Voucher
    colour: Colour = Colour.BLUE
    added: int | None = None


def test_an_older_writers_record_is_read_by_its_own_schema() -> None:
    schemas = Texts(schema_of(First).text, schema_of(Second).text)
    value = encode(First(key="k", paid=Voucher(number="1"), colour=Colour.RED), 1)
    assert Decoder(schemas).decode(value, Second) == Second(key="k", paid=Voucher(number="1"), colour=Colour.RED)


def test_a_sound_record_that_this_model_cannot_read_is_no_poison() -> None:
    class Third(Event, aggregate="order", key="key", name="Evolving"):
        key: str
        needed: int

    value = encode(First(key="k", paid=Card(number="1")), 1)
    with pytest.raises(SchemaError, match="cannot be read from schema id 1") as caught:
        Decoder(Texts(schema_of(First).text)).decode(value, Third)
    assert not isinstance(caught.value, PoisonError)


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\1", b"{}"])
def test_what_is_not_in_wire_format_is_poison(value: bytes) -> None:
    with pytest.raises(PoisonError):
        unframe(value)


def test_bytes_left_over_and_an_empty_value_are_poison() -> None:
    value = encode(Small(key="k", number=1), 1)
    with pytest.raises(PoisonError, match="left over"):
        decoder(Small).decode(value + b"\0", Small)
    with pytest.raises(PoisonError, match="empty"):
        decoder(Small).decode(None, Small)


def test_an_avro_value_needs_an_id_and_a_registry_text_must_be_a_schema() -> None:
    with pytest.raises(SchemaError, match="needs a schema id"):
        encode(Small(key="k", number=1), None)
    for broken in ("nonsense", "{}", '"unknown"'):
        with pytest.raises(SchemaError, match="not a schema"):
            Decoder(Texts(broken)).decode(encode(Small(key="k", number=1), 1), Small)


def test_the_subject_and_the_record_name_are_those_of_the_wire() -> None:
    assert subject_of("outbox.event.order", "com.shop.Everything") == "outbox.event.order-com.shop.Everything"
    assert decoder(Small).record_name(encode(Small(key=str(uuid4()), number=1), 1)) == "Small"
