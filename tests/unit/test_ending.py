"""What a signal ends though it does not end by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli.consumer import consumer
from pipeline.runtime import supervisor
from pipeline.worker import beats, worker

HANGS = """
import sys, time
from pipeline.cli.ending import ending
with ending(float(sys.argv[1])) as (until, at_once):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_does_not_end_in_time_is_ended() -> None:
    command = [sys.executable, "-c", HANGS, "0.3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 2
        finally:
            process.kill()
        assert b"not ended in time" in process.stderr.read()


OWN = """
import signal
from pipeline.cli.ending import ending
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
with ending() as (until, at_once):
    print("begun", flush=True)
    input()
    until.wait(30)
    print(until.is_set(), at_once.is_set(), flush=True)
"""


def test_a_signal_that_the_application_takes_itself_ends_nothing() -> None:
    command = [sys.executable, "-c", OWN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def said() -> str:
            assert process.stdout is not None
            return process.stdout.readline().strip()

        try:
            assert said() == "begun"
            process.send_signal(signal.SIGUSR1)
            assert said() == "heard"
            process.send_signal(signal.SIGUSR1)
            assert said() == "heard"
            process.send_signal(signal.SIGTERM)
            process.stdin.write("end\n")
            process.stdin.flush()
            assert said() == "True False"  # SIGTERM asked for a drain: as the second signal, for an end at once
            assert process.wait(30) == 0
        finally:
            process.kill()


def limit_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> float:
    """How long ``consumer run`` with these has to end."""
    told: list[float] = []

    def ending(within_s: float) -> Any:
        told.append(within_s)
        raise RuntimeError("enough")

    monkeypatch.setattr("pipeline.cli.consumer.ending", ending)
    monkeypatch.setattr("pipeline.log.configure", lambda _level: None)  # for all tests after this
    CliRunner().invoke(consumer, ["run", "shop:app", *options])
    return told[0]


@pytest.mark.parametrize("drain_s", [0, 5, 30, 600])
def test_a_worker_has_as_long_as_its_parts_may_take_and_who_supervises_it_longer(
    monkeypatch: pytest.MonkeyPatch, drain_s: int
) -> None:
    drain = ("--drain-timeout", str(drain_s))
    alone = limit_of(monkeypatch, *drain)
    assert limit_of(monkeypatch, *drain, "--supervised", "1", "9") == alone
    drained_and_committed_s = drain_s + worker._LAST_COMMIT_S
    lifespans_and_processes_s = drain_s + worker._LEAVE_S
    assert alone >= drained_and_committed_s + lifespans_and_processes_s + beats._LAST_S
    killed_s = supervisor.leave_s(drain_s) + supervisor._KILL_S
    assert alone < killed_s < limit_of(monkeypatch, *drain, "--processes", "2")
    assert killed_s < limit_of(monkeypatch, *drain, "--metrics-port", "0")  # with process=True it supervises one
