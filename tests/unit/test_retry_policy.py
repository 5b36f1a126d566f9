"""Retry policies: the delays they promise, and numbers that cannot work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.retry import EVENT_POLICY, JOB_POLICY, RetryLater, RetryPolicy


def test_the_delays_grow_to_the_cap() -> None:
    assert JOB_POLICY.delays_s() == (5, 20, 80, 320, 600)
    assert [EVENT_POLICY.delay_s(n) for n in range(1, 5)] == [1, 4, 16, 60]
    assert 2.5 < sum(JOB_POLICY.delay_s(n) for n in range(1, 20)) / 3600 < 2.9


def test_the_last_attempt_is_the_last() -> None:
    assert not RetryPolicy(attempts=3).exhausted(2)
    assert RetryPolicy(attempts=3).exhausted(3)
    assert RetryPolicy(attempts=1).delays_s() == ()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": 1001}, "attempts=1001"),
        ({"first_s": -1}, "first_s=-1"),
        ({"first_s": 700}, "first_s=700 must be 0 to cap_s=600"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"cap_s": 8 * 86_400}, "7 days"),
        ({"jitter": 2}, "jitter=2"),
        ({"attempts": 100, "factor": 1.01}, "more than 16 different delays"),
    ],
)
def test_numbers_that_cannot_work_are_named(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetryPolicy(**numbers)


def test_nan_is_no_number_of_a_policy() -> None:
    for name in ("first_s", "factor", "cap_s", "jitter"):
        with pytest.raises(ConfigError):
            RetryPolicy(**{name: float("nan")})


@given(st.integers(1, 1000), st.floats(0, 600), st.floats(1, 1e300), st.floats(600, 604_800))
def test_every_delay_is_between_the_first_and_the_cap(attempts: int, first: float, factor: float, cap: float) -> None:
    try:
        policy = RetryPolicy(attempts, first, factor, cap)
    except ConfigError:
        return
    delays = [policy.delay_s(n) for n in range(1, attempts + 1)]
    assert delays == sorted(delays)
    assert all(first <= delay <= cap for delay in delays)


@pytest.mark.parametrize("delay_s", [-1, 8 * 86_400, float("nan"), float("inf")])
def test_a_wait_outside_a_week_is_refused(delay_s: float) -> None:
    with pytest.raises(ValueError, match="delay_s"):
        RetryLater(delay_s)
