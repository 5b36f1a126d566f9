"""A supervisor and its processes: started again, given up, heard, asked to end. The processes are a few lines each."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from threading import Event, Thread

import pytest
from waiting import DEADLINE_S, wait_until

from pipeline.errors import BrokerError, PipelineError
from pipeline.retry import RetryPolicy
from pipeline.runtime.member import Member, supervised
from pipeline.runtime.supervisor import supervise

QUICK = RetryPolicy(attempts=4, first_s=0.02, factor=2, cap_s=0.04, jitter=0)
MEMBER = """
import json, os, signal, socket, sys
number, pipe = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
def tell(**line): pipe.sendall(json.dumps(line).encode() + bytes([10]))
def begun():
    with open(f"begun-{number}", "a") as file:
        return file.write("x") and file.tell()
"""


class Supervised:
    """``supervise`` in a thread."""

    def __init__(self, script: str, folder: Path, processes: int = 2) -> None:
        self.until, self.at_once = Event(), Event()
        self.port = 0
        self.drained: bool | None = None
        self.error: PipelineError | None = None
        self._folder = folder
        command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{MEMBER}{script}"]
        self._thread = Thread(target=self._run, args=(command, processes), daemon=True)
        self._thread.start()

    def _run(self, command: list[str], processes: int) -> None:
        try:
            self.drained = supervise(
                lambda _number: command, processes=processes, drain_timeout_s=30, metrics_port=0, until=self.until,
                at_once=self.at_once, on_port=lambda port: setattr(self, "port", port), back_off=QUICK,
            )  # fmt: skip
        except PipelineError as error:
            self.error = error

    def get(self, path: str) -> tuple[int, str]:
        wait_until(lambda: self.port)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def begun(self, number: int) -> int:
        path = self._folder / f"begun-{number}"
        return len(path.read_text()) if path.exists() else 0

    def kill(self, number: int) -> None:
        os.kill(int((self._folder / f"pid-{number}").read_text()), signal.SIGKILL)

    def end(self) -> bool | None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.drained


def test_one_that_ends_by_itself_is_started_again_and_a_crash_loop_ends_all(tmp_path: Path) -> None:
    run = Supervised(
        """
if number == 1:
    sys.exit(begun())
tell(ready=True, reasons={}, notes={})
pipe.recv(1)
""",
        tmp_path,
    )
    run.end()
    assert run.begun(1) == QUICK.attempts
    assert "process 1 ended with exit code 4, and so on: 4 times in succession" in str(run.error)


def test_what_they_say_is_one_readiness_and_one_that_is_killed_is_missed(tmp_path: Path) -> None:
    run = Supervised(
        """
again = begun() > 1
if number == 2 and again:
    pipe.recv(1)  # for ever starting
    sys.exit()
with open(f"pid-{number}", "w") as file:
    file.write(str(os.getpid()))
tell(ready=True, reasons={}, notes={"shop.billing": "with care"})
pipe.recv(1)
""",
        tmp_path,
    )
    wait_until(lambda: run.get("/readyz")[0] == 200)
    notes = {f"process {n} shop.billing": "with care" for n in (1, 2)}
    assert json.loads(run.get("/readyz")[1]) == {"ready": True, "role": "worker", "reasons": {}, "notes": notes}
    assert re.search(r'^pipeline_ready.role="worker". 1.0$', run.get("/metrics")[1], re.MULTILINE)
    assert "pipeline_worker_restarts_total 0.0" in run.get("/metrics")[1]
    run.kill(2)
    wait_until(lambda: "pipeline_worker_restarts_total 1.0" in run.get("/metrics")[1])
    wait_until(lambda: run.begun(2) == 2)
    code, state = run.get("/readyz")
    assert (code, json.loads(state)["reasons"]) == (503, {"process 2 start": "starting"})
    assert run.get("/healthz")[0] == 200
    wait_until(lambda: 'pipeline_ready{role="worker"} 0.0' in run.get("/metrics")[1])
    run.until.set()
    assert run.end()


def test_one_that_cannot_go_on_ends_all_and_says_why(tmp_path: Path) -> None:
    run = Supervised(
        """
if number == 2:
    tell(failed="no such topic: orders", remedy="create it")
    sys.exit(1)
