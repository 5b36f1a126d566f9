"""What the drivers with a DB-API cursor share: running a statement, and reading an error of any driver."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.errors import lookup

from pipeline.errors import PipelineError, SourceError
from pipeline.outbox import Statement
from pipeline.postgres.errors import translated as of_psycopg

__all__ = ["plain", "run", "translated"]


def run(cursor: Any, statement: Statement) -> list[tuple[Any, ...]]:
    """Run a statement on a cursor with ``%s`` parameters; UUIDs go as text, which every driver has."""
    if statement.returns:
        cursor.execute(statement.sql, plain(statement.rows[0]))
        return list(cursor.fetchall())
    for sql, parameters in statement.batches():
        cursor.execute(sql, plain(parameters))
    return []


def plain(parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the parameters with each event id as text."""
    return tuple(str(value) if type(value).__name__ == "UUID" else value for value in parameters)


def translated(error: BaseException) -> PipelineError:
    """Return the SourceError for a driver's or a framework's error, by the SQLSTATE of what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error):
            return of_psycopg(cause)
        if isinstance(cause, UnicodeEncodeError):
            return SourceError(
                f"the connection's client_encoding ({cause.encoding}) cannot hold a key or header of this message",
                remedy="client_encoding=UTF8",
            )
        state, text = _said(cause)
        if state:
            return of_psycopg(_of_state(state, text))
        cause = getattr(cause, "orig", None) or cause.__cause__
    first = str(error).partition("\n")[0]
    return SourceError(f"PostgreSQL: {type(error).__name__}: {first}")


def _said(error: BaseException) -> tuple[str, str]:
    """Return SQLSTATE ("" where there is none) and the server's message, without its detail, which quotes the row."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}  # pg8000's
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or fields.get("C") or ""
    text = getattr(getattr(error, "diag", None), "message_primary", None) or fields.get("M")
    return str(state), str(text or str(error).partition("\n")[0])


def _of_state(state: str, text: str) -> psycopg.Error:
    """Return psycopg's error of a SQLSTATE."""
    try:
        return lookup(state)(text)
    except KeyError:
        return psycopg.DatabaseError(f"{text} (SQLSTATE {state})")
