from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PoisonError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, NewerFormat, Origin, RetryState, original
from pipeline.record import Header, Record

HEADERS: list[Header] = [("id", b"\xff\x00"), ("x", None), ("x", b""), ("x", b"twice"), ("type", b"Placed")]
RECORD = Record("orders", 3, 42, b"k", b"v", HEADERS, 1_700_000_000_000)
FAILURE = Failure("ValueError", "no such order: Ünïcode", "trace")


def on_retry_topic(state: RetryState, *, offset: int = 7) -> Record:
    return RECORD._replace(topic="g.retry.1s", partition=0, offset=offset, headers=state.headers(RECORD))


def test_a_record_that_was_never_retried_is_at_its_first_attempt() -> None:
    state = RetryState.of(RECORD)
    assert (state.attempt, state.first_failure_ms) == (1, None)
    assert state.origin == Origin("orders", 3, 42, 1_700_000_000_000)


def test_state_survives_any_number_of_retry_topics() -> None:
    state = RetryState.of(RECORD).failed(FAILURE, 1000)
    again = RetryState.of(on_retry_topic(state)).failed(Failure("KeyError", "x"), 2000)
    read = RetryState.of(on_retry_topic(again, offset=99))
    assert read == again
    assert read.origin == Origin("orders", 3, 42, 1_700_000_000_000)
    assert (read.first_failure_ms, read.first_error, [t.kind for t in read.history]) == (
        1000,
        FAILURE,
        ["ValueError", "KeyError"],
    )


def test_headers_of_the_writer_are_kept_byte_for_byte_and_never_pile_up() -> None:
    state = RetryState.of(RECORD).failed(FAILURE, 1)
    record = on_retry_topic(state)
    for _ in range(5):
        record = record._replace(headers=RetryState.of(record).headers(record))
    assert original(record.headers) == HEADERS
    assert record.headers[: len(HEADERS)] == HEADERS
    assert len(record.headers) == len(on_retry_topic(state).headers)


@pytest.mark.parametrize("attempt", [b"", b"0", b"-1", b"one", b"1.0", b" 1", b"1000001", b"9" * 40, None, b"\xff"])
def test_a_corrupt_attempt_is_poison_and_never_a_first_attempt(attempt: bytes | None) -> None:
    headers = [(n, attempt if n == "__pipeline.attempt" else v) for n, v in RetryState.of(RECORD).headers(RECORD)]
    with pytest.raises(PoisonError, match="attempt"):
        RetryState.of(RECORD._replace(headers=headers))


def test_a_missing_attempt_beside_other_state_is_poison() -> None:
    headers = [(n, v) for n, v in RetryState.of(RECORD).headers(RECORD) if n != "__pipeline.attempt"]
    with pytest.raises(PoisonError):
        RetryState.of(RECORD._replace(headers=headers))


def test_a_newer_format_waits_even_where_its_other_headers_look_corrupt() -> None:
    with pytest.raises(NewerFormat):
        RetryState.of(RECORD._replace(headers=[("__pipeline.version", b"2"), ("__pipeline.attempt", b"{}")]))


@given(st.lists(st.tuples(st.text(max_size=30), st.none() | st.binary(max_size=40)), max_size=12), st.data())
def test_any_headers_give_a_state_or_one_of_two_errors(headers: list[Header], data: st.DataObject) -> None:
    names = [name for name, _ in RetryState.of(RECORD).failed(FAILURE, 1).headers(RECORD) if name.startswith("__")]
    ours = data.draw(st.lists(st.tuples(st.sampled_from(names), st.none() | st.binary(max_size=20)), max_size=8))
    with suppress(PoisonError, NewerFormat):
        assert RetryState.of(RECORD._replace(headers=[*headers, *ours])).attempt >= 1
    DeadLetter.of(RECORD._replace(headers=[*headers, *ours]))


def test_history_keeps_the_first_and_the_last_attempts() -> None:
    state = RetryState.of(RECORD)
    for number in range(1, 200):
        state = RetryState(state.origin, number, history=state.history).failed(FAILURE, number)
    assert [one.attempt for one in state.history][:2] == [1, 185]
    assert state.history[-1].attempt == 199
    assert sum(len(v or b"") for _, v in state.headers(RECORD)) < 4_000


