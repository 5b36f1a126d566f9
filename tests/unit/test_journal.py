from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import Job, Pipeline, RetryPolicy
from pipeline.definition import Handler, Queue, Rate
from pipeline.errors import ConfigError
from pipeline.postgres.jobs import JobRows
from pipeline.probes import Readiness
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.report import Entry
from pipeline.runtime.worker import _journal
from pipeline.worker import Limits
from pipeline.worker.delivery import Assigned, Delivery, Route
from pipeline.worker.gate import Begin
from pipeline.worker.journal import _BREATHE_S, _LOOK_S, Control, Journal
from pipeline.worker.settlement import Cancelled, Dead, Parked
from pipeline.worker.solitude import Solitude


class Mail(Job, queue="email", format="json"):
    n: int


class NoStore:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: pytest.fail(f"{name}: nothing is asked of the store")


@pytest.mark.parametrize(
    "event_id", [b"m15", b"", None, b"\xff", b"0190a1b2-0000-7000-8000-00000000000", b"{" + b"0" * 36]
)
def test_a_job_whose_id_no_row_can_have_is_not_told_of(event_id: bytes | None) -> None:
    journal = Journal(NoStore(), Queue("shop.jobs.email"), worker="w", health=Readiness("w"), concurrency=1)
    route = Route(Handler("h", print, Mail, "q", "g", "none", RetryPolicy()), print)
    record = Record("q", 0, 0, None, b"", [("id", event_id)], 0)
    delivery = Delivery(Assigned("q", 0, Progress(0, 0), None), record, dict(record.headers), route, None, None)
    assert journal.entry(delivery, route) is None
    told = journal.entry(
        Delivery(delivery.assigned, record, {"id": b"0190a1b2-0000-7000-8000-000000000001"}, route, None, None), route
    )
    assert told is not None


@pytest.mark.parametrize("text", ["a\0b", "half of a pair \ud800", float("nan")])
def test_a_result_that_the_database_cannot_store_fails_its_attempt_and_not_the_worker(text: object) -> None:
    entry = Entry("id", 1, 0.0, False, list)
    with pytest.raises(ConfigError, match="result"):
        entry.keep_result({"text": text})
    assert entry.result is None


def test_a_result_is_measured_in_bytes() -> None:
    entry = Entry("id", 1, 0.0, False, list)
    with pytest.raises(ConfigError, match="90002 bytes"):
        entry.keep_result("€" * 30_000)
    entry.keep_result("é" * 30_000)
    assert entry.report("done").row()["result"] == "é" * 30_000


@pytest.mark.parametrize(("done", "total"), [(float("nan"), None), (1, float("inf"))])
def test_progress_that_the_database_cannot_store_fails_its_attempt_and_not_the_worker(
    done: float, total: float | None
) -> None:
    entry = Entry("id", 1, 0.0, False, list)
    with pytest.raises(ConfigError, match="progress"):
        entry.tell_progress(done, total)
    assert not entry.news


