"""A condition in, its first true value out: how every test waits for what happens elsewhere.

A deadline is there to end a test that cannot end well, not to measure: it is long enough for two loaded cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["DEADLINE_S", "wait_until"]

T = TypeVar("T")
DEADLINE_S = 90.0
_POLL_S = 0.02


def wait_until(what: Callable[[], T], deadline_s: float = DEADLINE_S, why: str | Callable[[], object] = "") -> T:
    """Return the first true value of ``what``; fail after the deadline with ``why``, or with what that says then."""
    end = time.monotonic() + deadline_s
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:.0f} s: {why() if callable(why) else why or what}")
        time.sleep(_POLL_S)
    return found
