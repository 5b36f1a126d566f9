"""Commands on many jobs go on where a page of them and somebody else's transaction waited for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from servers import Database

from pipeline import Job, Pipeline
from pipeline.config import PostgresSettings, Settings
from pipeline.errors import SourceError
from pipeline.job import State
from pipeline.runtime.jobs import cancel_all, retry_all

app = Pipeline("shop", topic_prefix="")


class Mail(Job, queue="email", format="json"):
    to: str


# A sequence keeps its place though the transaction rolls back.
FAIL = """
CREATE SEQUENCE public.failed;
CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('public.failed') <= {times} THEN
        RAISE EXCEPTION 'as asked' USING ERRCODE = '{code}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER fail BEFORE UPDATE ON pipeline.job FOR EACH STATEMENT EXECUTE FUNCTION public.fail();
"""


@pytest.fixture
def conn(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        yield connection


def states(conn: psycopg.Connection[Any]) -> set[State]:
    return {row[0] for row in conn.execute("SELECT state FROM pipeline.job").fetchall()}


def cancelled(settings: Settings) -> object:
    return cancel_all(settings, ["delayed"], {"queue": "shop.jobs.email"})


def sent(settings: Settings) -> object:
    return retry_all(settings, ["cancelled"], {"queue": "shop.jobs.email"})


@pytest.mark.parametrize(
    ("command", "told", "code", "times", "done"),
    [
        (cancelled, 3, "40P01", 1, True),
        (sent, (3, 0), "40P01", 1, True),
        (cancelled, None, "40P01", 2, False),
        (cancelled, None, "23514", 1, False),
    ],
)
def test_a_page_is_repeated_once_after_a_deadlock_and_after_nothing_else(
    conn: psycopg.Connection[Any],
    database: Database,
    command: Callable[[Settings], object],
    told: object,
    code: str,
    times: int,
    done: bool,
) -> None:
    settings = Settings(postgres=PostgresSettings(dsn=SecretStr(database.dsn)))
    with conn.transaction():
        app.enqueue_many(conn, [Mail(to=str(n)) for n in range(3)], delay_s=0 if command is sent else 60)
    if command is sent:
        conn.execute("UPDATE pipeline.job SET state = 'cancelled', finished_at = now()")
    before = states(conn)
    conn.execute(FAIL.format(times=times, code=code))
    if done:
        assert command(settings) == told
        assert states(conn) == {"waiting" if command is sent else "cancelled"}
    else:
        with pytest.raises(SourceError, match="as asked"):
            command(settings)
        assert states(conn) == before
