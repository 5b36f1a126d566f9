"""The address of a database in, one connection out: made when it is needed, and again after it was lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from pipeline.errors import SourceError
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["KeptConnection"]


class KeptConnection:
    """One connection to ``dsn``. ``close`` and ``cut`` aside, one thread at a time; after them none is made."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = alive(dsn, application_name)
        self._application_name = application_name
        self._conn: psycopg.Connection[Any] | None = None
        self._closed = False

    @contextmanager
    def open(self) -> Iterator[psycopg.Connection[Any]]:
        """Give the connection; what psycopg raises on it comes out as SourceError."""
        if self._closed:
            raise SourceError(f"PostgreSQL: {self._application_name} is closed", retryable=True)
        try:
            if self._conn is None or self._conn.closed:
                self._conn = psycopg.connect(
                    self._dsn,
                    autocommit=True,
                    prepare_threshold=None,  # a pooler may be in the way
                )
            yield self._conn
        except psycopg.Error as error:
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self._conn is not None:
                self._conn.close()  # a standby by now: the next one asks who is the primary
            raise translated(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._conn is not None:
            self._conn.close()

    def cut(self) -> None:
        """End a statement of another thread that the server never answers: it raises SourceError there."""
        self._closed = True
        if (conn := self._conn) is not None:
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)
