"""Names of servers in, free loopback ports out.

Below the range from which systems take ports for outgoing connections, so that a port that a stopped server
comes back to is not the source port of somebody's client by then.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Collection

import psutil  # type: ignore[import-untyped]  # ships no types; stubs are a package of their own

from pipeline.errors import LocalStackError

__all__ = ["LOOPBACK", "free_port", "holder", "is_free", "is_free_soon"]

LOOPBACK = "127.0.0.1"
LOWEST, HIGHEST = 20_000, 32_000
TRIES = 200
PATIENCE_S = 1.0
POLL_S = 0.02


def free_port(taken: Collection[int], rng: random.Random | None = None) -> int:
    """Choose a loopback port that nobody listens on and that is not in ``taken``."""
    rng = rng or random.SystemRandom()
    for _ in range(TRIES):
        port = rng.randint(LOWEST, HIGHEST)
        if port not in taken and is_free(port):
            return port
    raise LocalStackError(
        f"no free port between {LOWEST} and {HIGHEST} on {LOOPBACK}",
        remedy="stop some of the servers that listen there",
        retryable=True,
    )


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def is_free_soon(port: int, patience_s: float = PATIENCE_S) -> bool:
    """As is_free, but give a killed server a moment to let go of it."""
    deadline = time.monotonic() + patience_s
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def holder(port: int) -> str:
    """Say who has this port, such as ``java (pid 71)``, as far as the system tells us."""
    try:
        found = [each for each in psutil.net_connections(kind="tcp") if each.laddr and each.laddr.port == port]
        # A listener before a client whose own end of a connection it is.
        found.sort(key=lambda each: each.status != psutil.CONN_LISTEN)
        for each in found:
            if each.pid is not None:
                return f"{psutil.Process(each.pid).name()} (pid {each.pid})"
    except psutil.Error:
        pass
    return "another program"