pipe.recv(1)
begun()
""",
        tmp_path,
    )
    run.end()
    assert str(run.error) == "process 2: no such topic: orders\n  → create it"
    assert run.begun(1) == 1  # it was asked to drain, and did
    assert run.begun(2) == 0


def test_a_second_signal_reaches_those_that_drain(tmp_path: Path) -> None:
    run = Supervised(
        """
tell(ready=True, reasons={}, notes={})
pipe.recv(1)
tell(ready=False, reasons={"drain": "stopping"}, notes={})
pipe.recv(1)
begun()
sys.exit(2 if number == 1 else 0)
""",
        tmp_path,
    )
    wait_until(lambda: run.get("/readyz")[0] == 200)
    run.until.set()
    wait_until(lambda: "process 2 drain" in run.get("/readyz")[1])  # heard while they drain
    run.at_once.set()
    assert run.end() is False
    assert run.begun(1) == run.begun(2) == 1  # neither was killed


@pytest.mark.parametrize(
    ("begun", "error", "told"),
    [
        (False, ImportError("no module 'shop'"), {"failed": "ImportError: no module 'shop'", "remedy": ""}),
        (True, ImportError("no module 'late'"), None),
        (True, BrokerError("the DLQ is gone", remedy="make it"), {"failed": "the DLQ is gone", "remedy": "make it"}),
        (False, BrokerError("the broker is away", retryable=True), None),
    ],
    ids=["the application", "a crash", "for good", "what passes"],
)
def test_a_process_tells_what_starting_again_would_not_help(
    begun: bool, error: Exception, told: dict[str, str] | None
) -> None:
    ours, theirs = socket.socketpair()

    def work() -> None:
        with supervised(theirs.detach(), Event(), Event()) as on_state:
            for _ in range(3 * begun):  # the same again is not told again
                on_state({"ready": True})
            raise error

    with pytest.raises(type(error)):
        work()
    lines = [{"ready": True}] if begun else []
    with ours, ours.makefile() as heard:
        assert [json.loads(line) for line in heard] == lines + ([told] if told else [])


def test_a_process_does_not_wait_for_a_supervisor_that_is_stopped_and_tells_it_later_how_things_are() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE_S)
    with ours, supervised(theirs.detach(), Event(), Event()) as on_state:
        told = [{"ready": False, "reasons": {"start": f"{n}{'.' * 10_000}"}} for n in range(100)]
        for state in told:
            on_state(state)
        now: dict[str, object] = {"ready": True}
        with ours.makefile() as heard:
            lines = []
            while now not in lines:
                lines.append(json.loads(heard.readline()))
                on_state(now)
    assert lines[:-1] == told[: len(lines) - 1]
    assert len(lines) < len(told)


def test_one_that_cannot_be_started_is_tried_again_and_leaves_nothing_open(tmp_path: Path) -> None:
    program, handles = tmp_path / "program", _handles()
    member = Member(1, [str(program)], {}, QUICK)
    assert _handles() <= handles
    assert (member.alive, member.drained, member.failure) == (False, True, None)
    assert "could not be started (No such file or directory)" in member.state["reasons"]["start"]
    member.ask()
    program.write_text(f"#!{sys.executable}\nimport os, sys\nos.read(int(sys.argv[2]), 1)\n")
    program.chmod(0o700)
    wait_until(lambda: not member.look() and member.alive)
    member.ask()
    wait_until(lambda: not member.alive)
    program.unlink()
    wait_until(lambda: member.look() and member.failure)
    assert "could not be started (No such file or directory), and so on: 4 times" in str(member.failure)
    member.close()
    assert _handles() <= handles


def _handles() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_process_drains_when_it_is_asked_to_and_when_its_supervisor_is_gone() -> None:
    until, at_once = Event(), Event()
    ours, theirs = socket.socketpair()
    with supervised(theirs.detach(), until, at_once) as on_state:
        ours.send(b"\n")
        assert until.wait(DEADLINE_S)
        ours.send(b"\n")
        assert at_once.wait(DEADLINE_S)
        ours.close()
        on_state({"ready": True})  # nobody hears it
    until, at_once = Event(), Event()
    ours, theirs = socket.socketpair()
    with supervised(theirs.detach(), until, at_once):
        ours.close()
        assert until.wait(DEADLINE_S)
        assert not at_once.is_set()
