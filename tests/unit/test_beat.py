"""Heartbeats: what they say, who is silent by them, and that no worker waits for one."""

from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pipeline import Event
from pipeline.beat import Beat, GroupBeat, RunningJob, Seen, Worker, group_beat, standing
from pipeline.definition import Handler
from pipeline.errors import BrokerError
from pipeline.kafka.beats import BeatProducer
from pipeline.metrics import PrometheusMeter
from pipeline.probes import Readiness
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.retry import RetryPolicy
from pipeline.worker.beats import Beats
from pipeline.worker.delivery import Assigned, Delivery, InFlight, Route
from pipeline.worker.gauges import Gauges
from pipeline.worker.pulse import Pulse

T0 = 1_800_000_000.0
DAY_S = 86_400.0


class Paid(Event, aggregate="paid", key="n", name="BeatPaid", format="json"):
    n: int


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(T0 + seconds, UTC)


def worker(pid: int = 7, started: float = 0, **more: Any) -> Worker:
    return Worker("shop", "host", pid, at(started), **more)


def group(name: str = "shop.billing", ages: tuple[float, ...] = (), **counts: int) -> GroupBeat:
    jobs = [RunningJob(f"e{age:g}", "Paid", 1, age) for age in ages]
    return group_beat(name, counts, failed=1, in_flight=len(jobs), jobs=jobs)


def beat(one: Worker, sent: float, *groups: GroupBeat, why: str = "") -> Beat:
    state = Readiness("worker")
    state.ready()
    if why:
        state.not_ready("shop.billing", why)
    return Beat.of(one, groups, state.state(), now_s=T0 + sent, every_s=5)


def test_a_heartbeat_is_read_as_it_was_written_and_so_is_a_newer_one() -> None:
    said = beat(worker(number=2, supervisor=1), 3, group(ages=(12.5, 0.2), done=5), why="joining the group")
    assert Beat.read(said.value()) == said
    newer = {**json.loads(said.value()), "version": 2, "mood": "good"}
    newer["groups"][0]["paused"] = 3
    assert Beat.read(json.dumps(newer).encode()) == replace(said, version=2)
    assert [Beat.read(junk) for junk in (b"", b"{}", b"\xff", b"[1]", said.value()[:-9])] == [None] * 5


def test_a_group_tells_its_oldest_jobs_and_counts_the_slow_ones() -> None:
    found = group(ages=tuple(range(1, 31)), done=9, retry=2, dead=1, skipped=4)
    assert (found.handled, found.retried, found.dead, found.failed) == (9, 2, 1, 1)
    assert (found.in_flight, found.running, found.slow, found.oldest_s) == (30, 30, 20, 30)
    assert [job.age_s for job in found.jobs] == list(range(30, 20, -1))
    assert group().oldest_s == 0


def test_two_sides_of_a_share_group_are_one_group() -> None:
    said = beat(worker(), 0, group(ages=(3, 1), done=5, dead=1), group("shop.a"), group(ages=(2,), done=1, retry=4))
    alone, together = said.groups
    assert (alone.group, together.group) == ("shop.a", "shop.billing")
    assert (together.handled, together.retried, together.dead, together.failed) == (6, 4, 1, 2)
    assert (together.in_flight, together.running, together.oldest_s) == (3, 3, 3)
    assert [job.id for job in together.jobs] == ["e3", "e2", "e1"]


def test_texts_are_bounded() -> None:
    state: dict[str, object] = {"ready": False, "reasons": {f"p{n}": "x" * 9999 for n in range(99)}, "notes": {}}
    said = Beat.of(worker(), [], state, now_s=T0, every_s=5)
    assert len(said.reasons) == 20
    assert len(said.value()) < 10_000


def states(*seen: tuple[Beat, float], now: float = 100, within_s: float = DAY_S) -> dict[str, str]:
    found = standing([Seen(one, T0 + at_s) for one, at_s in seen], now_s=T0 + now, within_s=within_s)
    return {one.beat.worker.name: one.state for one in found}


def test_who_missed_three_heartbeats_is_silent_by_the_brokers_clock() -> None:
    fast = beat(worker(1), 5000)  # its own clock says nothing
    assert states((fast, 100), (beat(worker(2), 0), 82), now=100) == {"host:1": "ready", "host:2": "silent"}
    assert states((beat(worker(2), 0), 83.1)) == {"host:2": "ready"}
    assert states((beat(worker(2), 0, why="no broker"), 99)) == {"host:2": "not ready"}
    assert states((fast, 130), now=100) == {"host:1": "ready"}  # the reader's clock is behind
    assert states((fast, 0), now=3700, within_s=3600) == {}


