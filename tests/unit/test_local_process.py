from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from pipeline.local.process import BackgroundProcess, Launch

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
POLITE = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BackgroundProcess]:
    made = BackgroundProcess(tmp_path / "pid", tmp_path / "x.log", f"marker={tmp_path}")
    yield made
    made.kill()


def start(process: BackgroundProcess, code: str) -> int:
    folder = process.pid_file.parent
    return process.start(Launch([sys.executable, "-c", code, process.marker], dict(os.environ), folder))


def ready(process: BackgroundProcess) -> bool:
    return "ready" in process.log_tail()


def test_it_runs_in_a_session_of_its_own_without_our_streams_and_is_found_again(process: BackgroundProcess) -> None:
    pid = start(process, POLITE)
    wait_until(lambda: ready(process))
    again = BackgroundProcess(process.pid_file, process.log_file, process.marker)
    assert again.find() == pid
    assert os.getsid(pid) != os.getsid(0)
    if sys.platform == "linux":
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    assert psutil.Process(pid).ppid() != os.getpid()


def test_it_is_never_taken_for_dead_right_after_its_start(process: BackgroundProcess) -> None:
    for _ in range(20):
        pid = start(process, POLITE)
        assert all(process.find() == pid for _ in range(20))
        process.kill()


def test_stop_lets_it_end_by_itself(process: BackgroundProcess) -> None:
    start(process, POLITE)
    wait_until(lambda: ready(process))
    assert process.stop(signal.SIGTERM, deadline_s=10)
    assert process.find() is None
    assert not process.pid_file.exists()


def test_stop_kills_what_does_not_end_in_time(process: BackgroundProcess) -> None:
    start(process, STUBBORN)
    wait_until(lambda: ready(process))
    assert not process.stop(signal.SIGTERM, deadline_s=0.1)
    assert process.find() is None


def test_a_pid_that_another_program_carries_by_now_is_left_alone(process: BackgroundProcess) -> None:
    with subprocess.Popen([sys.executable, "-c", POLITE], stdout=subprocess.DEVNULL) as other:
        process.pid_file.write_text(str(other.pid))
        assert process.find() is None
        process.stop(signal.SIGTERM, deadline_s=1)
        process.kill()
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "0", "999999999"])
def test_a_broken_pid_file_means_stopped(process: BackgroundProcess, text: str) -> None:
    process.pid_file.write_text(text)
    assert process.find() is None


def test_a_program_that_ends_at_once_leaves_its_words_in_the_log(process: BackgroundProcess) -> None:
    start(process, "raise SystemExit('cannot bind')")
    wait_until(lambda: process.find() is None)
    assert "cannot bind" in process.log_tail()


def test_the_log_of_the_run_before_is_kept(process: BackgroundProcess) -> None:
    start(process, "print('first')")
    wait_until(lambda: process.find() is None)
    start(process, "print('second')")
    wait_until(lambda: "second" in process.log_tail())
    assert process.log_file.with_suffix(".log.1").read_text() == "first\n"
    assert process.log_file.stat().st_mode & 0o077 == 0
