"""What cannot be is refused, where it is defined or enqueued, with what to do; no table has a row more for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from servers import Database

from pipeline import Event, Job, Pipeline, RetryPolicy, jobs
from pipeline.avro import schema_of
from pipeline.definition import Rate
from pipeline.errors import PipelineError
from pipeline.flow import Flow, batch, chain
from pipeline.job import Unique
from pipeline.subject import subject_of


class Mail(Job, queue="email", format="json"):
    to: str


class Letter(Job, queue="email"):
    """In Avro, its schema pushed."""

    to: str


class Unpushed(Job, queue="email"):
    to: str


class Fast(Job, queue="fast", format="json", track=False):
    n: int


class Placed(Event, aggregate="order", key="n", format="json"):
    n: int


def handler(message: Any, ctx: Any) -> None: ...


@pytest.fixture
def app() -> Pipeline:
    app = Pipeline("shop", topic_prefix="")
    app.queue("email")
    return app


@pytest.fixture
def conn(database: Database, app: Pipeline) -> Iterator[psycopg.Connection[Any]]:
    schema = schema_of(Letter)
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "INSERT INTO pipeline.schema_id (subject, fingerprint, schema_id) VALUES (%s, %s, 1)",
            (subject_of(app.topic_of(Letter), schema.name), schema.fingerprint),
        )
        app.enqueue(connection, Mail(to="held"), unique=Unique(key="held"))
        app.enqueue(connection, Mail(to="later"), delay_s=3600)
        connection.commit()
        yield connection


def rows(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """Count the rows of every table."""
    names = conn.execute(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'pipeline'"
    ).fetchall()
    found = {}
    for (name,) in names:
        count = conn.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()
        assert count is not None
        found[name] = count[0]
    assert len(found) > 10
    return found


def cycle() -> Flow:
    children: list[Any] = [Mail(to="leaf")]
    root = Flow(Mail(to="root"), children)
    children.append(Flow(Mail(to="middle"), [root]))
    return root


NAIVE = datetime(2031, 1, 1)  # noqa: DTZ001 — that is what is refused
REJECT = Unique(by=("to",), on_conflict="reject")
DEFINED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a rate without bound": (lambda _: Rate(math.inf), "count from 1"),  # type: ignore[arg-type]
    "a rate in no time": (lambda _: Rate(1, math.inf), "per_s from"),
    "a rate that is none": (lambda _: Rate(10, math.nan), "per_s from"),
    "a rate as text": (lambda _: Rate("10"), "whole count"),  # type: ignore[arg-type]
    "a rate of True": (lambda _: Rate(True), "whole count"),
    "a number as a rate": (lambda app: app.queue("x", rate=10), "ten a second"),
    "a queue twice": (lambda app: app.queue("email"), "declared twice"),
    "a queue's name": (lambda app: app.queue("E Mail"), "is not allowed"),
    "cron: 30 February": (lambda app: app.schedule("0 0 30 2 *", name="a", timezone="UTC"), "not a cron expression"),
    "cron: a sixth Monday": (
        lambda app: app.schedule("0 0 * * 1#6", name="a", timezone="UTC"),
        "not a cron expression",
    ),
    "cron: words": (lambda app: app.schedule("daily", name="a", timezone="UTC"), "Wrong number of fields"),
    "cron: nothing": (lambda app: app.schedule(None, name="a", timezone="UTC"), "two texts"),
    "no zone": (lambda app: app.schedule("* * * * *", name="a", timezone=None), "two texts"),
    "a zone that is none": (lambda app: app.schedule("* * * * *", name="a", timezone="+01:00"), "no time zone"),
    "missed": (lambda app: app.schedule("* * * * *", name="a", timezone="UTC", missed="never"), "skip"),
    "a function without ctx": (
        lambda app: app.schedule("* * * * *", name="a", timezone="UTC")(lambda: None),
        "takes 0 arguments",
    ),
    "an event as a job": (lambda app: app.job(Placed), "not a Job"),
    "a number as a policy": (lambda app: app.job(Mail, retry=3), "RetryPolicy"),
    "a timeout as text": (lambda app: app.job(Mail, timeout_s="5"), "timeout_s='5'"),
    "a timeout without end": (lambda app: app.job(Mail, timeout_s=math.inf), "timeout_s=inf"),
    "a key and fields": (lambda _: Unique(key="a", by=("to",)), "without by"),
    "a number as a key": (lambda _: Unique(key=7), "1 to 500"),  # type: ignore[arg-type]
    "one field as text": (lambda _: Unique(by="to"), r"by=\('to',\)"),  # type: ignore[arg-type]
    "a period as timedelta": (lambda _: Unique(period_s=timedelta(1)), "seconds"),  # type: ignore[arg-type]
    "a rule that is none": (lambda _: Unique(on_conflict="ignore"), "keep, replace or reject"),  # type: ignore[arg-type]
    "an empty chain": (lambda _: chain(), "no jobs"),
}


@pytest.mark.parametrize("what", DEFINED)
def test_what_cannot_work_is_refused_where_it_is_defined(app: Pipeline, what: str) -> None:
    make, says = DEFINED[what]
    with pytest.raises(PipelineError, match=says) as refused:
        make(app)
    assert refused.value.remedy


ENQUEUED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "an option that is none": (lambda app, c: app.enqueue(c, Mail(to="a"), delay=5), "no option 'delay'"),
    "a text as delay": (lambda app, c: app.enqueue(c, Mail(to="a"), delay_s="5"), "delay_s='5'"),
    "a negative delay": (lambda app, c: app.enqueue(c, Mail(to="a"), delay_s=-1), "delay_s=-1"),
    "a time without zone": (lambda app, c: app.enqueue(c, Mail(to="a"), run_at=NAIVE), "no time zone"),
    "a text as time": (lambda app, c: app.enqueue(c, Mail(to="a"), run_at="2031-01-01"), "not a datetime"),
    "another time without zone": (
        lambda app, c: app.run(c, jobs.reschedule(first(app, c, "delayed"), run_at=NAIVE)),
        "no time zone",
    ),
    "tags as text": (lambda app, c: app.enqueue(c, Mail(to="a"), tags="abc"), "tags="),
    "no tags": (lambda app, c: app.enqueue(c, Mail(to="a"), tags=None), "tags="),
    "a priority that the queue has not": (lambda app, c: app.enqueue(c, Mail(to="a"), priority="low"), "no priorities"),
    "a text as unique": (lambda app, c: app.enqueue(c, Mail(to="a"), unique="a"), "Unique"),
    "a field that is none": (lambda app, c: app.enqueue(c, Mail(to="a"), unique=Unique(by=("x",))), "no field 'x'"),
    "unique, not tracked": (lambda app, c: app.enqueue(c, Fast(n=1), unique=Unique()), "tracked"),
    "a number as a policy": (lambda app, c: app.enqueue(c, Mail(to="a"), retry=3), "retry=3"),
    "no attempts": (lambda app, c: app.enqueue(c, Mail(to="a"), retry=RetryPolicy(attempts=0)), "attempts=0"),
    "a class": (lambda app, c: app.enqueue(c, Mail), "not a Job"),
    "an event": (lambda app, c: app.enqueue(c, Placed(n=1)), "not a Job"),
    "a key that is held": (
        lambda app, c: app.enqueue(c, Mail(to="a"), unique=Unique(key="held", on_conflict="reject")),
        "is held by job",
    ),
    "a key twice in one call": (
        lambda app, c: app.enqueue_many(c, [Mail(to="a"), Mail(to="b"), Mail(to="a")], unique=REJECT, delay_s=5),
        "is held by job",
    ),
    "the last of many, of no schema": (
        lambda app, c: app.enqueue_many(c, [Mail(to="a"), Letter(to="b"), Unpushed(to="c")]),
        "schema push",
    ),
    "the last of many, that was never checked": (
        lambda app, c: app.enqueue_many(c, [Letter(to="a"), Letter.model_construct(to=7)], tags=["x"]),
        "does not fit its schema",
    ),
    "the last of many, no job at all": (lambda app, c: app.enqueue_many(c, [Mail(to="a"), "b"]), "not a Job"),
    "a flow that is its own child": (lambda app, c: app.enqueue_flow(c, cycle()), "its own child"),
    "a flow of a job": (lambda app, c: app.enqueue_flow(c, Mail(to="a")), "not a Flow"),
    "a flow with a text": (lambda app, c: app.enqueue_flow(c, batch([Mail(to="a"), "b"], Mail(to="c"))), "not a Job"),
    "a flow's option": (lambda app, c: app.enqueue_flow(c, chain(Mail(to="a"), Mail(to="b")), delay_s=5), "neither"),
    "a flow's rule": (lambda app, c: app.enqueue_flow(c, Flow(Mail(to="a"), [], "maybe")), "on_failure"),
    "a flow's parent, of no schema": (
        lambda app, c: app.enqueue_flow(c, batch([Mail(to="a"), Mail(to="b")], Unpushed(to="c"))),
        "schema push",
    ),
    "a flow of what has no row": (lambda app, c: app.enqueue_flow(c, chain(Fast(n=1), Mail(to="a"))), "tracked"),
    "a schedule that is none": (lambda app, c: app.run(c, app.tick("nightly")), "no schedule nightly"),
    "an id that is none": (lambda app, c: app.run(c, jobs.cancel("seven")), "not a job's id"),
    "an id of no job": (lambda app, c: app.run(c, jobs.retry("01900000-0000-7000-8000-000000000000")), "no job"),
    "other arguments of another type": (
        lambda app, c: app.run(c, app.edit(first(app, c, "delayed"), Letter(to="x"))),
        "no delayed Letter",
    ),
}


def first(app: Pipeline, conn: psycopg.Connection[Any], state: str) -> Any:
    return app.run(conn, jobs.listing(state=state))[0].id


def test_what_cannot_be_enqueued_is_refused_and_no_table_has_a_row_more(
    app: Pipeline, conn: psycopg.Connection[Any]
) -> None:
    before = rows(conn)
    conn.commit()
    for what, (enqueue, says) in ENQUEUED.items():
        with pytest.raises(PipelineError, match=says) as refused:
            enqueue(app, conn)
        assert refused.value.remedy, what
        assert rows(conn) == before, what  # in the same transaction, which goes on
        conn.commit()
    assert rows(conn) == before
