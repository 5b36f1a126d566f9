"""Statements in, executed on the caller's psycopg 3 connection, sync or async."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pipeline.errors import ConfigError
from pipeline.outbox import Statement
from pipeline.postgres.errors import translated
from pipeline.writers import AsyncExecute, Execute

__all__ = ["async_executor", "executor"]


def executor(conn: object) -> Execute | None:
    """Return how to run a statement on a ``psycopg.Connection``; None for another class."""
    if not isinstance(conn, psycopg.Connection):
        return None
    _check_transaction(conn)

    def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            with conn.cursor(row_factory=tuple_row) as cursor:
                if statement.returns:
                    return cursor.execute(statement.sql.encode(), statement.rows[0]).fetchall()
                cursor.executemany(statement.sql.encode(), statement.rows)
                return []
        except psycopg.Error as error:
            raise translated(error) from error

    return execute


def async_executor(conn: object) -> AsyncExecute | None:
    """Return how to run a statement on a ``psycopg.AsyncConnection``; None for another class."""
    if not isinstance(conn, psycopg.AsyncConnection):
        return None
    _check_transaction(conn)

    async def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            async with conn.cursor(row_factory=tuple_row) as cursor:
                if statement.returns:
                    await cursor.execute(statement.sql.encode(), statement.rows[0])
                    return await cursor.fetchall()
                await cursor.executemany(statement.sql.encode(), statement.rows)
                return []
        except psycopg.Error as error:
            raise translated(error) from error

    return execute


def _check_transaction(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Refuse autocommit outside ``conn.transaction()``: row and business change would commit apart from each other."""
    if conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        raise ConfigError(
            "publishing outside a transaction: the connection is in autocommit mode",
            remedy="with conn.transaction(): … around the business change and the call",
        )
