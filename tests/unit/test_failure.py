from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import Event, Personal
from pipeline.errors import ConfigError
from pipeline.failure import MASK, describe


class Address(BaseModel):
    street: str


class Signed(Event, aggregate="user", key="user_id"):
    user_id: str
    mail: Personal[str]
    phones: Personal[list[str]]
    home: Personal[Address | None] = None
    nick: Personal[str | None] = None


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def test_says_class_message_and_where() -> None:
    told = describe(raised(ConfigError("wrong", remedy="mend it")))
    assert (told.kind, told.message) == ("pipeline.errors.ConfigError", "wrong")
    assert "test_failure.py" in told.trace


def test_personal_values_are_masked_wherever_they_stand() -> None:
    event = Signed(
        user_id="u1", mail="Ann@Example.org", phones=["0170-55"], home=Address(street="Long Lane 1"), nick="anni"
    )
    text = "cannot send to ann@example.org / 0170-55 / Long Lane 1 / anni for u1"
    inner = raised(KeyError("Ann@Example.org"))
    error = ValueError(text)
    error.__cause__ = inner
    told = describe(raised(error), event)
    assert told.message == f"cannot send to {MASK} / {MASK} / {MASK} / {MASK} for u1"
    for secret in ("Ann@Example.org", "ann@example.org", "0170-55", "Long Lane", "anni"):
        assert secret not in told.message + told.trace


def test_pydantic_never_quotes_its_input() -> None:
    class Card(BaseModel):
        number: int

    data: Any = {"number": "4111-secret"}
    with pytest.raises(ValueError, match="number") as caught:
        Card(**data)
    told = describe(caught.value)
    assert "4111" not in told.message + told.trace
    assert told.message.startswith("number: ")


def test_sizes_are_bounded() -> None:
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 100_000)
        deep(n - 1)

    with pytest.raises(ValueError, match="xxx") as caught:
        deep(200)
    told = describe(caught.value)
    assert len(told.message) <= 1000
    assert len(told.trace) <= 3001


def test_an_error_that_cannot_say_itself_is_still_told() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(raised(Mute())).message == ""
