"""Which ticks a schedule makes, on days with and without a change of clocks."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.schedule import Missed, Schedule

BERLIN = ZoneInfo("Europe/Berlin")


def schedule(cron: str, zone: str = "Europe/Berlin", missed: Missed = "all") -> Schedule:
    return Schedule("s", cron, zone, "q", missed=missed)


def local(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, tzinfo=BERLIN, fold=fold).astimezone(UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("0 0 30 2 *", "never fires|not a cron"),
        ("0 0 31 4,6 *", "never fires|not a cron"),
        ("61 * * * *", "not a cron expression"),
        ("* * * *", "not a cron expression"),
        ("", "not a cron expression"),
    ],
)
def test_an_expression_that_cannot_work_is_a_definition_error(cron: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        schedule(cron)


@pytest.mark.parametrize("zone", ["", "Europe/Nowhere", "../etc", "+02:00"])
def test_an_unknown_zone_is_a_definition_error(zone: str) -> None:
    with pytest.raises(ConfigError, match="no time zone"):
        schedule("* * * * *", zone)


def test_what_falls_into_the_hour_that_does_not_exist_runs_right_after_it_and_once() -> None:
    ticks, _ = schedule("30 2 * * *").due(local(2026, 3, 28, 12), local(2026, 3, 30, 12))
    assert ticks == [local(2026, 3, 29, 3), local(2026, 3, 30, 2, 30)]


def test_what_has_a_fixed_hour_runs_once_when_that_hour_comes_twice() -> None:
    ticks, _ = schedule("30 2 * * *").due(local(2026, 10, 24, 12), local(2026, 10, 26, 12))
    assert ticks == [local(2026, 10, 25, 2, 30), local(2026, 10, 26, 2, 30)]


def test_what_runs_every_half_hour_goes_on_through_both() -> None:
    autumn, _ = schedule("*/30 * * * *").due(local(2026, 10, 25, 1, 59), local(2026, 10, 25, 3, 0))
    assert [b - a for a, b in itertools.pairwise(autumn)] == [timedelta(minutes=30)] * (len(autumn) - 1)
    assert len(autumn) == 5
    spring, _ = schedule("*/30 * * * *").due(local(2026, 3, 29, 1, 29), local(2026, 3, 29, 3, 31))
    assert spring == [local(2026, 3, 29, 1, 30), local(2026, 3, 29, 3), local(2026, 3, 29, 3, 30)]


@pytest.mark.parametrize(("missed", "made"), [("skip", 0), ("once", 1), ("all", 23)])
def test_ticks_at_which_nobody_ran(missed: Missed, made: int) -> None:
    last, now = local(2026, 5, 1, 0, 0), local(2026, 5, 1, 23, 30)
    ticks, decided = schedule("0 * * * *", missed=missed).due(last, now)
    assert len(ticks) == made
    assert decided == now
    assert all(tick == local(2026, 5, 1, 23) for tick in ticks[-1:])


def test_a_tick_that_is_a_moment_late_is_not_a_missed_one() -> None:
    last, now = local(2026, 5, 1, 0, 59), local(2026, 5, 1, 1, 0, 30)
    assert schedule("0 * * * *", missed="skip").due(last, now)[0] == [local(2026, 5, 1, 1)]


def test_many_missed_ticks_come_in_parts() -> None:
    plan, last, now, all_ticks = schedule("* * * * *"), local(2026, 5, 1), local(2026, 5, 1, 4, 10), []
    while last < now:
        ticks, last = plan.due(last, now)
        assert len(ticks) <= 100
        all_ticks += ticks
    assert len(set(all_ticks)) == len(all_ticks) == 250


_CRONS = st.sampled_from(
    [
        "*/7 * * * *",
        "30 2 * * *",
        "0 0 * * *",
        "15 1-3 * * *",
        "0 */2 * * *",
        "0 3 * * 1",
        "59 23 L * *",
        "*/20 * * * * *",
    ]
)
_ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "America/Havana"])


@settings(max_examples=30)
@given(
    cron=_CRONS,
    zone=_ZONES,
    begin=st.sampled_from(["2026-03-28T20", "2026-10-24T20", "2026-03-07T20", "2026-10-31T20", "2026-04-04T10"]),
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=30),
)
def test_how_often_somebody_looks_changes_nothing(cron: str, zone: str, begin: str, steps: list[int]) -> None:
    plan = schedule(cron, zone)
    start = datetime.fromisoformat(f"{begin}:00:00").replace(tzinfo=UTC)
    last, piecewise = start, []
    for step in steps:
        now = last + timedelta(seconds=step)
        while last < now:
            ticks, last = plan.due(last, now)
            piecewise += ticks
    whole, _ = plan.due(start, last, most=100_000)
    assert piecewise == whole
    assert len(set(whole)) == len(whole)


@settings(max_examples=20)
@given(cron=_CRONS, zone=_ZONES, hours=st.integers(1, 24 * 9), begin=st.sampled_from([(3, 20), (10, 20), (6, 1)]))
def test_once_makes_the_latest_that_all_would_make(cron: str, zone: str, hours: int, begin: tuple[int, int]) -> None:
    last = datetime(2026, *begin, 5, 0, 30, tzinfo=UTC)
    now = last + timedelta(hours=hours)
    every, _ = schedule(cron, zone).due(last, now, most=10_000_000)
    once, _ = schedule(cron, zone, "once").due(last, now)
    assert once[-1:] == every[-1:]