class Idle:
    """A store that commands nothing, and an engine that notes what it is given."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.looked: list[tuple[Delivery, float]] = []
        self.hold: Callable[[], None] = lambda: None

    def settle(self, reports: Any) -> None: ...

    def control(self, queue: str) -> Control:
        return Control(False, frozenset())

    def submit(self, deliveries: list[Delivery]) -> None:
        self.hold()
        self.begun += [delivery.record.offset for delivery in deliveries]

    def running(self) -> list[tuple[Delivery, float]]:
        return self.looked

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def journal_around(
    idle: Any, rate: Rate | None = None, clock: Callable[[], float] = time.monotonic
) -> tuple[Journal, Callable[[int], Delivery]]:
    queue, health = Queue("q", rate), Readiness("w")
    journal = Journal(idle, queue, worker="w", health=health, concurrency=1, threaded=False, clock=clock)
    journal.around(idle, lambda _outcome: None, lambda error: None, Solitude().admit)
    assigned = Assigned("q", 0, Progress(0, 0), None)
    return journal, lambda n: Delivery(assigned, Record("q", 0, n, b"k", b"", [], 0), {}, None, b"k", None)


def test_what_waited_for_the_gate_is_not_overtaken_by_what_comes_when_it_opens() -> None:
    idle = Idle()
    journal, delivery = journal_around(idle)
    journal.submit([delivery(1), delivery(2)])  # nobody has asked yet whether the queue is paused
    assert idle.begun == []
    later = threading.Thread(target=lambda: journal.submit([delivery(3)]))

    def taken_and_not_handed_over() -> None:
        idle.hold = lambda: None
        later.start()
        later.join(0.3)  # as far as it comes

    idle.hold = taken_and_not_handed_over
    journal.step()
    later.join(60)
    assert idle.begun == [1, 2, 3]


def test_what_may_not_wait_for_the_rate_pays_with_the_next_tokens() -> None:
    idle, asked = Idle(), []

    def lease(_queue: Queue, wanted: int) -> int:
        asked.append(wanted)
        return min(wanted, 2)

    idle.lease = lease  # type: ignore[attr-defined]
    journal, delivery = journal_around(idle, Rate(30))
    journal.step()
    journal.begin_at_once(Begin([], [delivery(1), delivery(2), delivery(3)]))
    journal.submit([delivery(4), delivery(5)])
    begun = []
    for _ in range(4):
        journal.step()
        begun.append(len(idle.begun))
    assert asked == [3, 3, 1]  # by its block; of what came, two and one went for what had begun
    assert begun == [3, 4, 5, 5]


def test_what_ends_while_somebody_looks_what_runs_is_seen() -> None:
    idle = Idle()
    journal, delivery = journal_around(idle)
    one = delivery(1)
    one.entry = Entry("0190a1b2-0000-7000-8000-000000000001", 1, 0.0, False, list)

    def ends_just_now() -> list[tuple[Delivery, float]]:
        journal.tell((one, None))
        return []

    idle.running = ends_just_now  # type: ignore[method-assign]
    assert [found for found, _ in journal.running()] == [one]


def test_an_end_that_is_stored_is_not_overwritten_by_a_look_at_what_runs() -> None:
    idle = Idle()
    journal, delivery = journal_around(idle)
    one = delivery(1)
    one.entry = Entry("0190a1b2-0000-7000-8000-000000000001", 1, 0.0, False, list)
    one.entry.tell_progress(1, 2)
    states: list[str] = []
    idle.settle = lambda reports: states.extend(report.state for report in reports)  # type: ignore[method-assign]
    idle.looked = [(one, -100.0)]  # its thread has handed its outcome over and not left it yet
    journal.tell((one, Dead("given up")))
    journal.step()
    assert states == ["dead"]


def test_pause_and_cancel_are_obeyed_within_two_seconds() -> None:
    """They are asked for once a second by the defaults that every worker has, and obeyed in the step that asks."""
    idle, now, asked = Idle(), 1000.0, []
    commanded, ended = Control(False, frozenset()), []

    def control(_queue: str) -> Control:
        asked.append(now)
        return commanded

    idle.control = control  # type: ignore[method-assign]
    idle.cancel = ended.append  # type: ignore[attr-defined]
    journal, delivery = journal_around(idle, clock=lambda: now)
    running, other = delivery(1), delivery(2)
    for number, one in enumerate((running, other)):
        one.entry = Entry(f"0190a1b2-0000-7000-8000-00000000000{number}", 1, 0.0, False, list)
    assert running.entry is not None
    assert other.entry is not None
    idle.looked = [(running, now), (other, now)]
    journal.step()
    journal.submit([delivery(3)])
    assert (idle.begun, journal.paused) == ([3], False)

    commanded = Control(True, frozenset({running.entry.job_id}))
    for eighth in range(1, 9):
        now = 1000 + eighth / 8
        journal.step()
        journal.submit([delivery(3 + eighth)])
        if journal.paused:
            break
    assert asked == [1000, now]
    assert (journal.paused, 3 + eighth in idle.begun) == (True, False)  # in the step that asked
    assert ended == [running]
    assert (running.entry.cancelled, other.entry.cancelled) == (True, False)
    now += 1
    journal.step()
    assert ended == [running]  # told once

    commanded = Control(False, frozenset())
    now += 1
    journal.step()
    assert 3 + eighth in idle.begun
    # what is left of the two seconds is for statements: the thread steps at least this often
    assert _LOOK_S + _BREATHE_S <= 0.25


@pytest.mark.parametrize(
    ("decision", "asked"),
    [(Cancelled(), False), (Dead("given up"), False), (Parked(60, failed=True), True)],
)
def test_what_is_sent_again_after_its_end_is_not_ended_by_what_was_asked_before(decision: Any, asked: bool) -> None:
    """It comes before the next look at what people command, which is a second away."""
    idle, job_id = Idle(), "0190a1b2-0000-7000-8000-000000000001"
    idle.control = lambda _queue: Control(False, frozenset({job_id}))  # type: ignore[method-assign]
    journal, delivery = journal_around(idle, clock=lambda: 1000.0)
    route = Route(Handler("h", print, Mail, "q", "g", "none", RetryPolicy()), print)

    def come(n: int) -> Delivery:
        one = delivery(n)
        one.headers = {"id": job_id.encode()}
        one.entry = journal.entry(one, route)
        return one

    journal.step()
    first = come(1)
    assert first.entry is not None
    assert first.entry.cancelled
    journal.tell((first, decision))
    journal.step()
    again = come(2).entry
    assert again is not None
    assert again.cancelled == asked


def test_workers_have_the_second_that_the_journal_has_of_its_own() -> None:
    app = Pipeline("shop", topic_prefix="")
    app.job(Mail)(lambda job, ctx: None)
    (group,) = app.groups.values()
    journal = _journal(app, group, JobRows("", Control), Readiness("w"), Limits())
    assert journal is not None
    assert (journal._control_s, journal._threaded) == (1.0, True)
