"""Command lines in, processes that can be killed, stopped and looked at out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from pipeline.local.ports import free_port

__all__ = ["Member", "wait"]

POLL_S = 0.05


def wait(done: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until ``done``; tell whether it was in time."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Member:
    """One process of the pipeline, ``pipeline <words>``, with its log in ``folder``. It can be started again."""

    def __init__(self, name: str, words: list[str], env: Mapping[str, str], folder: Path, root: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._words = words
        self._env = dict(env)
        self._root = root
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def code(self) -> int | None:
        """Exit code of a process that ended."""
        return None if self._process is None else self._process.poll()

    @property
    def started(self) -> bool:
        """Whether it is meant to run: started, and not ended by us."""
        return self._process is not None

    def start(self) -> None:
        """Start it where it does not run."""
        if self.pid is not None:
            return
        self._port = free_port(())
        self.starts += 1
        command = ["-m", "pipeline", *self._words, "--metrics-port", str(self._port)]
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts} at {time.strftime('%H:%M:%S')}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [self._env["FAULTS_PYTHON"], *command],
                env=self._env,
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self._end(signal.SIGKILL, 10)

    def terminate(self, timeout_s: float = 40) -> int | None:
        """SIGTERM; return the exit code, None where it did not end in time and was killed."""
        return self._end(signal.SIGTERM, timeout_s)

    def pause(self) -> None:
        """SIGSTOP."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def state(self) -> dict[str, Any]:
        """What ``/readyz`` says; empty where it does not answer."""
        if self.pid is None:
            return {}
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=1) as answer:
                return dict(json.load(answer))
        except HTTPError as error:
            with error:
                return dict(json.load(error))
        except (URLError, OSError, ValueError):
            return {}

    def ready(self) -> bool:
        """Tell whether it says that it is ready."""
        return bool(self.state().get("ready"))

    def last_words(self, lines: int = 6) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _end(self, how: signal.Signals, timeout_s: float) -> int | None:
        process = self._process
        if process is None:
            return None
        code: int | None = None
        if process.poll() is None:
            process.send_signal(how)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where its threads are
            time.sleep(0.5)
            process.kill()
            process.wait(10)
        self._process = None
        return code
