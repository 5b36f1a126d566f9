"""Parts of one job in, each of them done once out: a part's effects and how far the job is are committed together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pipeline.errors import JobError
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["Checkpoint", "connected"]

_LOAD = "SELECT checkpoint FROM pipeline.job WHERE id = %s"
_STORE = "UPDATE pipeline.job SET checkpoint = %s WHERE id = %s AND checkpoint IS NOT DISTINCT FROM %s::jsonb"


class Checkpoint:
    """How far one tracked job is, on ``conn``, which is in autocommit mode. ``value`` is None before the first part."""

    def __init__(self, conn: psycopg.Connection[Any], job_id: str) -> None:
        self._conn = conn
        self._job_id = job_id
        row = conn.execute(_LOAD, (job_id,)).fetchone()
        if row is None:
            raise JobError(f"job {job_id} has no row", remedy="leave track=False out")
        self.value: dict[str, Any] | None = row[0]

    @contextmanager
    def part(self, reached: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
        """Do one part on the connection: committed together with how far the job is then.

        Raises JobError, retryable and with nothing done, where another process has done it meanwhile.
        """
        with self._conn.transaction():
            yield self._conn
            before = None if self.value is None else json.dumps(self.value)
            done = self._conn.execute(_STORE, (json.dumps(reached), self._job_id, before))
            if done.rowcount != 1:
                raise JobError(f"job {self._job_id}: another worker goes on with it", retryable=True)
        self.value = reached


@contextmanager
def connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection in autocommit mode. Raises SourceError where there is none."""
    try:
        conn = psycopg.connect(alive(dsn, "pipeline-job"), autocommit=True)
    except psycopg.Error as error:
        raise translated(error) from error
    with conn:
        yield conn
