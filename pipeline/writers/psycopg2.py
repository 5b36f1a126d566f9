"""Statements in, executed on the caller's psycopg2 connection."""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from pipeline.outbox import Statement
from pipeline.writers import Execute, outside
from pipeline.writers.dbapi import run, translated

__all__ = ["executor", "kind"]


def kind(conn: object) -> str:
    """Tell what ``conn`` is: sync or no connection."""
    return "sync" if isinstance(conn, psycopg2.extensions.connection) else ""


def executor(conn: Any) -> Execute:
    """Return how to run a statement on a connection. psycopg2 has no types of its own."""
    if conn.autocommit and not conn.closed and conn.info.transaction_status == TRANSACTION_STATUS_IDLE:
        raise outside("conn.autocommit = False, and conn.commit() after the business change and the call")

    def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            with conn.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                return run(cursor, statement)
        except (psycopg2.Error, UnicodeEncodeError) as error:
            raise translated(error) from error

    return execute
