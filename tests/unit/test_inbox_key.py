from __future__ import annotations

import pytest

from pipeline import Context, Event, RetryPolicy
from pipeline.definition import Handler
from pipeline.inbox import InboxKey
from pipeline.record import Record


class Paid(Event, aggregate="order", key="n"):
    n: int


def key(event_id: bytes) -> InboxKey:
    record = Record("legacy", 0, 7, None, b"", [("id", event_id)], 0)
    handler = Handler("h", print, Paid, "legacy", "g", "none", RetryPolicy())
    return InboxKey.of(handler, Context(record, dict(record.headers), "Paid", "g", None))


def test_an_event_is_known_by_its_id() -> None:
    assert key(b"order-7") == ("order-7", "g", "h", 0)


@pytest.mark.parametrize("event_id", [b"a\0b", b"x" * 10_000, "\u20ac".encode() * 401])
def test_an_id_that_no_row_can_hold_is_known_by_its_hash(event_id: bytes) -> None:
    made = key(event_id).event_id
    assert made == key(event_id).event_id != key(event_id + b"1").event_id
    assert len(made) < 100
    assert made.isprintable()
