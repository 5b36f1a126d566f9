"""A process before and after a test in, what the test has left behind in it out: others run there after it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from decimal import getcontext
from pathlib import Path
from typing import Any

import pytest

__all__ = ["leaves_no_trace", "left", "state"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
_OF_PYTEST = {"PYTEST_CURRENT_TEST"}


def state() -> dict[str, Any]:
    """Return what all tests of a process share, by its name."""
    root = logging.getLogger()
    known = logging.root.manager.loggerDict.items()
    return {
        **{f"${name}": value for name, value in os.environ.items() if name not in _OF_PYTEST},
        **{f"level of logger {name}": one.level for name, one in known if isinstance(one, logging.Logger)},
        **{f"handler of {number.name}": signal.getsignal(number) for number in _SIGNALS},
        "level of the root logger": root.level,
        "handlers of the root logger": [one for one in root.handlers if not type(one).__module__.startswith("_pytest")],
        "logging.disable": logging.root.manager.disable,
        "working directory": Path.cwd(),
        "sys.path": list(sys.path),
        "sys.argv": list(sys.argv),
        "time zone": time.tzname,
        "precision of decimals": getcontext().prec,
    }


def left(before: dict[str, Any]) -> list[str]:
    """Return the names of what is not as it was ``before``. A logger that is new has what level its maker likes."""
    now = state()
    gone = object()
    return [
        name
        for name in sorted({*before, *now})
        if before.get(name, gone) != now.get(name, gone) and not (name.startswith("level of") and name not in before)
    ]


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fail a test that changes its process for those that come after it, in whatever order."""
    before = state()
    yield
    traces = left(before)
    assert not traces, f"the test leaves changed: {', '.join(traces)}"
