"""SIGTERM and SIGINT in, events that stages look at out: the first asks for a drain, the second for an end at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ending"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Give the events ``until`` and ``at_once``.

    What comes when all is done is ignored: the interpreter, on its way out, would end by it, and not by its exit code.
    """
    until, at_once = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        (at_once if until.is_set() else until).set()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    yield until, at_once
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
