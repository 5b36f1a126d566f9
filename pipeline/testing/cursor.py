"""Statements of yours in, the rows that a test gave for them out: shaped as psycopg's cursors, sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Self

__all__ = ["AsyncFakeCursor", "FakeCursor", "Run"]

Row = tuple[Any, ...]
Run = Callable[[object, object], Sequence[Row]]
"""Notes a statement with its parameters; returns its rows."""


class FakeCursor:
    """What ``conn.cursor()`` and ``conn.execute(…)`` give. ``run`` answers its statements."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rows: list[Row] = []
        self.rowcount = -1

    def execute(self, query: object, params: object = None, **_options: object) -> Self:
        """Note a statement; its rows can be fetched."""
        self._rows = list(self._run(query, params))
        self.rowcount = len(self._rows)
        return self

    def executemany(self, query: object, params_seq: Iterable[object], **_options: object) -> None:
        """Note a statement for each of the parameters."""
        for params in params_seq:
            self.execute(query, params)

    def fetchone(self) -> Row | None:
        """Return the next row."""
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int = 1) -> list[Row]:
        """Return the next rows."""
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    def fetchall(self) -> list[Row]:
        """Return the rows that are left."""
        return self.fetchmany(len(self._rows))

    def close(self) -> None:
        """Close: nothing is left to fetch."""
        self._rows = []

    def __iter__(self) -> Iterator[Row]:
        while self._rows:
            yield self._rows.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncFakeCursor:
    """The same, awaited."""

    def __init__(self, sync: FakeCursor) -> None:
        self._sync = sync

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has; -1 before the first."""
        return self._sync.rowcount

    async def execute(self, query: object, params: object = None, **options: object) -> Self:
        """Note a statement; its rows can be fetched."""
        self._sync.execute(query, params, **options)
        return self

    async def executemany(self, query: object, params_seq: Iterable[object], **options: object) -> None:
        """Note a statement for each of the parameters."""
        self._sync.executemany(query, params_seq, **options)

    async def fetchone(self) -> Row | None:
        """Return the next row."""
        return self._sync.fetchone()

    async def fetchmany(self, size: int = 1) -> list[Row]:
        """Return the next rows."""
        return self._sync.fetchmany(size)

    async def fetchall(self) -> list[Row]:
        """Return the rows that are left."""
        return self._sync.fetchall()

    async def close(self) -> None:
        """Close: nothing is left to fetch."""
        self._sync.close()

    async def __aiter__(self) -> AsyncIterator[Row]:
        for row in self._sync:
            yield row

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._sync.close()
