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
_SELDOM_S = 0.2  # what takes long is looked at less often, as looks take from the rest; passing states are not missed
_LATE = 0.05


def wait_until(what: Callable[[], T], deadline_s: float = DEADLINE_S, why: str | Callable[[], object] = "") -> T:
    """Return the first true value of ``what``; fail after the deadline with ``why``, or with what that says then."""
    begun = time.monotonic()
    while not (found := what()):
        waited_s = time.monotonic() - begun
        if waited_s > deadline_s:
            raise AssertionError(f"not within {deadline_s:.0f} s: {why() if callable(why) else why or what}")
        time.sleep(min(max(_POLL_S, waited_s * _LATE), _SELDOM_S))
    return found
