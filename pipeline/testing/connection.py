"""A database connection without a database: keeps what is published and enqueued on it, and runs no SQL of yours.

A message is there exactly when its transaction committed, and is encoded as for a real outbox, so that what does not
fit its schema fails here as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from pipeline.app import Pipeline
from pipeline.event import Message
from pipeline.outbox import Statement
from pipeline.testing.cursor import AsyncFakeCursor, FakeCursor
from pipeline.testing.schemas import Schemas
from pipeline.testing.stored import Commands, Row, Tables
from pipeline.writers import AsyncExecute, Execute

__all__ = ["AsyncFakeConnection", "FakeConnection"]

M = TypeVar("M", bound=Message)


class _Writer:
    @staticmethod
    def kind(conn: object) -> str:
        return "async" if isinstance(conn, AsyncFakeConnection) else "sync"

    @staticmethod
    def executor(conn: FakeConnection) -> Execute:
        return conn.store

    @staticmethod
    def async_executor(conn: AsyncFakeConnection) -> AsyncExecute:
        async def execute(statement: Statement) -> list[tuple[Any, ...]]:
            return conn.sync.store(statement)

        return execute


class FakeConnection:
    """Shaped as psycopg's connection. ``on_commit`` hears of the rows that were committed.

    ``executed`` has your own statements, with their parameters; ``answer`` says what they return.
    """

    __pipeline_writer__ = _Writer

    def __init__(
        self,
        app: Pipeline,
        *,
        schemas: Schemas | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_commit: Callable[[Tables], None] = lambda _tables: None,
        keys: dict[str, Any] | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.executed: list[tuple[str, Any]] = []
        self.committed: list[Row] = []
        self._on_commit = on_commit
        self._answers: list[tuple[str, Sequence[tuple[Any, ...]]]] = []
        self._tables = Tables(app, schemas or Schemas(), now, commands)
        self._held = {} if keys is None else keys
        self._open = False

    # ── what a test asks ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> list[Row]:
        """Rows that exist: committed ones, and those of the open transaction."""
        return [*self.committed, *self._tables.rows]

    def messages(self, model: type[M]) -> list[M]:
        """Return the messages of a class that exist, oldest first."""
        return [row.message for row in self.rows if isinstance(row.message, model)]

    def answer(self, part: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Let statements that contain ``part`` return rows; others return none."""
        self._answers.append((part, rows))

    # ── what the code under test calls ─────────────────────────────────────────────────────────────────────────

    def execute(self, query: object, params: object = None, **options: object) -> FakeCursor:
        """Note a statement of yours."""
        return self.cursor().execute(query, params, **options)

    def cursor(self, **_options: object) -> FakeCursor:
        """Return a cursor for statements of yours."""
        return FakeCursor(self._answer)

    def store(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Run a statement of the writer."""
        self._begin()
        return self._tables.run(statement)

    @contextmanager
    def transaction(self) -> Iterator[FakeConnection]:
        """Open a transaction; inside of one, a savepoint."""
        outermost = not self._open
        self._begin()
        before = self._tables.state()
        try:
            yield self
        except BaseException:
            self._tables.restore(before)
            self._open = not outermost
            raise
        if outermost:
            self.commit()

    def commit(self) -> None:
        """Commit: what was published is on its way."""
        self._begin()
        self.committed += self._tables.rows
        for key in self._seen - set(self._tables.keys):
            self._held.pop(key, None)
        self._held.update(self._tables.keys)
        self._on_commit(self._tables)
        self._tables.clear()
        self._open = False

    def rollback(self) -> None:
        """Roll back: nothing of it ever was."""
        self._tables.clear()
        self._tables.keys = {}
        self._open = False

    def close(self) -> None:
        """Close: what was not committed is rolled back."""
        self.rollback()

    def _answer(self, query: object, params: object) -> Sequence[tuple[Any, ...]]:
        self._begin()
        self.executed.append((str(query), params))
        return next((rows for part, rows in self._answers if part in str(query)), ())

    def _begin(self) -> None:
        if not self._open:
            self._open = True
            self._tables.keys = dict(self._held)
            self._seen = set(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()


class AsyncFakeConnection:
    """The same for ``await app.apublish(conn, …)``: shaped as psycopg's AsyncConnection, over ``sync``."""

    __pipeline_writer__ = _Writer

    def __init__(self, sync: FakeConnection) -> None:
        self.sync = sync

    async def execute(self, query: object, params: object = None, **options: object) -> AsyncFakeCursor:
        """Note a statement of yours."""
        return await self.cursor().execute(query, params, **options)

    def cursor(self, **options: object) -> AsyncFakeCursor:
        """Return a cursor for statements of yours."""
        return AsyncFakeCursor(self.sync.cursor(**options))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncFakeConnection]:
        """Open a transaction; inside of one, a savepoint."""
        with self.sync.transaction():
            yield self

    async def commit(self) -> None:
        """Commit: what was published is on its way."""
        self.sync.commit()

    async def rollback(self) -> None:
        """Roll back: nothing of it ever was."""
        self.sync.rollback()

    async def close(self) -> None:
        """Close: what was not committed is rolled back."""
        self.sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        self.sync.__exit__(kind)
