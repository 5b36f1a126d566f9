from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deadletter import Letter, Place, Selection
from pipeline.errors import ConfigError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, Origin
from pipeline.record import Header, Record

NOW_MS = 1_700_000_000_000
ORIGIN = Origin("orders", 2, 17, NOW_MS - 5000)


def dead(error: Failure, *, written: list[Header] | None = None, origin: Origin = ORIGIN, at: int = 3) -> Record:
    record = Record("shop.billing.dlq", 0, at, b"k", b"v", written or [("id", b"e1"), ("type", b"T")], NOW_MS)
    story = DeadLetter(origin, "shop.billing", 5, error, None, NOW_MS - 10, NOW_MS)
    return record._replace(headers=story.headers(record))


def trace(function: str, line: int, file: str = "/srv/shop.py") -> str:
    return f'  File "{file}", line {line}, in {function}\n    x()\nValueError: no\n'


def test_a_letter_tells_its_story() -> None:
    letter = Letter.of(dead(Failure("ValueError", "no")))
    assert (letter.event_id, letter.type, letter.flaws) == ("e1", "T", ())
    assert letter.story.origin == ORIGIN
    assert letter.written == [("id", b"e1"), ("type", b"T")]
    assert letter.summary().place == Place("shop.billing.dlq", 0, 3)
    assert letter.summary().died_at == datetime.fromtimestamp(NOW_MS / 1000, UTC)


def test_letters_of_one_cause_share_a_fingerprint_whatever_line_message_and_machine() -> None:
    prints = {
        Letter.of(dead(Failure("ValueError", message, trace("bill", line, file)))).fingerprint
        for message, line, file in [
            ("a", 1, "/srv/shop.py"),
            ("b", 99, "/home/x/shop.py"),
            ("c", 5, "C:\\app\\shop.py"),
        ]
    }
    assert len(prints) == 1
    other = Letter.of(dead(Failure("ValueError", "a", trace("ship", 1)))).fingerprint
    kind = Letter.of(dead(Failure("KeyError", "a", trace("bill", 1)))).fingerprint
    assert len({*prints, other, kind}) == 3


def test_springs_letters_are_understood_and_lose_springs_headers() -> None:
    headers: list[Header] = [
        ("mine", b"1"),
        ("kafka_dlt-original-topic", b"legacy"),
        ("kafka_dlt-original-partition", (3).to_bytes(4, "big")),
        ("kafka_dlt-original-offset", (77).to_bytes(8, "big")),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalState"),
    ]
    letter = Letter.of(Record("x.dlq", 0, 0, None, b"", headers, NOW_MS))
    assert (letter.story.origin.topic, letter.story.origin.partition, letter.story.origin.offset) == ("legacy", 3, 77)
    assert letter.summary().error == "java.lang.IllegalState"
    assert letter.written == [("mine", b"1")]
    assert letter.flaws == ("its group is not known",)


def test_corrupt_headers_are_flaws_of_a_letter_that_can_be_listed() -> None:
    headers: list[Header] = [
        ("id", b"\0\xff"),
        ("__dlq.errors.topic", b""),
        ("__dlq.errors.partition", b"x"),
        ("__dlq.errors.time", b"9" * 19),
        ("__dlq.errors.delivery.count", b"-1"),
    ]
    letter = Letter.of(Record("x.dlq", 0, 0, None, None, headers, NOW_MS))
    assert len(letter.flaws) == 5
    assert letter.summary().died_at == datetime.fromtimestamp(NOW_MS / 1000, UTC)
    assert "\0" not in (letter.event_id or "")


def test_a_record_that_is_no_dead_letter_says_so() -> None:
    assert Letter.of(Record("x.dlq", 0, 0, None, None, [], NOW_MS)).flaws == ("it has no headers of a dead letter",)


_NAMES = st.sampled_from(
    ["id", "type", "kafka_dlt-original-topic", "kafka_dlt-original-offset", "__pipeline.attempt"]
    + [
        f"__dlq.errors.{part}"
        for part in ("topic", "partition", "offset", "timestamp", "time", "group", "history", "first.error")
    ]
    + ["__dlq.errors.exception.class", "__dlq.errors.stacktrace", "__dlq.errors.delivery.count"]
)


@given(
    st.lists(st.tuples(_NAMES, st.one_of(st.none(), st.binary(), st.sampled_from([b"9" * 19, b"[1]", b"{}"])))),
    st.sampled_from([NOW_MS, -1, 2**62]),
)
def test_whatever_the_headers_a_letter_can_be_read_and_entered(headers: list[Header], timestamp_ms: int) -> None:
    summary = Letter.of(Record("x.dlq", 0, 0, b"", b"", headers, timestamp_ms)).summary()
    assert summary.error
    assert "\0" not in f"{summary.event_id}{summary.type}{summary.error}"
    assert len(summary.event_id or "") <= 200
    assert 1970 <= summary.died_at.year <= 9999


@given(st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True), st.integers(0, 10**6), st.integers(0, 10**17))
def test_a_place_reads_back(topic: str, partition: int, offset: int) -> None:
    assert Place.parse(str(Place(topic, partition, offset))) == Place(topic, partition, offset)


@pytest.mark.parametrize("text", ["", "t", "t[0]", "t@1", "t[x]@1", "t[0]@-1", "t[0]@1 "])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no place"):
        Place.parse(text)


def test_a_selection_takes_what_fits_everything_that_is_set() -> None:
    one = Letter.of(dead(Failure("shop.Declined", ""))).summary()
    base = Selection(("shop.billing.dlq",))
    assert base.takes(one)  # of unknown state
    for fits in (
        Selection(base.topics, error="Declined"),
        Selection(base.topics, error="shop.Declined"),
        Selection(base.topics, error=one.fingerprint),
        Selection(base.topics, since=one.died_at, until=one.died_at + timedelta(seconds=1)),
        Selection(base.topics, places=(one.place,), event_ids=("e1",), type="T"),
    ):
        assert fits.takes(one)
    for misses in (
        Selection(("other.dlq",)),
        Selection(base.topics, error="eclined"),
        Selection(base.topics, until=one.died_at),
        Selection(base.topics, type="U"),
        Selection(base.topics, event_ids=("e2",)),
    ):
        assert not misses.takes(one)