def test_who_takes_a_killed_ones_place_has_its_key() -> None:
    assert worker(1).key == worker(1, started=9).key == b"host:1"  # a container that was started again
    members = [worker(pid, number=number, supervisor=50) for pid, number in ((51, 1), (52, 2), (53, 1))]
    assert [one.key for one in members] == [b"host:50/1", b"host:50/2", b"host:50/1"]
    assert [one.name for one in members] == ["host:51", "host:52", "host:53"]


def test_what_is_in_a_handler_is_told_without_its_key_and_payload() -> None:
    class Engine:
        def running(self) -> list[tuple[Delivery, float]]:
            return [(first, 90.0), (second, 99.5), (first, 100.0)]  # ended meanwhile: found twice

    def delivery(offset: int, headers: dict[str, bytes | None], route: Route | None) -> Delivery:
        record = Record("paid", 0, offset, b"a-secret-key", b"a-secret-value", [], 0)
        return Delivery(Assigned("paid", 0, Progress(0, 0), None), record, headers, route, b"a-secret-key", None)

    handler = Handler("till.book", print, Paid, "paid", "shop.till", "key", RetryPolicy())
    first = delivery(4, {"id": b"e-4"}, Route(handler, print))
    second = delivery(5, {"type": b"Strange"}, None)
    gauges, in_flight = Gauges("shop.till", PrometheusMeter(CollectorRegistry()), []), InFlight()
    gauges.settled("done", 3)
    gauges.report({}, {}, in_flight=0, oldest_s=0, held=0)  # what was handed on stays counted
    gauges.settled("done", 1)
    in_flight.enter(first)
    found = Pulse("shop.till", Engine(), in_flight, gauges, lambda: 100.0).feel()  # type: ignore[arg-type]
    assert (found.handled, found.in_flight, found.running, found.slow) == (4, 1, 2, 0)
    assert found.jobs == (RunningJob("e-4", "BeatPaid", 1, 10.0), RunningJob("paid-0-5", "Strange", 1, 0.5))
    assert b"secret" not in beat(worker(), 0, found).value()


def test_a_broker_that_is_away_costs_no_time_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pipeline.worker")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        options = {"bootstrap.servers": f"127.0.0.1:{taken.getsockname()[1]}"}
        registry = CollectorRegistry()
        beats = Beats(
            lambda: BeatProducer(options, "workers", within_s=0.05), b"k", lambda: b"v", every_s=0.05,
            meter=PrometheusMeter(registry),
        )  # fmt: skip
        longest_s, deadline = 0.0, time.monotonic() + 60
        while (registry.get_sample_value("pipeline_worker_beats_lost_total") or 0) < 3 and time.monotonic() < deadline:
            began = time.thread_time()
            beats.step()
            longest_s = max(longest_s, time.thread_time() - began)
            time.sleep(0.005)
        began_s = time.monotonic()
        beats.end(gone=True)
    assert registry.get_sample_value("pipeline_worker_beats_lost_total") >= 3  # type: ignore[operator]
    assert longest_s < 0.1
    assert time.monotonic() - began_s < 5  # a second, on a machine that has time
    [said] = [one for one in caplog.records if getattr(one, "action", "") == "worker.beats"]
    assert said.levelno == logging.WARNING


def test_settings_that_no_client_can_be_made_of_end_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    def connect() -> BeatProducer:
        return BeatProducer({"no.such.setting": "1"}, "workers", within_s=1)

    with pytest.raises(BrokerError):
        connect()
    registry = CollectorRegistry()
    now = [0.0]
    beats = Beats(
        connect, b"k", lambda: b"v", every_s=5, meter=PrometheusMeter(registry), clock=lambda: now[0]
    )  # fmt: skip
    for now[0] in (0.0, 1.0, 5.0):
        beats.step()
    beats.end(gone=True)
    assert registry.get_sample_value("pipeline_worker_beats_lost_total") == 2
    assert len([one for one in caplog.records if getattr(one, "action", "") == "worker.beats"]) == 1
