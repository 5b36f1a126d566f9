"""Unique keys of jobs that are tried again or replaced, on a real database: no two unfinished ones with one key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import pytest
from servers import Database
from waiting import wait_until

from pipeline import Job, Pipeline, jobs
from pipeline.errors import JobError
from pipeline.job import Unique
from pipeline.outbox import Steps

R = TypeVar("R")
app = Pipeline("shop", topic_prefix="")
ONE = Unique(key="one")


class Mail(Job, queue="email", format="json"):
    to: str


app.register(Mail)


@pytest.fixture
def conn(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        yield connection


def put(conn: psycopg.Connection[Any], unique: Unique = ONE) -> UUID:
    with conn.transaction():
        return app.enqueue(conn, Mail(to="a"), unique=unique)


def run(conn: psycopg.Connection[Any], steps: Steps[R]) -> R:
    with conn.transaction():
        return app.run(conn, steps)


def end(conn: psycopg.Connection[Any], job_id: UUID, state: str) -> None:
    conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([{"id": str(job_id), "state": state}]),))


def state(conn: psycopg.Connection[Any], job_id: UUID) -> str:
    return run(conn, jobs.find(job_id)).state


def holders(conn: psycopg.Connection[Any]) -> list[UUID]:
    return [row[0] for row in conn.execute("SELECT job_id FROM pipeline.job_key").fetchall()]


def outbox(conn: psycopg.Connection[Any]) -> set[UUID]:
    return {row[0] for row in conn.execute("SELECT id FROM pipeline.outbox").fetchall()}


@pytest.mark.parametrize("ended", ["dead", "cancelled"])
def test_a_job_that_is_sent_again_takes_its_key_until_it_has_finished(
    conn: psycopg.Connection[Any], ended: str
) -> None:
    job = put(conn)
    end(conn, job, ended)
    assert holders(conn) == []
    run(conn, jobs.retry(job))
    assert put(conn) == job
    with pytest.raises(JobError, match=str(job)):
        put(conn, Unique(key="one", on_conflict="reject"))
    end(conn, job, "dead")
    assert put(conn) != job


def test_it_is_refused_while_another_has_its_key_and_nothing_of_it_is_lost(conn: psycopg.Connection[Any]) -> None:
    first = put(conn)
    end(conn, first, "dead")
    second = put(conn)
    for other in ("running", "retrying"):
        with pytest.raises(JobError, match=f"held by job {second}"):
            run(conn, jobs.retry(first))
        end(conn, second, other)
    assert (state(conn, first), holders(conn)) == ("dead", [second])
    assert outbox(conn) == {first, second}
    end(conn, second, "done")
    run(conn, jobs.retry(first))
    assert (state(conn, first), holders(conn)) == ("waiting", [first])


def test_of_several_with_one_key_the_newest_is_sent_and_others_without_key_all(conn: psycopg.Connection[Any]) -> None:
    dead = []
    for _ in range(3):
        dead.append(put(conn))
        end(conn, dead[-1], "dead")
    with conn.transaction():
        free = [app.enqueue(conn, Mail(to="a")) for _ in range(2)]
    for job in free:
        end(conn, job, "dead")
    assert run(conn, jobs.retry_many([*dead, *free])) == sorted([dead[2], *free])
    assert [state(conn, one) for one in dead] == ["dead", "dead", "waiting"]
    assert outbox(conn) == {*dead, *free}


def test_a_period_goes_on_as_it_was_and_what_finished_in_it_is_in_nobodys_way(conn: psycopg.Connection[Any]) -> None:
    daily = Unique(key="one", period_s=86_400)
    first = put(conn, daily)
    end(conn, first, "dead")
    (before,) = conn.execute("SELECT until FROM pipeline.job_key").fetchall()
    run(conn, jobs.retry(first))
    assert conn.execute("SELECT until FROM pipeline.job_key").fetchall() == [before]
    end(conn, first, "dead")
    conn.execute("UPDATE pipeline.job_key SET until = now()")
    second = put(conn, daily)
    with pytest.raises(JobError, match="key"):
        run(conn, jobs.retry(first))
    end(conn, second, "done")
    run(conn, jobs.retry(first))
    assert (state(conn, first), holders(conn)) == ("waiting", [second])


def test_one_that_takes_the_key_at_the_same_moment_is_waited_for(
    conn: psycopg.Connection[Any], database: Database
) -> None:
    first = put(conn)
    end(conn, first, "dead")
    refused: list[str] = []

    def retry() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as own:
            try:
                run(own, jobs.retry(first))
            except JobError as error:
                refused.append(error.what)

    with conn.transaction():
        second = app.enqueue(conn, Mail(to="b"), unique=ONE)
        thread = threading.Thread(target=retry)
        thread.start()
        wait_until(lambda: waiting(database), why="the other waits for the key")
    thread.join(30)
    assert len(refused) == 1
    assert str(second) in refused[0]
    assert (state(conn, first), outbox(conn)) == ("dead", {first, second})


def test_replace_asks_for_the_end_of_what_runs(conn: psycopg.Connection[Any]) -> None:
    latest = Unique(key="one", on_conflict="replace")
    running = put(conn, latest)
    end(conn, running, "running")
    new = put(conn, latest)
    found = run(conn, jobs.find(running))
    assert (found.state, found.cancel_at is not None, holders(conn)) == ("running", True, [new])
    end(conn, running, "cancelled")
    assert (holders(conn), state(conn, new)) == ([new], "waiting")


def test_replace_and_the_settlement_of_what_it_replaces_never_wait_for_each_other(
    conn: psycopg.Connection[Any], database: Database
) -> None:
    latest = Unique(key="one", on_conflict="replace")
    running = put(conn, latest)
    end(conn, running, "running")
    put_by_other: list[UUID] = []

    def replace() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as own:
            put_by_other.append(put(own, latest))

    with conn.transaction():
        conn.execute("SELECT 1 FROM pipeline.job WHERE id = %s FOR UPDATE", (running,))  # as settle_jobs begins
        thread = threading.Thread(target=replace)
        thread.start()
        wait_until(lambda: waiting(database), why="the other waits for the job")
        end(conn, running, "done")
    thread.join(30)
    assert (state(conn, running), holders(conn)) == ("done", put_by_other)


def test_replace_and_the_scheduler_that_moves_what_it_replaces_never_wait_for_each_other(
    conn: psycopg.Connection[Any], database: Database
) -> None:
    latest = Unique(key="one", on_conflict="replace")
    with conn.transaction():
        delayed = app.enqueue(conn, Mail(to="a"), unique=latest, delay_s=3600)
    put_by_other: list[UUID] = []

    def replace() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as own:
            put_by_other.append(put(own, latest))

    with conn.transaction():
        conn.execute("DELETE FROM pipeline.due WHERE id = %s", (delayed,))  # as DueStore.move begins
        thread = threading.Thread(target=replace)
        thread.start()
        wait_until(lambda: waiting(database), why="the other waits for what is moved")
        conn.execute("UPDATE pipeline.job SET state = 'waiting', due_at = NULL WHERE id = %s", (delayed,))
    thread.join(30)
    found = run(conn, jobs.find(delayed))
    assert (found.state, found.cancel_at is not None, holders(conn)) == ("waiting", True, put_by_other)


def waiting(database: Database) -> bool:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return conn.execute(sql).fetchone() == (1,)
