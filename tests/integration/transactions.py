"""A DSN in; by each driver its connection, a way to ask it for a number, and what begins and commits a transaction.

Set up so that they go through a pooler in transaction mode too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import sqlalchemy as sa
from django_connection import django_connection
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

Asked = Callable[[str], int]


@contextmanager
def by_psycopg(dsn: str) -> Iterator[tuple[Any, Asked, Callable[[], AbstractContextManager[Any]]]]:
    with psycopg.connect(dsn, autocommit=True) as conn:  # its defaults: nothing of ours is prepared
        yield conn, lambda sql: conn.execute(sql, prepare=False).fetchone()[0], conn.transaction  # type: ignore[index]


@contextmanager
def by_session(dsn: str) -> Iterator[tuple[Any, Asked, Callable[[], AbstractContextManager[Any]]]]:
    engine = sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg2"), poolclass=NullPool)
    with Session(engine) as session:
        yield session, lambda sql: session.scalar(sa.text(sql)), session.begin
    engine.dispose()


@contextmanager
def by_django(dsn: str) -> Iterator[tuple[Any, Asked, Callable[[], AbstractContextManager[Any]]]]:
    from django.db import transaction

    def asked(sql: str) -> int:
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.fetchone()[0])

    with django_connection(dsn) as conn:
        yield conn, asked, transaction.atomic


@asynccontextmanager
async def by_async_psycopg(dsn: str) -> AsyncIterator[tuple[Any, Any, Callable[[], AbstractAsyncContextManager[Any]]]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:

        async def asked(sql: str) -> int:
            found = await (await conn.execute(sql, prepare=False)).fetchone()  # type: ignore[call-overload]
            return int(found[0])

        yield conn, asked, conn.transaction


@asynccontextmanager
async def by_asyncpg(dsn: str) -> AsyncIterator[tuple[Any, Any, Callable[[], AbstractAsyncContextManager[Any]]]]:
    conn = await asyncpg.connect(dsn, statement_cache_size=0)
    yield conn, conn.fetchval, conn.transaction
    await conn.close()


def by_async_session(driver: str, **options: Any) -> Callable[[str], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[tuple[Any, Any, Callable[[], AbstractAsyncContextManager[Any]]]]:
        address = dsn.replace("postgresql", f"postgresql+{driver}")
        engine = create_async_engine(address, poolclass=NullPool, connect_args=options)
        async with AsyncSession(engine) as session:
            yield session, lambda sql: session.scalar(sa.text(sql)), session.begin
        await engine.dispose()

    return opened


WAYS = {"psycopg": by_psycopg, "sqlalchemy-session": by_session, "django": by_django}
ASYNC_WAYS = {
    "psycopg": by_async_psycopg,
    "asyncpg": by_asyncpg,
    "sqlalchemy-psycopg": by_async_session("psycopg", prepare_threshold=None),
    "sqlalchemy-asyncpg": by_async_session(
        "asyncpg",
        statement_cache_size=0,
        prepared_statement_cache_size=0,
        prepared_statement_name_func=lambda: f"__{uuid4()}__",
    ),
}
