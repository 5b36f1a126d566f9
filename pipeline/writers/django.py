"""Statements in, executed on Django's connection, inside ``transaction.atomic()``."""

from __future__ import annotations

from typing import Any

import psycopg as driver
from django.core.exceptions import SynchronousOnlyOperation
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionProxy

from pipeline.errors import ConfigError
from pipeline.outbox import Statement
from pipeline.writers import Execute, outside, psycopg
from pipeline.writers.dbapi import run, translated

__all__ = ["AWAITED", "executor", "kind"]

AWAITED = (
    "Django's connections are synchronous. In an async view: await sync_to_async(place_order)(…), and in that function "
    "with transaction.atomic(): the business change and the call"
)


def kind(conn: object) -> str:
    """Tell what ``conn`` is: sync (``django.db.connection`` or one of ``connections``) or no connection."""
    return "sync" if isinstance(conn, BaseDatabaseWrapper | ConnectionProxy) else ""


def executor(conn: Any) -> Execute:
    """Return how to run a statement. Django has no types of its own."""
    if conn.vendor != "postgresql":
        raise ConfigError(
            f"Django: the outbox is in PostgreSQL, connection {conn.alias!r} is {conn.vendor}",
            remedy="pass connections['…'] of the PostgreSQL database",
        )
    try:
        autocommit = conn.get_autocommit()
    except SynchronousOnlyOperation:
        raise ConfigError("Django: publishing on an event loop", remedy=AWAITED) from None
    except Error as error:
        raise translated(error) from error
    if autocommit:
        raise outside("with transaction.atomic(): … around the business change and the call")

    def execute(statement: Statement) -> list[tuple[Any, ...]]:
        try:
            conn.validate_no_broken_transaction()
            if isinstance(conn.connection, driver.Connection):
                return psycopg.executor(conn.connection)(statement)
            with conn.cursor() as cursor:
                return run(cursor, statement)
        except Error as error:
            raise translated(error) from error

    return execute
