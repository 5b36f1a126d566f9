"""Reports of jobs in, their rows changed; what people command, and what is left of a rate, out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from pipeline.definition import Queue
from pipeline.postgres.kept import KeptConnection
from pipeline.report import Child, Report

__all__ = ["JobRows"]

_MOST_CANCELLED = 100_000
_PATIENCE_S = 1.0


class JobRows:
    """One connection, made when it is needed and again after it was lost. Thread-safe: one at a time.

    ``control`` makes the answer of ``control`` from what the database says; ``most`` bounds the ids in it.
    """

    def __init__(
        self, dsn: str, control: Callable[[bool, frozenset[str], bool], Any], *, most: int = _MOST_CANCELLED
    ) -> None:
        self._kept = KeptConnection(dsn, "pipeline-jobs")
        self._control = control
        self._most = most
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection. A statement that a server never answers is cut off; its thread raises SourceError."""
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                self._kept.close()
            finally:
                self._lock.release()
        else:
            self._kept.cut()

    def settle(self, reports: Sequence[Report]) -> None:
        """Store what became of jobs."""
        with self._open() as conn:
            conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([report.row() for report in reports]),))

    def control(self, queue: str) -> Any:
        """Read what people command of a queue."""
        with self._open() as conn:
            paused = conn.execute("SELECT paused FROM pipeline.control WHERE queue = %s", (queue,)).fetchone()
            cancelled = conn.execute(_CANCELLED, (queue, self._most)).fetchall()
        return self._control(paused == (True,), frozenset(row[0] for row in cancelled), len(cancelled) == self._most)

    def cancelled(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs whose end somebody asked for."""
        with self._open() as conn:
            rows = conn.execute(_CANCELLED_OF, (list(ids),)).fetchall()
        return frozenset(row[0] for row in rows)

    def lease(self, queue: Queue, wanted: int) -> int:
        """Take tokens of a queue's rate, by the database's clock."""
        rate = queue.rate
        if rate is None:
            return wanted
        with self._open() as conn, conn.transaction():
            conn.execute(_RATE, (queue.name, rate.burst))
            row = conn.execute(_LEASE, {"queue": queue.name, "s": rate.per_second, "burst": rate.burst, "n": wanted})
            found = row.fetchone()
        return 0 if found is None else int(found[0])

    def children(self, job_id: str) -> Sequence[Child]:
        """Return the finished children of a flow, in the order in which they were given."""
        with self._open() as conn:
            rows = conn.execute(_CHILDREN, (job_id,)).fetchall()
        return [Child(*row) for row in rows]

    @contextmanager
    def _open(self) -> Iterator[psycopg.Connection[Any]]:
        with self._lock, self._kept.open() as conn:
            yield conn


_CANCELLED = """
SELECT CAST(id AS text) FROM pipeline.job
WHERE queue = %s AND cancel_at IS NOT NULL AND state IN ('waiting', 'running', 'retrying') LIMIT %s
"""

_CANCELLED_OF = """
SELECT CAST(id AS text) FROM pipeline.job
WHERE id = ANY (CAST(%s AS uuid[])) AND cancel_at IS NOT NULL AND state IN ('waiting', 'running', 'retrying')
"""

_RATE = """
INSERT INTO pipeline.rate (queue, tokens, at) VALUES (%s, %s, clock_timestamp()) ON CONFLICT DO NOTHING
"""

# clock_timestamp() is read again after waiting for another worker's lease: time must not be counted twice
_LEASE = """
WITH now AS MATERIALIZED (
    SELECT r.tokens, r.at FROM pipeline.rate AS r WHERE queue = %(queue)s FOR UPDATE
), filled AS (
    SELECT least(CAST(%(burst)s AS float8), tokens
           + CAST(%(s)s AS float8) * greatest(0, extract(epoch FROM clock_timestamp() - at))) AS tokens,
           greatest(at, clock_timestamp()) AS at FROM now
)
UPDATE pipeline.rate AS r SET tokens = f.tokens - least(CAST(%(n)s AS integer), floor(f.tokens)), at = f.at
FROM filled AS f WHERE r.queue = %(queue)s
RETURNING least(CAST(%(n)s AS integer), floor(f.tokens))
"""

_CHILDREN = """
SELECT CAST(id AS text), type, state, result FROM pipeline.job
WHERE parent = %s AND finished_at IS NOT NULL ORDER BY place
"""
