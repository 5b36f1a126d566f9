"""The caller's connection in, a way to run statements in the caller's transaction out.

A writer never commits, rolls back or begins: the row exists exactly when the caller's transaction commits. A sync call
refuses an async connection, so that a forgotten ``await`` cannot lose an event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from pipeline.errors import ConfigError
from pipeline.outbox import Statement

__all__ = ["AsyncExecute", "Execute", "async_executor", "executor"]

Execute = Callable[[Statement], list[tuple[Any, ...]]]
AsyncExecute = Callable[[Statement], Awaitable[list[tuple[Any, ...]]]]

_WRITERS = {"psycopg": "pipeline.writers.psycopg"}
"""First part of the module that a connection's class (or a base of it) comes from → the writer's module."""


def executor(conn: object) -> Execute:
    """Return how to run a statement on ``conn``.

    Raises ConfigError for an async connection, outside a transaction, or for what is no connection at all.
    """
    found = _writer(conn).executor(conn)
    if found is None:
        raise ConfigError(
            f"{type(conn).__name__} is an async connection, and this call is not awaited",
            remedy="await app.apublish(conn, event) or await app.aenqueue(conn, job)",
        )
    return found  # type: ignore[no-any-return]


def async_executor(conn: object) -> AsyncExecute:
    """Return how to run a statement on an async ``conn``. Raises ConfigError as ``executor`` does."""
    found = _writer(conn).async_executor(conn)
    if found is None:
        raise ConfigError(
            f"{type(conn).__name__} is not an async connection",
            remedy="app.publish(conn, event) or app.enqueue(conn, job), without await",
        )
    return found  # type: ignore[no-any-return]


def _writer(conn: object) -> Any:
    for kind in type(conn).__mro__:
        module = _WRITERS.get(kind.__module__.split(".")[0])
        if module:
            return import_module(module)
    raise ConfigError(
        f"{type(conn).__module__}.{type(conn).__qualname__} is not a database connection that is known here",
        remedy=f"pass the connection of your transaction, from one of: {', '.join(_WRITERS)}",
    )
