"""A connection of the inbox in, a SQLAlchemy session within the inbox's transaction out, for handlers that ask for one.

The inbox alone begins and ends: a session that commits is refused, and one that was rolled back fails its attempt, as
the server still has what it had sent.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from pipeline.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Lent"]

C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])
_URL = "postgresql+psycopg://"


class Lent(Generic[C]):
    """A connection that is lent to one handler after another. Its engine is made once, for the first that asks.

    SQLAlchemy never begins, ends or closes what it is lent: its pool has this connection and no other.
    """

    def __init__(self, conn: C) -> None:
        self.conn: C = conn
        self._engine: Engine | AsyncEngine | None = None
        self._session: Session | AsyncSession | None = None
        self._begun = self._spoilt = False

    def session(self) -> Session | AsyncSession:
        """Return the session of the present handler. Raises ConfigError where SQLAlchemy is not installed."""
        if self._session is None:
            try:
                self._session = self._open()
            except ImportError as error:
                raise ConfigError(
                    "ctx.session: SQLAlchemy is not installed", remedy="pip install 'outbox-pipeline[sqlalchemy]'"
                ) from error
        return self._session

    def finish(self) -> None:
        """Send what the session still has to say. Raises what that raises, and SourceError where it was rolled back."""
        if self._session is not None:
            _flush(self._session)
            self._check()

    async def afinish(self) -> None:
        """Do what ``finish`` does, for a coroutine's session."""
        if self._session is not None:
            await self._session.run_sync(_flush)  # type: ignore[union-attr]  # of an async connection
            self._check()

    def end(self) -> None:
        """Forget the session. What is in the transaction stays there."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):  # of a connection that is gone: the transaction's own end says so
                session.close()
        self._begun = self._spoilt = False

    async def aend(self) -> None:
        """Do what ``end`` does, for a coroutine's session."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):
                await session.close()  # type: ignore[misc]  # of an async connection
        self._begun = self._spoilt = False

    def _open(self) -> Session | AsyncSession:
        from sqlalchemy import create_engine, event
        from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
        from sqlalchemy.orm import Session
        from sqlalchemy.pool import StaticPool

        conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] = self.conn
        if self._engine is None:
            if isinstance(conn, psycopg.AsyncConnection):

                async def creator() -> psycopg.AsyncConnection[Any]:
                    return conn

                self._engine = create_async_engine(
                    _URL, async_creator=creator, poolclass=StaticPool, pool_reset_on_return=None
                )
            else:
                self._engine = create_engine(
                    _URL, creator=lambda: conn, poolclass=StaticPool, pool_reset_on_return=None
                )
            dialect: Any = self._engine.dialect  # each engine has its own
            dialect.do_commit, dialect.do_rollback = self._refuse, self._note
            event.listen(getattr(self._engine, "sync_engine", self._engine), "begin", self._begin)
        if isinstance(self._engine, AsyncEngine):
            return AsyncSession(self._engine)
        return Session(self._engine)

    def _begin(self, _conn: object) -> None:
        self._begun = True

    def _note(self, _conn: object) -> None:
        # of what was begun: SQLAlchemy rolls back what it asks of a new connection. And after a flush that failed: an
        # error here would hide the one that it failed of
        self._spoilt = self._begun

    def _refuse(self, _conn: object) -> None:
        self._spoilt = self._begun  # SQLAlchemy takes the transaction for ended, and sends no rollback any more
        raise ConfigError(
            "ctx.session: commit",
            remedy="leave it out: the inbox commits when the handler returns; flush() sends at once",
        )

    def _check(self) -> None:
        if self._spoilt:
            raise SourceError(
                "ctx.session was rolled back, closed or told to commit, or a flush failed: not all is there",
                remedy="let the error out, or do what may fail within ctx.session.begin_nested(), a savepoint",
            )


def _flush(session: Any) -> None:  # SQLAlchemy's Session
    while (savepoint := session.get_nested_transaction()) is not None:
        savepoint.commit()
    session.flush()
