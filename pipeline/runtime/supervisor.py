"""A command in, that many processes of it out: watched, started again when they crash, ended together.

What each says of itself becomes one readiness, what all count one ``/metrics``. They end with their supervisor, however
that ends: each reads a pipe from it, and drains when that is closed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.errors import PipelineError
from pipeline.metrics import OF_SUPERVISORS, PrometheusMeter
from pipeline.probes import serve
from pipeline.runtime.tally import FOLDER, Tally, Together

__all__ = ["supervise"]

log = logging.getLogger("pipeline.worker")

_LOOK_S = 0.1
_FIRST_S = 1.0
_CAP_S = 30.0
_STEADY_S = 60.0
_LEAVE_S = 30.0
_HURRY_S = 10.0


def supervise(
    words: Callable[[int], Sequence[str]],
    *,
    processes: int,
    drain_timeout_s: float,
    metrics_port: int | None,
    until: threading.Event,
    at_once: threading.Event,
    on_port: Callable[[int], None],
) -> bool:
    """Run ``pipeline WORDS`` in so many processes until ``until`` is set; tell whether all drained.

    ``words`` gives the command of each, by its number. It says how it is, in lines of JSON, on the file descriptor that
    follows ``--supervised``. One that says that it cannot go on ends all: raises PipelineError. Others that end by
    themselves are started again, after a crash with a pause that grows.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-metrics-") as folder:
        registry = CollectorRegistry()
        meter = PrometheusMeter(registry, OF_SUPERVISORS)
        members = [_Member(number, words(number), folder) for number in range(1, processes + 1)]
        if metrics_port is not None:
            on_port(serve(Together(registry, Tally(Path(folder))), lambda: _state(members), metrics_port))
        try:
            while not until.wait(_LOOK_S) and not any(member.failure for member in members):
                for member in members:
                    if member.look():
                        meter.add("pipeline_worker_restarts_total")
                meter.set("pipeline_worker_processes", sum(member.alive for member in members))
        finally:
            codes = _end(members, drain_timeout_s, at_once)
        if failure := next((member.failure for member in members if member.failure), None):
            raise failure
        return not any(codes)


def _end(members: Sequence[_Member], drain_timeout_s: float, at_once: threading.Event) -> list[int]:
    """Drain all, a second time without waiting, and kill at last what does not end; return their exit codes."""
    for member in members:
        member.signal(signal.SIGTERM)
    until, hurried = time.monotonic() + drain_timeout_s + _LEAVE_S, False
    while any(member.alive for member in members):
        if at_once.is_set() and not hurried:
            hurried = True
            until = time.monotonic() + _HURRY_S
            for member in members:
                member.signal(signal.SIGTERM)
        if time.monotonic() >= until:
            for member in members:
                member.signal(signal.SIGKILL)
        time.sleep(_LOOK_S / 2)
    return [member.last_code for member in members]


def _state(members: Sequence[_Member]) -> dict[str, object]:
    states = [(f"process {member.number}", member.state) for member in members]
    return {
        "ready": all(state["ready"] for _, state in states),
        "role": "worker",
        **{
            kind: {f"{name} {part}": text for name, state in states for part, text in state[kind].items()}
            for kind in ("reasons", "notes")
        },
    }


class _Member:
    """One process, and the next in its place. ``state`` is what it says of itself, ``failure`` why it cannot go on."""

    def __init__(self, number: int, words: Sequence[str], folder: str) -> None:
        self.number = number
        self.failure: PipelineError | None = None
        self.last_code = 0
        self.state: dict[str, Any] = {}
        self._words = words
        self._folder = folder
        self._crashes = 0
        self._begun = self._again_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.last_code = code
        return self._process is not None and self._process.returncode is None

    def look(self) -> bool:
        """Start it again where its time has come; tell whether it ended since the last look."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._again_at:
                self._start()
            return False
        if self.alive:
            return False
        self._process = None
        if now - self._begun > _STEADY_S or self.last_code == 0:
            self._crashes = 0
        pause_s = min(_FIRST_S * 2.0**self._crashes, _CAP_S) if self.last_code else 0.0
        self._crashes += self.last_code != 0
        self._again_at = now + pause_s
        how = (
            f"was ended by {signal.Signals(-self.last_code).name}" if self.last_code < 0 else f"ended, {self.last_code}"
        )
        self.state = _not_ready(f"{how}: again in {pause_s:g} s")
        log.warning(
            "a worker process ended by itself",
            extra={"action": "worker.process", "process": self.number, "how": how, "again_in_s": pause_s},
        )
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *self._words, "--supervised", str(fd)],
                env={**os.environ, FOLDER: self._folder},
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # what a terminal sends is for the supervisor
            )
        self._begun = time.monotonic()
        self.state = _not_ready("starting")
        threading.Thread(target=self._listen, args=(ours,), name=f"process-{self.number}", daemon=True).start()

    def _listen(self, pipe: socket.socket) -> None:
        with pipe, pipe.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                told = json.loads(line)
                if "failed" in told:
                    self.failure = PipelineError(f"process {self.number}: {told['failed']}", remedy=told["remedy"])
                else:
                    self.state = told


def _not_ready(why: str) -> dict[str, Any]:
    return {"ready": False, "reasons": {"start": why}, "notes": {}}
