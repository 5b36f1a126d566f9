"""Attempts of handlers in, made in processes of their own, what they came to out.

A process runs one attempt at a time and is kept for the next one. What overruns ``timeout_s`` is killed; a process that
dies fails its attempt, and another is started for the next. None outlives this process.
"""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from pipeline.context import Context
from pipeline.definition import Group, Handler
from pipeline.errors import ConfigError
from pipeline.event import Message
from pipeline.log import JsonFormatter
from pipeline.report import Entry, JobCancelled
from pipeline.worker.child import Begin, Ended, Setup, Told
from pipeline.worker.mishaps import ProcessEnded, ProcessUnavailable

__all__ = ["Processes"]

_LOOK_S = 0.2
_START_S = 60.0
_CANCEL_S = 5.0


class Processes:
    """The processes of one group, started as they are needed. ``call_of`` may be called by any thread, and waits there.

    Raises ConfigError where a process could not import what it has to run.
    """

    def __init__(self, group: Group, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = group
        self._clock = clock
        self._handlers = [handler for handler in group.handlers if handler.process]
        functions = tuple(handler.function for handler in self._handlers)
        self._setup = _importable(
            Setup(functions, group.middleware, group.lifespans, _json_level()),
            [*functions, *group.middleware, *group.lifespans, *(handler.model for handler in self._handlers)],
        )
        # the kernel ends a process with the thread that started it: this one lives as long as the worker
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"{group.name}-processes")
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._stopped = False

    def call_of(self, handler: Handler) -> Callable[[Message, Context], None]:
        """Return what makes an attempt in a process, and raises what the handler raised there."""
        number = self._handlers.index(handler)

        def call(message: Message, context: Context) -> None:
            child = self._take()
            kept = False
            try:
                child.attempt(number, message, context, self._clock)
                kept = True
            except ProcessEnded:
                raise
            except BaseException:
                kept = child.alive
                raise
            finally:
                self._give(child, kept=kept)

        return call

    def stop(self, wait_s: float) -> None:
        """End all: those without an attempt leave their lifespans within ``wait_s``, others are killed."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        for child in busy:
            child.kill()
        for child in idle:
            child.dismiss()
        until = self._clock() + wait_s
        for child in idle:
            child.await_end(max(0.0, until - self._clock()))
        self._starter.shutdown(wait=False)

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                self._all.discard(child)
                child.close()
            if self._stopped:
                raise ProcessUnavailable(f"group {self._group.name}: stopping")
        try:
            child = self._starter.submit(_Child, self._setup).result()
        except OSError as error:  # no memory, no room for a process or its pipe: not the record's fault
            raise ProcessUnavailable(
                f"group {self._group.name}: a handler's process cannot be started: {error.strerror}",
                remedy="see the machine's memory, and its limits on processes and open files",
                retryable=True,
            ) from error
        with self._lock:
            self._all.add(child)
        try:
            child.await_ready(self._group.name, self._clock)
        except BaseException:
            self._give(child, kept=False)
            raise
        return child

    def _give(self, child: _Child, *, kept: bool) -> None:
        with self._lock:
            kept = kept and not self._stopped
            if kept:
                self._idle.append(child)
            else:
                self._all.discard(child)
        if not kept:
            child.close()


class _Child:
    """One process, and the pipe to it."""

    def __init__(self, setup: bytes) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = theirs.fileno()
            code = f"import sys; sys.path[:] = {sys.path!r}; from pipeline.worker.child import main; main({fd})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=(fd,), stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._connection = Connection(ours.detach())
        self._setup = setup

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self, group: str, clock: Callable[[], float]) -> None:
        """Wait until it can take attempts. Raises ProcessUnavailable."""
        what = "did not start in time"
        try:
            self._connection.send_bytes(self._setup)
            until = clock() + _START_S
            while clock() < until and not self._connection.poll(_LOOK_S):
                pass
            if self._connection.poll(0):
                told = self._connection.recv()
                if told == "ready":
                    return
                what = f"cannot begin: {told.failure.kind}: {told.failure.message}"
        except (EOFError, OSError):
            what = f"cannot begin: it {self._end()}"
        raise ProcessUnavailable(
            f"group {group}: a handler's process {what}",
            remedy="see its error output; it imports the application and enters its lifespans",
            retryable=True,
        )

    def attempt(self, number: int, message: Message, context: Context, clock: Callable[[], float]) -> None:
        """Have one attempt made. Raises what the handler raised, TimeoutError, JobCancelled or ProcessEnded."""
        timeout_s = context.timeout_s
        entry = context.entry
        job = None if entry is None else (entry.job_id, entry.attempt, entry.begun_s)
        until = None if timeout_s is None else clock() + timeout_s
        kill_at: float | None = None
        try:
            self._connection.send(Begin(number, message, context, job))
            while True:
                now = clock()
                if until is not None and now >= until:
                    self.kill()
                    raise TimeoutError(f"killed: it ran longer than timeout_s={timeout_s}")
                if kill_at is not None and now >= kill_at:
                    self.kill()
                    raise JobCancelled
                if entry is not None and entry.cancelled and kill_at is None:
                    self._connection.send("cancel")
                    kill_at = now + _CANCEL_S
                if not self._connection.poll(_LOOK_S if until is None else min(_LOOK_S, until - now)):
                    continue
                told = self._connection.recv()
                if isinstance(told, Ended):
                    _tell(entry, told.told)
                    _raise(told)
                    return
                if isinstance(told, Told):
                    _tell(entry, told)
                elif entry is not None:
                    self._connection.send(_children(entry))
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            if hasattr(error, "pipeline_failure"):  # the handler's own
                raise
            raise ProcessEnded(
                f"the handler's process {self._end()} in the middle of the attempt",
                remedy="a crash in native code, os._exit(), or no memory left: see its error output and the kernel's",
            ) from None

    def dismiss(self) -> None:
        """Ask it to leave its lifespans and end."""
        with suppress(OSError):
            self._connection.send(None)

    def await_end(self, wait_s: float) -> None:
        """Wait for its end, and kill it then."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        self.close()

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it, and close the pipe, at which nobody may wait any more."""
        self.kill()
        self._connection.close()

    def _end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        if code is None:
            return "closed its pipe"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tell(entry: Entry | None, told: Told | None) -> None:
    if entry is None or told is None:
        return
    entry.progress, entry.total, entry.result = told.progress, told.total, told.result
    entry.news = entry.news or told.news


def _children(entry: Entry) -> Any:  # the children, or the error for the handler to see
    try:
        return entry.children()
    except Exception as error:  # noqa: BLE001 — it is the handler's
        return RuntimeError(str(error))


def _raise(ended: Ended) -> None:
    if ended.error is None:
        return
    kind, arguments, attributes = pickle.loads(ended.error)  # noqa: S301 — from our own process
    error: BaseException = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    error.pipeline_failure = ended.failure  # type: ignore[attr-defined]  # its trace is there, and not here
    raise error


def _json_level() -> str | None:
    root = logging.getLogger()
    ours = any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers)
    return logging.getLevelName(root.level).lower() if ours else None


def _importable(setup: Setup, named: list[Any]) -> bytes:
    for one in named:
        try:
            if one.__module__ == "__main__":
                raise TypeError("it stands in the main module")
            pickle.dumps(one)
        except Exception as error:  # noqa: BLE001 — pickle raises what it likes
            raise ConfigError(
                f"process=True: {one.__module__}.{one.__qualname__} cannot be imported by a process: {error}",
                remedy="let it stand at the top of a module, under its own name, with no other decorator outside",
            ) from None
    return pickle.dumps(setup)
