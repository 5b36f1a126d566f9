"""The caller's connection in, a way to run statements in the caller's transaction out.

A writer never commits, rolls back or begins: the row exists exactly when the caller's transaction commits. A sync call
refuses an async connection, so that a forgotten ``await`` cannot lose an event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from typing import Any, Literal, Protocol

from pipeline.errors import ConfigError
from pipeline.outbox import Statement

__all__ = ["AsyncConnection", "AsyncExecute", "Connection", "Execute", "async_executor", "bare", "executor", "outside"]

Execute = Callable[[Statement], list[tuple[Any, ...]]]
AsyncExecute = Callable[[Statement], Awaitable[list[tuple[Any, ...]]]]


class Commit(Protocol):
    """psycopg's and psycopg2's connection, SQLAlchemy's Connection and Session, Django's of ``connections``."""

    def commit(self) -> None:
        """Commit the transaction. Never called here."""


class AsyncCommit(Protocol):
    """psycopg's AsyncConnection, SQLAlchemy's AsyncConnection and AsyncSession."""

    async def commit(self) -> None:
        """Commit the transaction. Never called here."""


class AsyncpgConnection(Protocol):
    """asyncpg's."""

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open."""


class Stand(Protocol):
    """What stands for a connection: Django's ``connection``, what asyncpg's pool gives."""

    def __getattr__(self, name: str, /) -> Any:
        """Ask the connection that it stands for."""


# For type checkers: what commits when it is told to, so that one whose commit is awaited does not fit.
Connection = Commit | Stand
AsyncConnection = AsyncCommit | AsyncpgConnection | Stand

_WRITERS = {
    "psycopg": "pipeline.writers.psycopg",
    "psycopg2": "pipeline.writers.psycopg2",
    "sqlalchemy": "pipeline.writers.sqlalchemy",
    "django": "pipeline.writers.django",
    "asyncpg": "pipeline.writers.asyncpg",
}
"""First part of the module that a connection's class (or a base of it) comes from → the writer's module.

Each has ``kind(conn)``: "sync", "async", or "" for what is no connection; ``executor`` and ``async_executor``; and
``AWAITED`` where asynchronous code has another way to it than the usual. A connection of another kind may bring the
same in an attribute ``__pipeline_writer__``.
"""


def executor(conn: object) -> Execute:
    """Return how to run a statement on ``conn``.

    Raises ConfigError for an async connection, outside a transaction, or for what is no connection at all.
    """
    conn = bare(conn)
    writer = _writer(conn, "sync")
    return writer.executor(conn)  # type: ignore[no-any-return]


def async_executor(conn: object) -> AsyncExecute:
    """Return how to run a statement on an async ``conn``. Raises ConfigError as ``executor`` does."""
    conn = bare(conn)
    writer = _writer(conn, "async")
    return writer.async_executor(conn)  # type: ignore[no-any-return]


def bare(conn: Any) -> Any:  # of whichever class it is
    """Return the driver's own connection, out of a proxy that a tracer put around it (wrapt's, as Datadog's is)."""
    while hasattr(type(conn), "__wrapped__"):
        conn = conn.__wrapped__
    return conn


def outside(remedy: str) -> ConfigError:
    """Return the refusal of a connection on which every statement commits by itself."""
    return ConfigError(
        "publishing outside a transaction: the connection is in autocommit mode, so the row and the business change "
        "would commit apart from each other",
        remedy=remedy,
    )


_WRONG_CALL = {
    "async": (
        "{0} is an async connection, and this call is not awaited",
        "await app.apublish(conn, event) or await app.aenqueue(conn, job)",
    ),
    "sync": (
        "{0} is not an async connection",
        "app.publish(conn, event) or app.enqueue(conn, job), without await",
    ),
}


def _writer(conn: object, wanted: Literal["sync", "async"]) -> Any:
    for writer in _writers(conn):
        found = writer.kind(conn)
        if found == wanted:
            return writer
        if found:
            what, remedy = _WRONG_CALL[found]
            raise ConfigError(what.format(type(conn).__name__), remedy=getattr(writer, "AWAITED", remedy))
    raise ConfigError(
        f"{type(conn).__module__}.{type(conn).__qualname__} is not a database connection that is known here",
        remedy="pass the connection (or SQLAlchemy session) of your transaction, not a pool, an engine or a cursor; "
        f"known are those of {', '.join(_WRITERS)}",
    )


def _writers(conn: object) -> Iterator[Any]:
    own = getattr(conn, "__pipeline_writer__", None)
    if own is not None:
        yield own
    for base in type(conn).__mro__:
        module = _WRITERS.get(base.__module__.split(".")[0])
        if module:
            yield import_module(module)