def test_a_dead_letter_tells_what_kip_1191_asks_for() -> None:
    letter = DeadLetter(Origin("orders", 3, 42, 5), "shop.billing", 4, FAILURE, died_ms=9)
    told = dict(letter.headers(RECORD))
    assert {
        name: told[f"__dlq.errors.{name}"] for name in ("topic", "partition", "offset", "group", "delivery.count")
    } == {
        "topic": b"orders",
        "partition": b"3",
        "offset": b"42",
        "group": b"shop.billing",
        "delivery.count": b"4",
    }
    assert told["__dlq.errors.message"] == "no such order: Ünïcode".encode()
    assert letter.headers(RECORD)[: len(HEADERS)] == HEADERS


def test_a_dead_letter_reads_back_what_was_written() -> None:
    state = RetryState.of(RECORD).failed(FAILURE, 1).failed(Failure("KeyError", "x"), 2)
    letter = DeadLetter(
        state.origin, "g", 2, Failure("KeyError", "x"), FAILURE, 1, died_ms=3, generation=1, history=state.history
    )
    assert DeadLetter.of(RECORD._replace(topic="g.dlq", headers=letter.headers(RECORD))) == letter


def test_springs_dead_letters_are_understood() -> None:
    spring: list[Header] = [
        ("kafka_dlt-original-topic", b"orders"),
        ("kafka_dlt-original-partition", (3).to_bytes(4, "big")),
        ("kafka_dlt-original-offset", (1 << 40).to_bytes(8, "big")),
        ("kafka_dlt-original-timestamp", (1_700_000_000_000).to_bytes(8, "big")),
        ("kafka_dlt-original-consumer-group", b"billing"),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"boom"),
    ]
    letter = DeadLetter.of(RECORD._replace(topic="orders.DLT", headers=[*HEADERS, *spring]))
    assert letter.origin == Origin("orders", 3, 1 << 40, 1_700_000_000_000)
    assert (letter.group, letter.error.kind, letter.error.message) == (
        "billing",
        "java.lang.IllegalStateException",
        "boom",
    )
    assert original([*HEADERS, *spring], spring=True) == HEADERS


def test_unreadable_headers_still_make_a_letter_that_can_be_looked_at() -> None:
    headers: list[Header] = [
        ("__dlq.errors.partition", b"?"),
        ("__dlq.errors.history", b"{"),
        ("__dlq.errors.topic", b"\xff"),
    ]
    assert DeadLetter.of(RECORD._replace(headers=headers)).origin.partition == -1


@pytest.mark.parametrize("history", [b'[[1e999, 0, "x"]]', b"[" * 100_000])
def test_a_history_of_nonsense_is_poison_and_ends_no_worker(history: bytes) -> None:
    state = RetryState.of(RECORD).failed(FAILURE, 1)
    headers = [(n, history if n == "__pipeline.history" else v) for n, v in state.headers(RECORD)]
    with pytest.raises(PoisonError):
        RetryState.of(RECORD._replace(headers=headers))


def test_a_generation_that_no_table_takes_is_poison() -> None:
    headers = [
        (n, b"3000000000" if n == "__pipeline.generation" else v) for n, v in RetryState.of(RECORD).headers(RECORD)
    ]
    with pytest.raises(PoisonError, match="generation"):
        RetryState.of(RECORD._replace(headers=headers))


def test_an_error_whose_text_is_no_utf8_is_told_again_and_again() -> None:
    state = RetryState.of(RECORD).failed(Failure("ValueError", "no file \udc80", "in \ud800"), 1)
    read = RetryState.of(on_retry_topic(state))
    assert RetryState.of(on_retry_topic(read)) == state
    letter = DeadLetter(read.origin, error=read.last_error or FAILURE, history=read.history)
    assert dict(letter.headers(RECORD))["__dlq.errors.message"] == b"no file \\udc80"
