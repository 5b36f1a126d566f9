"""SIGTERM and SIGINT in, events that stages look at out: the first asks for a drain, the second for an end at once.

A role that does not end in time, because a server that it asked never answers, is ended: nothing that was not
confirmed is lost by that.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["ending"]

log = logging.getLogger("pipeline")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HURRY_S = 10.0
_LOOK_S = 0.1
_FORCED = 2


@contextmanager
def ending(within_s: float | None = None) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Give the events ``until`` and ``at_once``.

    ``within_s`` after ``until`` the process ends with exit code 2, whatever it does (None: never). What comes when all
    is done is ignored: the interpreter, on its way out, would end by it, and not by its exit code.
    """
    until, at_once, ended = threading.Event(), threading.Event(), threading.Event()
    hear, told = socket.socketpair()
    told.setblocking(False)

    def listen() -> None:
        """Hear of signals here: the main thread hears of none while it is within a client library."""
        with hear, suppress(OSError):
            while number := hear.recv(1):  # of every signal that Python code takes, an application's own among them
                if number[0] in _SIGNALS:
                    (at_once if until.is_set() else until).set()

    def limit(most_s: float) -> None:
        until.wait()
        deadline = time.monotonic() + most_s
        while not ended.wait(_LOOK_S):
            now = time.monotonic()
            if at_once.is_set():
                deadline = min(deadline, now + _HURRY_S)
            if now >= deadline:
                log.error(
                    "not ended in time: a server does not answer; what was not confirmed comes again",
                    extra={"action": "ending.forced", "within_s": most_s},
                )
                os._exit(_FORCED)

    handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in _SIGNALS}
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    if within_s is not None:
        threading.Thread(target=limit, args=(within_s,), name="ending", daemon=True).start()
    try:
        yield until, at_once
        handlers = dict.fromkeys(_SIGNALS, signal.SIG_IGN)
    finally:
        ended.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        told.close()
