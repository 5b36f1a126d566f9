"""A command in, one process of it after the other out; and the pipe between it and its supervisor, both ends.

A process tells its state in lines of JSON, and why it cannot go on. Each byte that the supervisor sends it is what
SIGTERM is elsewhere: the first asks for a drain, the second for an end at once. The pipe's end, which comes with the
supervisor's own however that ends, asks for a drain too: on every system, and whatever thread started the process.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import PipelineError
from pipeline.retry import RetryPolicy

__all__ = ["BACK_OFF", "Member", "supervised"]

log = logging.getLogger("pipeline.worker")

BACK_OFF = RetryPolicy(attempts=10, first_s=1, factor=2, cap_s=30)
"""How long a process that ended by itself stays down, and how often in succession it may: about 2.5 minutes in all."""

_STEADY_S = 60.0  # an end after that is not in succession to the one before
_CHUNK = 65_536


class Member:
    """One of a supervisor's processes, and the next in its place. One thread only, but for ``state``.

    ``command`` and the numbers of this member and of its end of the pipe are what is run. ``state`` is what it says of
    itself, ``failure`` why it cannot go on: it said so, or ended too often. ``holds`` is a descriptor that it has open
    for as long as it runs (-1: none).
    """

    def __init__(
        self, number: int, command: Sequence[str], env: Mapping[str, str], back_off: RetryPolicy, *, holds: int = -1
    ) -> None:
        self.number = number
        self.failure: PipelineError | None = None
        self.state: dict[str, Any] = {}
        self._command = command
        self._env = env
        self._back_off = back_off
        self._holds = () if holds < 0 else (holds,)
        self._ends = 0
        self._begun_s = self._again_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        self._heard = b""
        self._start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def drained(self) -> bool:
        """Whether it ended well when it was asked to; true of one that did not run, or was only about to."""
        return self._process is None or self._process.returncode in {0, -signal.SIGTERM}

    def look(self) -> bool:
        """Hear it, and start it again when it is time; tell whether it has ended since the last look."""
        if self._process is None:
            if time.monotonic() >= self._again_s:
                self._start()
                return self._process is None
            return False
        alive = self.alive
        self.hear()  # all that it said, when it is dead
        if not alive:
            code = self._process.returncode
            self._ended(f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        return not alive

    def hear(self) -> None:
        """Take in what it has told."""
        with suppress(OSError):  # nothing more now, or ever
            while self._pipe is not None and (data := self._pipe.recv(_CHUNK)):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "failed" in told:
                self.failure = PipelineError(f"process {self.number}: {told['failed']}", remedy=told["remedy"])
            else:
                self.state = told

    def ask(self) -> None:
        """Ask it to drain; the second time to end at once."""
        with suppress(OSError):  # it has ended
            if self._pipe is not None:
                self._pipe.send(b"\n")

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Hear it no more."""
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = None

    def _start(self) -> None:
        """Start it; where the system refuses that, which may pass, it has ended already."""
        self._heard = b""
        self._begun_s = time.monotonic()
        self.state = _not_ready("starting")
        try:
            self._pipe, theirs = socket.socketpair()
            self._pipe.setblocking(False)
            with theirs:
                fd = theirs.fileno()
                self._process = subprocess.Popen(
                    [*self._command, str(self.number), str(fd)],
                    env=self._env,
                    pass_fds=(fd, *self._holds),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # what a terminal sends is for the supervisor
                )
        except OSError as error:  # no file handle, no memory, no process more
            self._ended(f"could not be started ({error.strerror})")

    def _ended(self, how: str) -> None:
        self._process = None
        self.close()
        now = time.monotonic()
        self._ends = 1 if now - self._begun_s > _STEADY_S else self._ends + 1
        again_in_s = self._back_off.delay_s(self._ends)
        self._again_s = now + again_in_s
        self.state = _not_ready(f"{how}: again in {again_in_s:g} s")
        if self.failure is not None:
            return
        if self._back_off.exhausted(self._ends):
            self.failure = PipelineError(
                f"process {self.number} {how}, and so on: {self._ends} times in succession soon after its start",
                remedy="see what it said before, and the kernel's log when memory may be short",
            )
            return
        log.warning(
            "a worker process ended by itself",
            extra={"action": "worker.process", "number": self.number, "how": how, "again_in_s": again_in_s},
        )


@contextmanager
def supervised(
    fd: int | None, until: threading.Event, at_once: threading.Event
) -> Iterator[Callable[[dict[str, object]], None]]:
    """Be the process at the other end of the pipe ``fd``: give what takes its states. None: there is no supervisor.

    Sets ``until`` and ``at_once`` when it is asked to. The supervisor is told what is raised here, where starting again
    would not help: what does not pass by itself, and what is raised before the first state, by the application's
    own module. What the pipe has no room for is not told: a supervisor that is stopped must not make the process wait.
    """
    if fd is None:
        yield lambda _state: None
        return
    begun = False
    said: dict[str, object] = {}
    unsent = b""
    with socket.socket(fileno=fd) as pipe:
        pipe.set_inheritable(False)

        def send() -> None:
            nonlocal unsent
            with suppress(BlockingIOError):  # the supervisor does not read now
                try:
                    while unsent:
                        unsent = unsent[pipe.send(unsent, socket.MSG_DONTWAIT) :]
                except ConnectionError:  # the supervisor is gone: this process drains
                    unsent = b""

        def tell(line: dict[str, object]) -> bool:
            """Send a line, or at least its beginning; False where the one before is not sent yet."""
            nonlocal unsent
            send()
            if unsent:
                return False
            unsent = json.dumps(line).encode() + b"\n"
            send()
            return True

        def on_state(state: dict[str, object]) -> None:
            nonlocal begun, said
            begun = True
            if unsent:
                send()
            if state != said and tell(state):
                said = state

        def listen() -> None:
            with suppress(OSError):
                while pipe.recv(1):
                    (at_once if until.is_set() else until).set()
            until.set()

        threading.Thread(target=listen, name="supervisor", daemon=True).start()
        try:
            yield on_state
        except Exception as error:
            if isinstance(error, PipelineError):
                if not error.retryable:
                    tell({"failed": error.what, "remedy": error.remedy})
            elif not begun:
                tell({"failed": "".join(traceback.format_exception_only(error)).strip(), "remedy": ""})
            raise
        finally:
            with suppress(OSError):  # the supervisor is gone
                pipe.shutdown(socket.SHUT_RDWR)  # the thread that listens holds it


def _not_ready(why: str) -> dict[str, Any]:
    return {"ready": False, "reasons": {"start": why}, "notes": {}}
