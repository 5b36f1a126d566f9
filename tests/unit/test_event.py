"""Message classes: names, streams, keys, what a subclass takes over, and definitions that cannot work."""

from __future__ import annotations

from typing import Generic, TypeVar

import pytest
from pydantic import AliasChoices, Field, ValidationError

from pipeline import Event, Job
from pipeline.errors import ConfigError

T = TypeVar("T")


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job, queue="email", key="address"):
    address: str


def test_an_event_knows_its_stream_key_and_name() -> None:
    kind = Placed.message_type
    assert (kind.kind, kind.name, kind.stream, kind.key, kind.format) == (
        "event",
        "Placed",
        "order",
        "order_id",
        "avro",
    )


def test_a_job_without_queue_goes_to_default_and_has_no_key() -> None:
    class Clean(Job):
        pass

    assert (Clean.message_type.stream, Clean.message_type.key) == ("default", None)


def test_the_name_may_be_given_with_dots_so_that_renaming_a_class_changes_nothing() -> None:
    class Renamed(Event, aggregate="order", key="k", name="com.shop.OrderPlaced"):
        k: str

    assert Renamed.message_type.name == "com.shop.OrderPlaced"


def test_a_subclass_takes_over_stream_key_and_format_but_not_the_name() -> None:
    class Base(Event, aggregate="order", key="k", format="json", name="base"):
        k: str

    class Special(Base):
        more: int = 0

    class SpecialMail(Mail):
        pass

    kind = Special.message_type
    assert (kind.name, kind.stream, kind.key, kind.format) == ("Special", "order", "k", "json")
    assert (SpecialMail.message_type.stream, SpecialMail.message_type.key) == ("email", "address")


def test_a_generic_message_is_named_by_its_arguments() -> None:
    class Changed(Event, Generic[T], aggregate="order", key="k"):
        k: str
        to: T

    assert Changed[int].message_type.name == "Changed_int"


@pytest.mark.parametrize("arguments", [{}, {"aggregate": "order"}, {"key": "k"}])
def test_an_event_needs_aggregate_and_key(arguments: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="aggregate and key are needed"):
        type("Bad", (Event,), {"__annotations__": {"k": str}}, **arguments)


def test_a_key_that_is_no_field_is_refused_with_the_fields_named() -> None:
    with pytest.raises(ConfigError, match=r"key='id' is not one of its fields[\s\S]*one of: order_id, total"):

        class Bad(Event, aggregate="order", key="id"):
            order_id: str
            total: int


@pytest.mark.parametrize("name", ["Order", "order_line", "", "a" * 61, "ä", "a.b", "a\n"])
def test_an_aggregate_name_outside_the_rule_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        type("Bad", (Event,), {"__annotations__": {"k": str}}, aggregate=name, key="k")


@pytest.mark.parametrize("name", ["1st", "a-b", "a..b", ".a", "Größe", "a b"])
def test_a_name_that_avro_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not an Avro name"):
        type("Bad", (Event,), {"__annotations__": {"k": str}}, aggregate="a", key="k", name=name)


def test_a_field_named_message_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="message_type"):
        type("Bad", (Event,), {"__annotations__": {"k": str, "message_type": str}}, aggregate="a", key="k")


def test_a_json_field_that_is_not_read_by_the_name_it_is_written_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="written as 'out', which is not read back"):

        class Bad(Event, aggregate="a", key="k", format="json"):
            k: str = Field(validation_alias="in", serialization_alias="out")

    class Good(Event, aggregate="a", key="k", format="json"):
        k: str = Field(validation_alias=AliasChoices("in", "out"), serialization_alias="out")


def test_messages_are_frozen_closed_and_silent_about_their_values() -> None:
    event = Placed(order_id="1")
    with pytest.raises(ValidationError):
        event.order_id = "2"  # type: ignore[misc]
    with pytest.raises(ValidationError) as caught:
        Placed(order_id="1", secret="hunter2")  # type: ignore[call-arg]
    assert "hunter2" not in str(caught.value)
