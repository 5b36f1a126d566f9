"""Statements in, executed on the caller's psycopg 3 connection, sync or async.

Nothing is left prepared on the server, so that a pooler may give each transaction another server connection.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from pipeline.outbox import Statement
from pipeline.writers import AsyncExecute, Execute, bare, outside
from pipeline.writers.dbapi import translated

__all__ = ["async_executor", "executor", "kind"]

_ENOUGH_FOR_COPY = 20  # rows: below, one INSERT is as quick


def kind(conn: object) -> str:
    """Tell what ``conn`` is: sync, async or neither."""
    if isinstance(conn, psycopg.Connection):
        return "sync"
    return "async" if isinstance(conn, psycopg.AsyncConnection) else ""


def executor(conn: psycopg.Connection[Any]) -> Execute:
    """Return how to run a statement on a connection."""
    conn = bare(conn)
    _check_transaction(conn)

    def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            # a cursor class of the application's own may want other placeholders
            with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
                if statement.returns:
                    return cursor.execute(statement.sql.encode(), statement.rows[0], prepare=False).fetchall()
                if _by_copy(conn, statement):
                    with cursor.copy(statement.copy.encode()) as copy:
                        for piece in statement.copy_data():
                            copy.write(piece)
                    return []
                for sql, parameters in statement.batches():
                    cursor.execute(sql.encode(), parameters, prepare=False)
                return []
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translated(error) from error

    return execute


def async_executor(conn: psycopg.AsyncConnection[Any]) -> AsyncExecute:
    """Return how to run a statement on an async connection."""
    conn = bare(conn)
    _check_transaction(conn)

    async def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
                if statement.returns:
                    await cursor.execute(statement.sql.encode(), statement.rows[0], prepare=False)
                    return await cursor.fetchall()
                if _by_copy(conn, statement):
                    async with cursor.copy(statement.copy.encode()) as copy:
                        for piece in statement.copy_data():
                            await copy.write(piece)
                    return []
                for sql, parameters in statement.batches():
                    await cursor.execute(sql.encode(), parameters, prepare=False)
                return []
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translated(error) from error

    return execute


def _by_copy(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], statement: Statement) -> bool:
    if not statement.copy or len(statement.rows) < _ENOUGH_FOR_COPY:
        return False
    # libpq has no COPY in pipeline mode; the text is UTF-8
    return conn.pgconn.pipeline_status == PipelineStatus.OFF and conn.info.encoding == "utf-8"


def _check_transaction(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse autocommit outside ``conn.transaction()``."""
    if conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        raise outside("with conn.transaction(): … around the business change and the call (async with, where it is)")
