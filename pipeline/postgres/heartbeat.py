"""The database of an active relay in, a statement of its operator's run there now and then out.

At most one run each interval, each in a transaction of its own. A run that fails is told of and stops nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import psycopg

from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["beat"]

log = logging.getLogger(__name__)

_ANSWER_MS = 10_000


def beat(
    dsn: str,
    query: str,
    every_s: float,
    *,
    active: Callable[[], bool],
    done: threading.Event,
    statements: Sequence[str] = (),
) -> None:
    """Run ``query`` each ``every_s`` seconds while ``active``, until ``done``; ``statements`` first on a connection."""
    dsn = alive(dsn, "pipeline-heartbeat", tcp_user_timeout=_ANSWER_MS)
    conn: psycopg.Connection[object] | None = None
    failing = False
    while not done.wait(every_s):
        if not active():
            continue
        try:
            if conn is None or conn.closed:
                conn = _connected(dsn, statements)
            conn.execute(query.encode())
        except psycopg.Error as error:
            if not failing:
                found = translated(error)
                log.warning(
                    "heartbeat.action.query failed, and is tried again each %g s: %s",
                    every_s,
                    found.what,
                    extra={"action": "heartbeat.failed"},
                )
            failing = True
        else:
            if failing:
                log.info("heartbeat.action.query works again", extra={"action": "heartbeat.back"})
            failing = False
    if conn is not None:
        conn.close()


def _connected(dsn: str, statements: Sequence[str]) -> psycopg.Connection[object]:
    """Return a connection on which all statements ran. Raises psycopg.Error."""
    conn: psycopg.Connection[object] = psycopg.connect(dsn, autocommit=True)
    try:
        for statement in (f"SET statement_timeout = {_ANSWER_MS}", *statements):
            conn.execute(statement.encode())
    except psycopg.Error:
        conn.close()
        raise
    return conn
