"""Statements in, executed in the transaction of the caller's SQLAlchemy 2 Connection or Session, sync or async.

On psycopg the driver's own connection is used (COPY for many rows); on any other driver plain INSERTs.
"""

from __future__ import annotations

from typing import Any

import psycopg as driver
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pipeline.errors import ConfigError
from pipeline.outbox import Statement
from pipeline.row import numbered
from pipeline.writers import AsyncExecute, Execute, outside, psycopg
from pipeline.writers.dbapi import plain, translated

__all__ = ["async_executor", "executor", "kind"]


def kind(conn: object) -> str:
    """Tell what ``conn`` is: sync, async or neither."""
    if isinstance(conn, Connection | Session | scoped_session):
        return "sync"
    return "async" if isinstance(conn, AsyncConnection | AsyncSession | async_scoped_session) else ""


def executor(conn: Connection | Session | scoped_session[Session]) -> Execute:
    """Return how to run a statement. Raises ConfigError in autocommit mode, SourceError where there is no server."""
    try:
        connection = conn if isinstance(conn, Connection) else conn.connection()
        fairy = connection.connection
    except SQLAlchemyError as error:
        raise _failed(error) from error
    _check(connection)
    if isinstance(fairy.driver_connection, driver.Connection):
        return psycopg.executor(fairy.driver_connection)

    def execute(statement: Statement) -> list[tuple[Any, ...]]:
        return _run(connection, statement)

    return execute


def async_executor(conn: AsyncConnection | AsyncSession | async_scoped_session[AsyncSession]) -> AsyncExecute:
    """Return how to run a statement on what is awaited. Raises as ``executor`` does, when it is run."""

    async def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            connection = conn if isinstance(conn, AsyncConnection) else await conn.connection()
            raw = (await connection.get_raw_connection()).driver_connection
        except SQLAlchemyError as error:
            raise _failed(error) from error
        await connection.run_sync(_check)
        if isinstance(raw, driver.AsyncConnection):
            return await psycopg.async_executor(raw)(statement)
        return await connection.run_sync(_run, statement)

    return execute


def _run(connection: Connection, statement: Statement) -> list[tuple[Any, ...]]:
    """Run a statement by SQLAlchemy, in the driver's own placeholders."""
    style = "pg8000" if connection.dialect.driver == "pg8000" else connection.dialect.paramstyle
    try:
        if statement.returns:
            found = connection.exec_driver_sql(_in_style(statement.sql, style), plain(statement.rows[0]))
            return [tuple(row) for row in found]
        for sql, parameters in statement.batches():
            connection.exec_driver_sql(_in_style(sql, style), plain(parameters))
    except SQLAlchemyError as error:
        # not from SQLAlchemy's own error, which quotes the parameters
        raise translated(error) from getattr(error, "orig", None)
    return []


def _in_style(sql: str, style: str) -> str:
    if style in {"format", "pyformat"}:
        return sql
    if style == "pg8000":
        return sql.replace("%%", "%")  # ours stand in quotes, which it leaves as they are
    if style == "numeric_dollar":
        return numbered(sql)
    raise ConfigError(
        f"SQLAlchemy: paramstyle {style!r} is not known here", remedy="psycopg, psycopg2, asyncpg or pg8000"
    )


def _check(connection: Connection) -> None:
    """Refuse another database and autocommit; SQLAlchemy begins a transaction by itself otherwise."""
    if connection.dialect.name != "postgresql":
        raise ConfigError(
            f"SQLAlchemy: the outbox is in PostgreSQL, this is {connection.dialect.name}",
            remedy="publish on a session of the engine whose database has the outbox",
        )
    fairy = connection.connection
    if getattr(fairy.dbapi_connection, "autocommit", False) and not _within(fairy.driver_connection):
        raise outside("leave isolation_level='AUTOCOMMIT' out for this engine or connection")
    if not connection.in_transaction():
        connection.begin()  # as its own execute() does: else its commit() would leave out what its driver did


def _within(conn: object) -> bool:
    """Whether a connection in autocommit mode is within a transaction nevertheless, as psycopg's may be."""
    if not isinstance(conn, driver.Connection | driver.AsyncConnection):
        return False
    return conn.info.transaction_status is not driver.pq.TransactionStatus.IDLE


def _failed(error: SQLAlchemyError) -> Exception:
    if isinstance(error, UnboundExecutionError):
        return ConfigError(
            "SQLAlchemy: the session has no engine of its own",
            remedy="session.connection(bind_arguments={'mapper': YourModel}) gives the connection to pass",
        )
    return translated(error)
