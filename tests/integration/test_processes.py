"""Handlers in processes of their own: they crash, overrun and are left behind, and the worker goes on."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from working import Broker, running, wait_until

from pipeline import Context, Job, Pipeline
from pipeline.errors import ConfigError
from pipeline.headers import DeadLetter
from pipeline.kafka.reader import record_of
from pipeline.record import Record
from pipeline.report import Child, Entry, JobCancelled
from pipeline.testing import Harness
from pipeline.worker import Limits
from pipeline.worker.mishaps import ProcessUnavailable
from pipeline.worker.processes import Processes
from pipeline.worker.settlement import Wait, settle


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> Path:
    monkeypatch.setenv("PROCESS_TEST_DIR", str(tmp_path))
    monkeypatch.setenv("PROCESS_TEST_PREFIX", f"{prefix}.")
    return tmp_path


@pytest.fixture
def app(folder: Path) -> Pipeline:
    sys.modules.pop("cruncher", None)
    found: Pipeline = importlib.import_module("cruncher").app
    return found


def noted(folder: Path, kind: str) -> list[str]:
    return [line for path in folder.glob(f"{kind}-*") for line in path.read_text().splitlines()]


def pids(folder: Path, kind: str) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in folder.glob(f"{kind}-*")}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def put(broker: Broker, topic: str, whats: list[str], kind: str = "Crunch") -> None:
    for number, what in enumerate(whats):
        broker.put(topic, kind, {"what": what}, key=f"{kind}{number}", event_id=f"{kind}-{what}")
    broker.flush()


def test_a_process_that_crashes_overruns_or_raises_fails_its_attempt_and_the_others_go_on(
    broker: Broker, app: Pipeline, folder: Path
) -> None:
    (group,) = app.groups.values()
    broker.create(app)
    put(broker, group.topics[0], ["segfault", "exit", "overrun", "odd", "reject", "raise", "later", "well"])
    put(broker, group.topics[0], ["well"], "Soak")
    with running(broker, group, limits=Limits(concurrency=4, drain_s=10)) as worker:
        letters = {dict(m.headers())["id"].decode(): DeadLetter.of(record_of(m)) for m in broker.read(group.dlq, 6)}
        wait_until(lambda: {"later 2", "well 1", "well"} <= set(noted(folder, "done")))
        assert len(pids(folder, "entered")) > 4  # those that died were replaced
        worker.stop()
        assert worker.clean
    told = {name.removeprefix("Crunch-"): letter for name, letter in letters.items()}
    assert "SIGSEGV" in told["segfault"].error.message
    assert "exit code 3" in told["exit"].error.message
    assert "timeout_s=1.5" in told["overrun"].error.message
    assert told["odd"].error.kind.endswith("cruncher.TwoArguments")
    assert told["odd"].error.message == "1 and 2"
    assert told["reject"].error.message == "not this one"
    assert "in crunch" in told["raise"].error.trace
    assert {told[name].attempts for name in ("segfault", "exit", "overrun", "raise")} == {2}
    assert {told[name].attempts for name in ("odd", "reject")} == {1}
    assert os.getpid() not in pids(folder, "begun")
    wait_until(lambda: not any(map(alive, pids(folder, "entered"))), why="no process is left")
    assert pids(folder, "left")  # those that were idle at the end left their lifespans


@pytest.mark.parametrize("how", ["kill", "terminate twice"])
def test_no_process_outlives_its_worker(
    broker: Broker, app: Pipeline, folder: Path, cli_environment: dict[str, str], how: str
) -> None:
    (group,) = app.groups.values()
    broker.create(app)
    put(broker, group.topics[0], ["long"], "Soak")
    here = str(Path(__file__).parent)
    with (folder / "log").open("w") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "consumer", "run", "cruncher:app"],
            cwd=here,
            env={**cli_environment, **{k: os.environ[k] for k in ("PROCESS_TEST_DIR", "PROCESS_TEST_PREFIX")}},
            stderr=errors,
        )
    try:
        wait_until(lambda: noted(folder, "begun"))
        (child,) = pids(folder, "begun")
        assert alive(child)
        worker.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        if how == "terminate twice":
            os.kill(child, signal.SIGTERM)  # as from a terminal or an init that signals the whole group: it goes on
            assert alive(child)
            # two signals at one moment are one
            wait_until(lambda: "worker.draining" in (folder / "log").read_text())
            worker.send_signal(signal.SIGTERM)
        assert worker.wait(90) == (-signal.SIGKILL if how == "kill" else 2)
        wait_until(lambda: not alive(child), why="the handler's process ends")
    finally:
        worker.kill()
        worker.wait()


def test_what_no_process_could_import_or_share_is_refused(app: Pipeline) -> None:
    class Local(Job, queue="local", format="json"):
        n: int

    with pytest.raises(ConfigError, match="two processes"):
        app.job(Local, process=True, inbox=True)
    with pytest.raises(ConfigError, match="inside a function"):

        @app.job(Local, process=True)
        def local(job: Local, ctx: Context) -> None: ...


def test_where_no_process_can_be_started_the_record_waits_and_no_attempt_is_counted(
    app: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cruncher: Any = sys.modules["cruncher"]
    (group,) = app.groups.values()
    processes = Processes(group)
    handler = group.handlers[0]
    context = Context(Record("t", 0, 0, b"k", b"", [], 0), {}, "Crunch", group.name, None)
    monkeypatch.setattr(sys, "executable", str(folder / "nothing"))
    try:
        with pytest.raises(ProcessUnavailable, match="cannot be started") as raised:
            processes.call_of(handler)(cruncher.Crunch(what="well"), context)
    finally:
        processes.stop(5)
    assert isinstance(settle(raised.value, handler, attempt=1, waited=0, decoding=False), Wait)


def test_what_a_handler_tells_of_its_job_comes_back_and_its_cancellation_arrives(app: Pipeline, folder: Path) -> None:
    cruncher: Any = sys.modules["cruncher"]
    (group,) = app.groups.values()
    processes = Processes(group)
    call = {handler.model: processes.call_of(handler) for handler in group.handlers}

    def attempt(message: Job, *, cancelled: bool = False) -> Entry:
        entry = Entry("id", 1, 0.0, cancelled, lambda: [Child("c", "Crunch", "done", 7)])
        record = Record("t", 0, 0, b"k", b"", [], 0)
        call[type(message)](message, Context(record, {}, type(message).__name__, group.name, None, entry))
        return entry

    try:
        entry = attempt(cruncher.Crunch(what="tell"))
        assert (entry.progress, entry.total, entry.result, entry.news) == (1.0, 2.0, "[7]", True)
        with pytest.raises(JobCancelled):
            attempt(cruncher.Crunch(what="look"), cancelled=True)
        with pytest.raises(asyncio.CancelledError):
            attempt(cruncher.Soak(what="long"), cancelled=True)
        assert len(pids(folder, "entered")) == 1  # all by one process, which was kept
    finally:
        processes.stop(5)
    assert pids(folder, "left") == pids(folder, "entered")


def test_in_the_harness_they_run_in_line(app: Pipeline, folder: Path) -> None:
    cruncher: Any = sys.modules["cruncher"]
    harness = Harness(app, state={"pid": os.getpid()})
    harness.enqueue(cruncher.Crunch(what="later"))
    harness.run_until_idle()
    assert noted(folder, "done") == ["later 2"]
    assert pids(folder, "begun") == {os.getpid()}
