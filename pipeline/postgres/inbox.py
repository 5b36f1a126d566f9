"""Handlers in, the same handlers within a transaction that holds their inbox row out.

Exactly once in effect: the row and what the handler does on ``ctx.conn`` or ``ctx.session`` are committed together, or
neither is. A second delivery finds the row and does nothing; one that comes at the same moment waits for the first
transaction. A tracked job is done, its key free and its parent told, in that transaction too.
"""

from __future__ import annotations

import inspect
import json
import threading
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable
from typing import Any

import psycopg

from pipeline.context import Context
from pipeline.definition import Handler
from pipeline.errors import SourceError
from pipeline.event import Message
from pipeline.inbox import InboxKey, InboxUnavailable
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.session import Lent

__all__ = ["Inbox"]

_ENTER = """
INSERT INTO pipeline.inbox (event_id, group_name, handler, generation) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_SETTLE = "SELECT pipeline.settle_jobs(%s)"
_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": None,  # a pooler may be in the way
}


class Inbox:
    """Connections that are kept for the next handler; as many as handlers ran side by side. Thread-safe.

    ``on_repeat`` hears of each delivery whose effects were there already.
    """

    def __init__(self, dsn: str, *, on_repeat: Callable[[Handler], None] = lambda _handler: None) -> None:
        self._dsn = alive(dsn, "pipeline-inbox")
        self._on_repeat = on_repeat
        self._idle: list[Lent[psycopg.Connection[Any]]] = []
        self._idle_async: dict[AbstractEventLoop, list[Lent[psycopg.AsyncConnection[Any]]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def around(self, handler: Handler) -> Callable[..., Any]:
        """Return what runs ``handler.function`` in its transaction; a coroutine function where that is one.

        It raises what the handler raises, and InboxUnavailable where the database is at fault.
        """
        if inspect.iscoroutinefunction(handler.function):

            async def arun(message: Message, context: Context) -> None:
                while not await self._ahandle(handler, message, context):
                    pass

            return arun

        def run(message: Message, context: Context) -> None:
            while not self._handle(handler, message, context):
                pass

        return run

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed when their handlers end."""
        with self._lock:
            self._closed = True
            idle = [
                *(lent.conn for lent in self._idle),
                *(lent.conn for one in self._idle_async.values() for lent in one),
            ]
            self._idle.clear()
            self._idle_async.clear()
        for conn in idle:
            conn.pgconn.finish()

    def _handle(self, handler: Handler, message: Message, context: Context) -> bool:
        """Handle once; False where a kept connection turned out to be gone: to be done again on another."""
        lent, kept = self._take()
        conn = lent.conn
        entered = failed = False
        try:
            with conn.transaction():
                entered = conn.execute(_ENTER, InboxKey.of(handler, context)).rowcount == 1
                if entered:
                    try:
                        handler.function(message, context.within(conn, lent.session))
                        lent.finish()
                        _look(conn, handler)
                    except BaseException:
                        failed = True
                        raise
                    finally:
                        lent.end()
                    if reports := _done(context):
                        conn.execute(_SETTLE, (reports,))
        except BaseException as error:  # noqa: BLE001 — raised again, or as what it comes to
            if _gone(error, conn) and kept and not entered:
                return False
            _raise(error, conn, failed=failed)
        finally:
            self._put(lent)
        self._ended(handler, context, entered=entered)
        return True

    async def _ahandle(self, handler: Handler, message: Message, context: Context) -> bool:
        """Do what ``_handle`` does, on an async connection."""
        lent, kept = await self._atake()
        conn = lent.conn
        entered = failed = False
        try:
            async with conn.transaction():
                entered = (await conn.execute(_ENTER, InboxKey.of(handler, context))).rowcount == 1
                if entered:
                    try:
                        await handler.function(message, context.within(conn, lent.session))
                        await lent.afinish()
                        _look(conn, handler)
                    except BaseException:
                        failed = True
                        raise
                    finally:
                        await lent.aend()
                    if reports := _done(context):
                        await conn.execute(_SETTLE, (reports,))
        except BaseException as error:  # noqa: BLE001 — raised again, or as what it comes to
            if _gone(error, conn) and kept and not entered:
                return False
            _raise(error, conn, failed=failed)
        finally:
            self._aput(lent)
        self._ended(handler, context, entered=entered)
        return True

    def _ended(self, handler: Handler, context: Context, *, entered: bool) -> None:
        if not entered:
            self._on_repeat(handler)
        elif context.entry is not None:
            context.entry.stored = True

    def _take(self) -> tuple[Lent[psycopg.Connection[Any]], bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        try:
            return Lent(psycopg.connect(self._dsn, **_OPTIONS)), False
        except psycopg.Error as error:
            raise _unavailable(error) from error

    async def _atake(self) -> tuple[Lent[psycopg.AsyncConnection[Any]], bool]:
        with self._lock:
            idle = self._idle_async.setdefault(get_running_loop(), [])
            if idle:
                return idle.pop(), True
        try:
            return Lent(await psycopg.AsyncConnection.connect(self._dsn, **_OPTIONS)), False
        except psycopg.Error as error:
            raise _unavailable(error) from error

    def _put(self, lent: Lent[psycopg.Connection[Any]]) -> None:
        with self._lock:
            if self._reusable(lent.conn):
                self._idle.append(lent)
                return
        lent.conn.close()

    def _aput(self, lent: Lent[psycopg.AsyncConnection[Any]]) -> None:
        with self._lock:
            if self._reusable(lent.conn):
                self._idle_async[get_running_loop()].append(lent)
                return
        lent.conn.pgconn.finish()

    def _reusable(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
        status = conn.info.transaction_status
        return not self._closed and not conn.closed and status == psycopg.pq.TransactionStatus.IDLE


def _look(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], handler: Handler) -> None:
    """Raise SourceError where a statement failed and the handler passed it over: a commit would undo all in silence."""
    if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
        raise SourceError(
            f"{handler.name}: a statement on ctx.conn failed, and with it the transaction",
            remedy="let the error out, or wrap it in ctx.conn.transaction() or ctx.session.begin_nested(), a savepoint",
        )


def _done(context: Context) -> str | None:
    """Return what the row of a tracked job is to say; None where there is none."""
    entry = context.entry
    return json.dumps([entry.report("done").row()]) if entry is not None and entry.job_id else None


def _gone(error: BaseException, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return isinstance(error, psycopg.OperationalError) and conn.closed


def _raise(error: BaseException, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], *, failed: bool) -> None:
    """Raise what it comes to: the handler's own error, or that the database went away under it.

    A commit that is refused (a deferred constraint) is the handler's error too.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, psycopg.Error):
        found = found.__cause__  # what SQLAlchemy, and publish, raise from it
    own = failed or isinstance(error, psycopg.IntegrityError) or found is not error
    if found is None or (own and not conn.closed):
        raise error
    raise _unavailable(found) from error


def _unavailable(error: psycopg.Error) -> InboxUnavailable:
    found = translated(error)
    return InboxUnavailable(f"inbox: {found.what}", remedy=found.remedy, retryable=True)
