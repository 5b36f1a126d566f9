from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Event, Reject, RetryLater, RetryPolicy
from pipeline.definition import Handler
from pipeline.errors import PoisonError, SchemaError
from pipeline.headers import NewerFormat
from pipeline.worker.settlement import Again, Dead, Move, Skip, Wait, settle, tier_for, unknown_type


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Down(Exception):
    pass


class Wrong(Exception):
    pass


POLICY = RetryPolicy(attempts=4, first_s=1, factor=4, cap_s=60, jitter=0.2, fatal=(Wrong,), uncounted=(Down,))


def handler(order: Any = "key", **more: Any) -> Handler:
    return Handler("h", print, Placed, "t", "g", order, more.pop("retry", POLICY), **more)


def decide(
    error: BaseException, of: Handler | None, attempt: int = 1, *, decoding: bool = False, waited: int = 0
) -> object:
    return settle(error, of, attempt=attempt, waited=waited, decoding=decoding)


def test_with_key_order_a_failing_attempt_is_repeated_in_place() -> None:
    assert decide(ValueError(), handler(), 2) == Again(4, 0.2, counted=True)


def test_without_order_it_moves_to_the_retry_topic_at_once() -> None:
    assert decide(ValueError(), handler("none"), 3) == Move(16, counted=True)


@pytest.mark.parametrize("order", ["key", "partition", "none"])
def test_the_last_attempt_is_the_end(order: str) -> None:
    assert decide(ValueError(), handler(order), 4) == Dead("exhausted")


def test_reject_and_fatal_errors_die_at_the_first_attempt() -> None:
    assert decide(Reject("no"), handler()) == Dead("rejected")
    assert decide(Wrong(), handler("none")) == Dead("fatal")


def test_uncounted_errors_never_exhaust() -> None:
    assert decide(Down(), handler(), 4) == Again(60, 0.2, counted=False)
    assert decide(Down(), handler("none"), 4) == Move(60, counted=False)


def test_retry_later_waits_as_long_as_it_says() -> None:
    assert decide(RetryLater(7), handler("none")) == Move(7, counted=True)
    assert decide(RetryLater(7, counted=False), handler(), 4) == Again(7, 0, counted=False)
    assert decide(RetryLater(7), handler(), 4) == Dead("exhausted")


def test_on_exhausted_retry_topic_gives_the_policy_once_more_off_the_key() -> None:
    leaves = handler(on_exhausted="retry_topic")
    found = [decide(ValueError(), leaves, attempt) for attempt in range(1, 9)]
    assert found[:3] == [Again(1, 0.2, counted=True), Again(4, 0.2, counted=True), Again(16, 0.2, counted=True)]
    assert found[3:] == [*(Move(d, counted=True) for d in (1, 4, 16, 60)), Dead("exhausted")]


def test_wrong_bytes_are_dead_and_nothing_else_of_decoding_is() -> None:
    assert decide(PoisonError("x"), handler(), decoding=True) == Dead("poison")
    assert decide(PoisonError("x"), None, decoding=True) == Dead("poison")
    assert isinstance(decide(SchemaError("down", retryable=True), handler(), decoding=True), Wait)
    assert isinstance(decide(SchemaError("down", retryable=True), handler("none"), decoding=True), Wait)
    assert isinstance(decide(SchemaError("other model"), handler(), decoding=True), Wait)
    assert decide(SchemaError("other model"), handler("none"), decoding=True) == Move(30, counted=False)


def test_a_poison_error_that_the_handler_raised_is_an_error_like_others() -> None:
    assert decide(PoisonError("x"), handler()) == Again(1, 0.2, counted=True)


def test_waiting_backs_off_to_a_bound() -> None:
    waits = [decide(SchemaError("x", retryable=True), handler(), decoding=True, waited=n) for n in (0, 1, 2, 20)]
    assert [w.delay_s for w in waits if isinstance(w, Wait)] == [0.5, 1, 2, 15]


def test_a_newer_format_goes_back_to_the_tiers() -> None:
    assert decide(NewerFormat(), None, decoding=True) == Move(30, counted=False)


def test_unknown_types() -> None:
    assert unknown_type(queue=False, retried=False) == Skip()
    assert unknown_type(queue=True, retried=False) == Move(30, counted=False)
    assert unknown_type(queue=False, retried=True) == Move(30, counted=False)


def test_the_tier_is_the_longest_that_is_not_longer() -> None:
    assert [tier_for(d, (0.0, 5, 20)) for d in (0, 4.9, 5, 19, 20, 900)] == [0, 0, 5, 5, 20, 20]


errors = st.sampled_from(
    [ValueError(), Down(), Wrong(), Reject("x"), RetryLater(3), RetryLater(3, counted=False), SystemExit()]
)


@given(
    errors, st.integers(1, 100), st.sampled_from(["key", "none", "partition"]), st.sampled_from(["dlq", "retry_topic"])
)
def test_counted_attempts_end_and_nothing_is_skipped(error: BaseException, attempt: int, order: Any, then: Any) -> None:
    found = decide(error, handler(order, on_exhausted=then), attempt)
    assert isinstance(found, Again | Move | Dead)
    if attempt >= 2 * POLICY.attempts and not isinstance(found, Dead):
        assert not found.counted
    if isinstance(found, Again):
        assert order != "none"
