"""Attempts from a pipe in, what their handlers told and raised out: the inside of a handler's process.

Lifespans are entered here before the first attempt and left after the last. The process ends with its parent, however
that ends, and takes signals from nobody else: the parent drains it, or kills it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pipeline import log
from pipeline.context import Context
from pipeline.event import Message
from pipeline.failure import Failure, describe
from pipeline.report import Child, Entry
from pipeline.surroundings import Lifespan, Middleware, State, aenter, enter, surrounded

__all__ = ["Begin", "Ended", "Setup", "Told", "main"]

_PR_SET_PDEATHSIG = 1
_TELL_S = 0.05


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process has before its first attempt. ``json_level``: log as the parent does, from this level on."""

    functions: tuple[Callable[..., Any], ...]
    middleware: tuple[Middleware, ...]
    lifespans: tuple[Lifespan, ...]
    json_level: str | None


@dataclass(frozen=True, slots=True)
class Begin:
    """One attempt: the handler's number, and the job that it is, where that is tracked."""

    number: int
    message: Message
    context: Context
    job: tuple[str, int, float] | None


@dataclass(frozen=True, slots=True)
class Told:
    """What a handler told meanwhile; ``news`` is false where it only goes along."""

    progress: float | None
    total: float | None
    result: str | None
    news: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an attempt: nothing raised, or the pickled error and what may be told of it."""

    told: Told | None
    error: bytes | None = None
    failure: Failure | None = None


class _Entry(Entry):
    """A job's entry whose news goes to the parent."""

    def __init__(self, job: tuple[str, int, float], connection: Connection, replies: queue.SimpleQueue[Any]) -> None:
        self._news = False
        self._connection = connection
        self._replies = replies
        self._told_at = 0.0
        super().__init__(*job, False, self._ask)

    @property
    def news(self) -> bool:  # a slot there; here what is written to it goes on
        return self._news

    @news.setter
    def news(self, value: bool) -> None:
        self._news = value
        if value and time.monotonic() - self._told_at >= _TELL_S:
            self._told_at = time.monotonic()
            self._connection.send(self.tell(news=True))

    def tell(self, *, news: bool) -> Told:
        return Told(self.progress, self.total, self.result, news)

    def _ask(self) -> Sequence[Child]:
        self._connection.send("children")
        answer: Sequence[Child] | Exception = self._replies.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Process:
    """Runs attempts in the main thread; another one listens to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begins: queue.SimpleQueue[Begin | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._entry: _Entry | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False  # it may be asked for before the attempt has begun here

    def run(self) -> None:
        setup: Setup = self._connection.recv()
        if setup.json_level is not None:
            log.configure(setup.json_level)
        calls = [
            (surrounded(one, setup.middleware, awaits=inspect.iscoroutinefunction(one)), one) for one in setup.functions
        ]
        stack, astack = ExitStack(), AsyncExitStack()
        state = State(**enter(setup.lifespans, stack))
        if any(inspect.iscoroutinefunction(one) for one in setup.functions):
            vars(state).update(self._loop.run_until_complete(aenter(setup.lifespans, astack)))
        threading.Thread(target=self._listen, name="parent", daemon=True).start()
        self._connection.send("ready")
        while (begin := self._begins.get()) is not None:
            call, function = calls[begin.number]
            self._connection.send(self._attempt(begin, call, state, awaits=inspect.iscoroutinefunction(function)))
        self._loop.run_until_complete(astack.aclose())
        stack.close()

    def _attempt(self, begin: Begin, call: Callable[..., Any], state: State, *, awaits: bool) -> Ended:
        entry = self._entry = None if begin.job is None else _Entry(begin.job, self._connection, self._replies)
        context = begin.context.among(entry, state)
        ended = Ended(None)
        if entry is not None and self._cancelled:
            entry.cancelled = True
        try:
            if awaits:
                self._task = self._loop.create_task(call(begin.message, context))
                if self._cancelled:
                    self._task.cancel()
                self._loop.run_until_complete(self._task)
            else:
                call(begin.message, context)
        except BaseException as error:  # noqa: BLE001 — a handler may raise SystemExit, and the record must be settled
            ended = Ended(None, _pickled(error), describe(error, begin.message))
        finally:
            self._entry = self._task = None
        return Ended(None if entry is None else entry.tell(news=entry.news), ended.error, ended.failure)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os.kill(os.getpid(), signal.SIGKILL)  # nobody is there to tell anything to
            if message is None or isinstance(message, Begin):
                self._cancelled = False
                self._begins.put(message)
            elif message == "cancel":
                self._cancel()
            else:
                self._replies.put(message)

    def _cancel(self) -> None:
        self._cancelled = True
        entry, task = self._entry, self._task
        if entry is not None:
            entry.cancelled = True
        if task is not None:
            self._loop.call_soon_threadsafe(task.cancel)


def main(fd: int) -> None:
    """Be a handler's process, on the socket with this number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":  # code that never gives the interpreter back would not hear of the parent's end
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(socket.socket(fileno=fd).detach())
    try:
        _Process(connection).run()
    except Exception as error:  # noqa: BLE001 — the parent raises it
        failure = describe(error)
        logging.getLogger("pipeline.worker").error(
            "a handler's process cannot work", extra={"action": "worker.process", "why": failure.message}
        )
        connection.send(Ended(None, None, failure))


def _pickled(error: BaseException) -> bytes:
    """Return class, arguments and attributes, as far as they can be pickled: no constructor has to be called with them.

    A class that cannot be imported comes back as the first of its bases that can.
    """
    attributes = {name: value for name, value in vars(error).items() if _travels(value)}
    arguments = error.args if _travels(error.args) else ()
    kind = next(kind for kind in type(error).__mro__ if issubclass(kind, BaseException) and _travels(kind))
    return pickle.dumps((kind, arguments, attributes))


def _travels(value: object) -> bool:
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 — our own
    except Exception:  # noqa: BLE001 — any class may fail there in any way
        return False
    return True
