"""What type checkers accept and refuse: mypy in ``make check`` (an unneeded ignore is an error), pyright here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import asyncpg
import psycopg
from django.db import connection as django_connection
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from pipeline import Event, Job, Pipeline

app = Pipeline("typed")


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job):
    to: str


def accepted(conn: psycopg.Connection, connection: Connection, session: Session, event: Placed, job: Mail) -> None:
    for each in (conn, connection, session):
        app.publish(each, event)
        app.enqueue(each, job, headers={"a": "b"})
    app.publish_many(conn, [event])
    app.enqueue_many(session, (job for _ in range(3)))
    app.enqueue(job)


def accepted_too(session: scoped_session[Session], event: Placed) -> None:
    app.publish(session, event)
    app.publish(django_connection, event)


async def accepted_when_awaited(
    conn: psycopg.AsyncConnection, connection: AsyncConnection, session: AsyncSession, event: Placed, job: Mail
) -> None:
    for each in (conn, connection, session):
        await app.apublish(each, event)
        await app.aenqueue(each, job)
    await app.apublish_many(conn, [event])
    await app.aenqueue(job)


async def accepted_too_when_awaited(
    conn: asyncpg.Connection, pool: asyncpg.Pool, session: async_scoped_session[AsyncSession], event: Placed
) -> None:
    await app.apublish(conn, event)
    async with pool.acquire() as held:
        await app.apublish(held, event)
    await app.apublish(session, event)


def refused(conn: psycopg.Connection, later: psycopg.AsyncConnection, session: AsyncSession, job: Mail) -> None:
    app.publish(later, Placed(order_id="1"))  # type: ignore[arg-type]
    app.publish(session, Placed(order_id="1"))  # type: ignore[arg-type]
    app.publish(conn, job)  # type: ignore[arg-type]
    app.enqueue(later, job)  # type: ignore[call-overload]
    app.enqueue(Placed(order_id="1"))  # type: ignore[call-overload]
    app.publish("postgresql://", Placed(order_id="1"))  # type: ignore[arg-type]


async def refused_when_awaited(conn: psycopg.Connection, event: Placed) -> None:
    await app.apublish(conn, event)  # type: ignore[arg-type]
    await app.aenqueue(event)  # type: ignore[call-overload]


def test_pyright_accepts_and_refuses_the_same(tmp_path: Path) -> None:
    checker = {"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({**checker, "include": [__file__], "extraPaths": [str(Path(__file__).parents[2])]}))
    command = [sys.executable, "-m", "basedpyright", "--project", str(config), "--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
