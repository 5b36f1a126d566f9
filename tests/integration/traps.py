"""A place in a transaction in, a process that is held there out: what tests of crashes at exact points share.

A trap is a trigger that waits for an advisory lock which the test has. Who comes by stops in the middle of its
statement (or of its COMMIT); once it is killed, its server process either goes on with what it was sent, or ends too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from working import wait_until

__all__ = ["Trap", "trap"]

_CAUGHT = """
SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND NOT l.granted AND l.objid = %s AND d.datname = current_database()
"""
_ALIVE = "SELECT FROM pg_stat_activity WHERE pid = ANY (%s)"


class Trap:
    """One trap. ``number`` is that of its lock."""

    def __init__(self, dsn: str, number: int) -> None:
        self._conn: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._number = number
        self._pids: list[int] = []

    def catch(self, count: int = 1) -> None:
        """Wait until so many server processes are in it."""

        def caught() -> bool:
            self._pids = self._caught()
            return len(self._pids) >= count

        wait_until(caught, 60, "somebody comes by")

    def open(self, *, goes_on: bool) -> None:
        """Let go of the server processes, whose client is dead: they go on with what they were sent, or end at once."""
        if not goes_on:
            self._conn.execute("SELECT pg_terminate_backend(p) FROM unnest(%s::int[]) AS p", (self._pids,))
        self._conn.execute("SELECT pg_advisory_unlock(%s)", (self._number,))
        wait_until(lambda: not self._conn.execute(_ALIVE, (self._pids,)).fetchone(), 60, "they have ended")

    def _caught(self) -> list[int]:
        return [row[0] for row in self._conn.execute(_CAUGHT, (self._number,)).fetchall()]

    def close(self) -> None:
        self._conn.close()


@contextmanager
def trap(
    dsn: str, table: str, event: str, when: str = "true", *, at_commit: bool = False, number: int = 1
) -> Iterator[Trap]:
    """Stop whoever does ``event`` ("INSERT") to a row of ``table`` of which ``when`` holds: then, or at its COMMIT."""
    kind = "CONSTRAINT TRIGGER" if at_commit else "TRIGGER"
    late = "DEFERRABLE INITIALLY DEFERRED" if at_commit else ""
    made = Trap(dsn, number)
    with psycopg.connect(dsn, autocommit=True) as conn:
        made._conn.execute("SELECT pg_advisory_lock(%s)", (number,))
        conn.execute(
            f"CREATE FUNCTION public.trap_{number}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" PERFORM pg_advisory_xact_lock_shared({number}); RETURN NULL; END $$".encode()
        )
        conn.execute(
            f"CREATE {kind} trap_{number} AFTER {event} ON {table} {late} FOR EACH ROW WHEN ({when})"
            f" EXECUTE FUNCTION public.trap_{number}()".encode()
        )
        try:
            yield made
        finally:
            made.close()  # with it goes its lock
            conn.execute(f"DROP FUNCTION public.trap_{number} CASCADE".encode())
