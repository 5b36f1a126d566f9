"""Statements in, executed on the caller's asyncpg connection."""

from __future__ import annotations

from typing import Any

import asyncpg

from pipeline.outbox import Statement
from pipeline.row import numbered
from pipeline.writers import AsyncExecute, outside
from pipeline.writers.dbapi import translated

__all__ = ["async_executor", "kind"]


def kind(conn: object) -> str:
    """Tell what ``conn`` is: async or no connection."""
    return "async" if isinstance(conn, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy) else ""


def async_executor(conn: Any) -> AsyncExecute:
    """Return how to run a statement. A pool's proxy has no types of its own."""
    try:
        closed, inside = conn.is_closed(), conn.is_in_transaction()
    except asyncpg.InterfaceError as error:
        raise translated(error) from error
    if closed:
        raise translated(asyncpg.InterfaceError("the connection is closed"))
    if not inside:
        raise outside("async with conn.transaction(): … around the business change and the call")

    async def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            if statement.returns:
                return [tuple(row) for row in await conn.fetch(numbered(statement.sql), *statement.rows[0])]
            for sql, parameters in statement.batches():
                await conn.execute(numbered(sql), *parameters)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translated(error) from error
        return []

    return execute
