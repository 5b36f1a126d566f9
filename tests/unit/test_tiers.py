from __future__ import annotations

from typing import Any

from pipeline import Job, RetryPolicy
from pipeline.definition import Handler
from pipeline.headers import Origin, RetryState
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.worker.delivery import Assigned, Delivery, Route
from pipeline.worker.tiers import Due, Tiers

TIERS = (0.0, 5.0, 20.0)


class Mail(Job, queue="email"):
    n: int


def tiers(chance: float = 0.0) -> Tiers:
    return Tiers(TIERS, lambda: chance)


def delivery(
    assigned: Assigned, *, written_ms: int, due_ms: int | None, jitter: float = 0.0, offset: int = 0
) -> Delivery:
    record = Record("t", 0, offset, None, b"x" * 10, [], written_ms)
    policy = RetryPolicy(jitter=jitter)
    route = Route(Handler("h", print, Mail, "q", "g", "none", policy), print)
    state = None if due_ms is None else RetryState(Origin("q", 0, 0, 0), 2, due_ms)
    return Delivery(assigned, record, {}, route, None, state)


def add(room: Tiers, one: Delivery, now_ms: int) -> Due:
    due = Due()
    room.add(one, now_ms, due)
    return due


def five(**more: Any) -> Assigned:
    return Assigned("g.retry.5s", 0, Progress(0, 0), 5.0)


def test_what_is_due_is_handled_at_once_and_nothing_is_paused() -> None:
    room, one = tiers(), delivery(five(), written_ms=0, due_ms=5000)
    due = add(room, one, 5000)
    assert (due.now, due.pause) == ([one], [])


def test_a_head_that_is_not_due_pauses_its_partition_until_it_is() -> None:
    room, assigned = tiers(), five()
    one = delivery(assigned, written_ms=0, due_ms=5000)
    due = add(room, one, 1000)
    assert (due.now, due.pause) == ([], [assigned])
    assert room.wake(4999).now == []
    woken = room.wake(5000)
    assert (woken.now, woken.resume) == ([one], [assigned])


def test_jitter_of_the_head_does_not_block_those_behind_it() -> None:
    room, assigned = tiers(chance=1.0), five()
    first = delivery(assigned, written_ms=0, due_ms=5000, jitter=0.5)
    second = delivery(assigned, written_ms=100, due_ms=5100, offset=1)
    assert add(room, first, 5000).pause == []
    assert add(room, second, 5100).now == [second]
    assert room.wake(7499).now == []
    assert room.wake(7500).now == [first]


def test_what_is_due_much_later_moves_to_the_longest_tier_that_fits() -> None:
    room, assigned = tiers(), five()
    one = delivery(assigned, written_ms=0, due_ms=60_000)
    add(room, one, 10)
    woken = room.wake(5000)
    assert (woken.now, woken.move) == ([], [one])


def test_what_is_due_a_little_later_waits_without_holding_the_partition() -> None:
    room, assigned = tiers(), five()
    one = delivery(assigned, written_ms=0, due_ms=8000)
    add(room, one, 10)
    woken = room.wake(5000)
    assert (woken.now, woken.move, woken.resume) == ([], [], [assigned])
    assert room.wake(8000).now == [one]


def test_a_newer_workers_record_moves_on_but_not_in_a_hurry() -> None:
    room = tiers()
    one = delivery(Assigned("g.retry.0s", 0, Progress(0, 0), 0.0), written_ms=0, due_ms=None)
    assert add(room, one, 10).move == []
    assert room.wake(29_999).move == []
    assert room.wake(30_000).move == [one]


def test_a_full_room_pauses_and_skips_jitter() -> None:
    room, assigned = tiers(chance=1.0), Assigned("g.retry.0s", 0, Progress(0, 0), 0.0)
    paused = []
    for offset in range(1000):
        due = add(room, delivery(assigned, written_ms=0, due_ms=1000 + offset, offset=offset), 10)
        paused += due.pause
    assert paused == [assigned]
    woken = room.wake(1000)
    assert len(woken.now) == 1
    assert woken.resume == [assigned]


def test_a_partition_that_goes_takes_its_records_along() -> None:
    room, assigned, other = tiers(), five(), five()
    one, two = (delivery(a, written_ms=0, due_ms=5000) for a in (assigned, other))
    add(room, one, 10)
    add(room, two, 10)
    assert room.drop(assigned) == [one]
    woken = room.wake(5000)
    assert (woken.now, woken.resume) == ([two], [other])
    assert room.next_ms() is None
