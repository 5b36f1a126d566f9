from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from pipeline import Event, Job, Personal
from pipeline.avro import schema_of
from pipeline.codec import encode
from pipeline.errors import SchemaError
from pipeline.event import Message
from pipeline.payload import look


class Address(BaseModel):
    street: Personal[str]
    country: str


class Signed(Event, aggregate="user", key="user"):
    user: Personal[str]
    home: Address
    others: list[Address]
    named: dict[str, Address]
    spare: Address | None = None
    plan: str


class Mail(Job, format="json"):
    to: Personal[str]
    subject: str


SIGNED = Signed(
    user="ann",
    home=Address(street="s1", country="de"),
    others=[Address(street="s2", country="fr")],
    named={"work": Address(street="s3", country="it")},
    spare=Address(street="s4", country="es"),
    plan="free",
)


class Schemas:
    def __init__(self, model: type[Message] | None = None) -> None:
        self.model = model

    def text(self, schema_id: int) -> str:
        if self.model is None:
            raise SchemaError("registry: down", retryable=True)
        return schema_of(self.model).text


def test_personal_fields_are_masked_wherever_they_are() -> None:
    shown = look(encode(SIGNED, 7), Schemas(Signed), model=None, reveal=False)
    assert (shown.name, shown.schema_id, shown.masked, shown.problem) == ("Signed", 7, True, None)
    text = json.dumps(shown.data)
    assert not any(secret in text for secret in ("ann", "s1", "s2", "s3", "s4"))
    assert all(word in text for word in ("de", "fr", "it", "es", "free"))
    assert shown.secrets == {"ann", "s1", "s2", "s3", "s4"}


def test_revealed_it_is_as_it_was_written() -> None:
    shown = look(encode(SIGNED, 7), Schemas(Signed), model=None, reveal=True)
    assert shown.data["home"] == {"street": "s1", "country": "de"}
    assert not shown.masked


def test_json_is_masked_by_its_model_and_whole_without_one() -> None:
    value = encode(Mail(to="a@example.org", subject="hi"), None)
    assert look(value, Schemas(), model=Mail, reveal=False).data == {"to": "•••", "subject": "hi"}
    assert look(value, Schemas(), model=None, reveal=False).data == {"to": "•••", "subject": "•••"}
    assert look(value, Schemas(), model=None, reveal=True).data == {"to": "a@example.org", "subject": "hi"}


@pytest.mark.parametrize("value", [None, b"", b"\0\0", b"\0\0\0\0\7", b"\0\0\0\0\7\xff\xff", b"\xff\xfe", b"{"])
def test_what_cannot_be_decoded_says_why(value: bytes | None) -> None:
    shown = look(value, Schemas(Signed), model=None, reveal=False)
    assert shown.data is None
    assert shown.problem


def test_bytes_left_over_are_not_hidden() -> None:
    assert "left over" in str(look(encode(SIGNED, 7) + b"x", Schemas(Signed), model=None, reveal=True).problem)


def test_the_registry_being_down_is_not_the_records_fault() -> None:
    with pytest.raises(SchemaError, match="down"):
        look(encode(SIGNED, 7), Schemas(), model=None, reveal=False)


class Tree(Event, aggregate="tree", key="name"):
    name: str
    inner: Tree | None = None


def test_bytes_that_nest_too_deeply_are_a_problem_and_not_the_end_of_the_process() -> None:
    deep = b"\0" + (7).to_bytes(4, "big") + b"\x02a\x02" * 200_000
    shown = look(deep, Schemas(Tree), model=None, reveal=True)
    assert shown.data is None
    assert "RecursionError" in (shown.problem or "")
