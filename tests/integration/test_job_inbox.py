"""Tracked jobs with ``inbox=True``: their rows, keys and parents change in the transaction of their effects."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from jobbing import OpenDesk
from servers import Database
from working import wait_until

from pipeline import Context, Job, Pipeline
from pipeline.definition import Handler
from pipeline.errors import SourceError
from pipeline.flow import chain
from pipeline.job import Unique
from pipeline.postgres.due import DueStore
from pipeline.postgres.inbox import Inbox
from pipeline.record import Record
from pipeline.report import Entry
from pipeline.scheduler import Moved


class Book(Job, queue="books", format="json", name="InboxBook"):
    name: str


def booked(prefix: str) -> Pipeline:
    app = Pipeline(prefix, topic_prefix="", partitions=2)

    @app.job(Book, inbox=True)
    def book(job: Book, ctx: Context) -> None:
        ctx.conn.execute("INSERT INTO booked VALUES (%s)", (job.name,))
        ctx.result([job.name, *(child.result for child in ctx.children())])
        if job.name == "raises":
            raise ValueError("as asked")
        if job.name == "passes over":
            with pytest.raises(psycopg.Error):
                ctx.conn.execute("SELECT 1 / 0")

    return app


@pytest.fixture
def conn(database: Database) -> Any:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE booked (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        yield conn


def row(conn: Any, job_id: UUID) -> tuple[Any, ...]:
    found = conn.execute("SELECT state, result, worker, attempts FROM pipeline.job WHERE id = %s", (job_id,)).fetchone()
    assert found is not None
    return tuple(found)


def test_a_jobs_row_key_and_parent_change_with_its_effects_or_not_at_all(
    conn: Any, database: Database, prefix: str
) -> None:
    app = booked(prefix)
    (group,) = app.groups.values()
    (handler,) = group.handlers
    inbox = Inbox(database.dsn)
    run = inbox.around(handler)

    def handle(job_id: UUID, name: str, handler: Handler = handler) -> Entry:
        entry = Entry(str(job_id), 1, 1.7e9, False, list, "me:1")
        record = Record(group.name, 0, 0, None, b"", [("id", str(job_id).encode())], 0)
        run(Book(name=name), Context(record, dict(record.headers), "InboxBook", group.name, None, entry))
        return entry

    with conn.transaction():
        fine = app.enqueue(conn, Book(name="fine"), unique=Unique(key="one"))
        last = app.enqueue_flow(conn, chain(Book(name="child"), Book(name="parent")))
        others = app.enqueue_many(conn, [Book(name=name) for name in ("raises", "fine", "passes over")])
    assert handle(fine, "fine").stored
    assert row(conn, fine) == ("done", ["fine"], "me:1", 1)
    assert conn.execute("SELECT count(*) FROM pipeline.job_key").fetchone() == (0,)

    child = conn.execute("SELECT id FROM pipeline.job WHERE parent = %s", (last,)).fetchone()[0]
    handle(child, "child")
    assert row(conn, last)[0] == "delayed"
    assert not handle(child, "child").stored  # its effects were there: the journal tells, as of a job without an inbox

    # the second is refused at the commit
    for job_id, name, (error, text) in zip(
        others,
        ("raises", "fine", "passes over"),
        ((ValueError, "asked"), (psycopg.IntegrityError, "booked"), (SourceError, "ctx.conn failed")),
        strict=True,
    ):
        with pytest.raises(error, match=text):
            handle(job_id, name)
        assert row(conn, job_id) == ("waiting", None, None, 0)
    assert conn.execute("SELECT count(*) FROM pipeline.inbox").fetchone() == (2,)
    assert conn.execute("SELECT name FROM booked ORDER BY 1").fetchall() == [("child",), ("fine",)]
    inbox.close()


def test_a_flow_of_such_jobs_runs_to_its_end(conn: Any, database: Database, prefix: str, open_desk: OpenDesk) -> None:
    app = booked(prefix)
    desk = open_desk(app)
    with conn.transaction():
        last = app.enqueue_flow(conn, chain(Book(name="a"), Book(name="b"), Book(name="c")))
    store = DueStore(database.dsn, app.outbox, Moved)
    with desk.working():

        def ended() -> bool:
            store.move(10)
            desk.carry()
            return bool(row(conn, last)[0] == "done")

        wait_until(ended, why="the flow has ended")
    assert row(conn, last) == ("done", ["c", ["b", ["a"]]], "me:1", 1)
    store.close()
