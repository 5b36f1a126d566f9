"""Schedulers and workers killed at exact points of a transaction: no tick lost or doubled, no flow stuck, no job lost.

The clocks that schedulers run by are the database's, whatever their own say.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jobbing import Desk, OpenDesk
from pydantic import SecretStr
from servers import Database
from traps import Trap, trap
from working import wait_until

from pipeline import Context, Job, Pipeline
from pipeline.config import PostgresSettings, Settings
from pipeline.flow import batch, chain
from pipeline.retry import RetryPolicy
from pipeline.runtime.scheduler import run_scheduler

SHOP = """
from pipeline import Context, Job, Pipeline
app = Pipeline("shop", topic_prefix="")

@app.schedule("* * * * * *", name="each-second", timezone="UTC", missed="all")
def each_second(ctx: Context) -> None: ...
"""

# its own clock is elsewhere: nothing that it does may go by it
ELSEWHERE = """
import datetime, sys, time

shift_s = int(sys.argv.pop(1))
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + shift_s
time.time_ns = lambda: now_ns() + shift_s * 10**9


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=shift_s)


datetime.datetime = Shifted
assert abs(datetime.datetime.now().timestamp() - now() - shift_s) < 60
from pipeline.cli.main import main

main()
"""


class Mail(Job, queue="email", format="json"):
    to: str


class Step(Job, queue="steps", format="json"):
    name: str


class Book(Job, queue="books", format="json"):
    name: str


def one(conn: psycopg.Connection[Any], sql: str) -> Any:
    row = conn.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


@contextmanager
def process(folder: Path, env: dict[str, str], *words: str, begin: Sequence[str] = ("-m", "pipeline")) -> Iterator[Any]:
    command = [sys.executable, *begin, *words, "--log-level", "error"]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, cwd=folder, env=env, stderr=log) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def scheduler(database: Database) -> Iterator[None]:
    """Run a scheduler of SHOP in this process."""
    app = Pipeline("shop", topic_prefix="")

    @app.schedule("* * * * * *", name="each-second", timezone="UTC", missed="all")
    def each_second(ctx: Context) -> None: ...

    until = threading.Event()
    settings = Settings(postgres=PostgresSettings(dsn=SecretStr(database.dsn)))
    thread = threading.Thread(target=run_scheduler, args=(app, settings), kwargs={"until": until})
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join()


def check_ticks(conn: psycopg.Connection[Any]) -> None:
    """Each second has its tick, each tick its one job."""
    ticks = conn.execute("SELECT at, job_id FROM pipeline.tick ORDER BY at").fetchall()
    assert {b[0] - a[0] for a, b in itertools.pairwise(ticks)} == {timedelta(seconds=1)}
    rows = conn.execute("SELECT id FROM pipeline.outbox WHERE type LIKE 'Tick%' ORDER BY seq").fetchall()
    assert sorted(row[0] for row in rows) == sorted(job_id for _, job_id in ticks)
    assert one(conn, "SELECT count(*) FROM pipeline.job WHERE type LIKE 'Tick%'") == len(ticks)


POINTS = {
    "between a tick and its job": ("pipeline.tick", False, False),
    "in the middle of a tick's commit, which the server finishes": ("pipeline.tick", True, True),
    "in the middle of a tick's commit, which the server does not finish": ("pipeline.tick", True, False),
    "while due jobs are moved, which the server finishes": ("pipeline.outbox", False, True),
    "while due jobs are moved, which the server does not finish": ("pipeline.outbox", False, False),
    "after one tick's commit, before the next": ("", False, False),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_scheduler_killed_at_this_point_loses_and_doubles_nothing(
    database: Database, conn: psycopg.Connection[Any], cli_environment: dict[str, str], tmp_path: Path, point: str
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    table, at_commit, goes_on = POINTS[point]
    run = ("scheduler", "run", "shop:app")
    with ExitStack() as stack:
        victim = stack.enter_context(process(tmp_path, cli_environment, *run))
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.tick") > 1, 60)
        if table:
            when = "NEW.type = 'Mail'" if table == "pipeline.outbox" else "true"
            caught = stack.enter_context(trap(database.dsn, table, "INSERT", when, at_commit=at_commit))
        with conn.transaction():
            ids = Pipeline("shop", topic_prefix="").enqueue_many(
                conn, [Mail(to=str(n)) for n in range(50)], delay_s=0.1
            )
        if table:
            caught.catch()
            stored = f"SELECT count(*) FROM {table} AS new WHERE {when.replace('NEW', 'new')}"
            before = one(conn, stored)
            stack.enter_context(scheduler(database))  # beside the one that is stuck
            victim.kill()
            victim.wait()
            assert one(conn, stored) == before
            caught.open(goes_on=goes_on)
            wait_until(lambda: one(conn, stored) > before, 60, "what was cut off is there, by whomever")
        else:  # what it reads before each tick
            with psycopg.connect(database.dsn) as holder:
                holder.execute("LOCK TABLE pipeline.schedule IN ACCESS EXCLUSIVE MODE")
                wait_until(lambda: one(conn, "SELECT count(*) FROM pg_locks WHERE NOT granted"), 60, "it is held")
                check_ticks(conn)
                victim.kill()
                victim.wait()
            stack.enter_context(scheduler(database))
        killed = one(conn, "SELECT now()")
        wait_until(lambda: one(conn, f"SELECT last_at > '{killed}' FROM pipeline.schedule"), 60, "ticks go on")
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.due") == 0)
    check_ticks(conn)
    moved = conn.execute("SELECT id FROM pipeline.outbox WHERE type = 'Mail'").fetchall()
    assert sorted(row[0] for row in moved) == sorted(ids)
    assert one(conn, "SELECT count(*) FROM pipeline.job WHERE state <> 'waiting'") == 0


def test_schedulers_whose_clocks_are_hours_apart_agree_on_the_databases(
    database: Database, conn: psycopg.Connection[Any], cli_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    app = Pipeline("shop", topic_prefix="")
    with conn.transaction():
        far = [app.enqueue(conn, Mail(to="far"), delay_s=1800), app.enqueue(conn, Mail(to="farther"), delay_s=5400)]
        near = app.enqueue_many(conn, [Mail(to=str(n)) for n in range(20)], delay_s=1)
    begun = one(conn, "SELECT now()")
    with ExitStack() as stack:
        run = ("scheduler", "run", "shop:app")
        others = [
            stack.enter_context(process(tmp_path, cli_environment, shift_s, *run, begin=("elsewhere.py",)))
            for shift_s in ("3600", "-3600", "0")
        ]
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.tick") >= 4, 60)
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.due") == 2)
        for other in others:
            other.terminate()
            assert other.wait(30) == 0
    check_ticks(conn)
    assert one(conn, f"SELECT bool_and(at BETWEEN '{begun}' AND now()) FROM pipeline.tick")
    assert one(conn, "SELECT count(*) FROM pipeline.tick WHERE made_at < at") == 0
    moved = conn.execute("SELECT id FROM pipeline.outbox WHERE type = 'Mail'").fetchall()
    assert sorted(row[0] for row in moved) == sorted(near)
    assert {row[0] for row in conn.execute("SELECT id FROM pipeline.due").fetchall()} == set(far)


WORK = """
import os
import psycopg
from pipeline import Context, Job, Pipeline, RetryPolicy
app = Pipeline({prefix!r}, topic_prefix="", partitions=1)
quick = RetryPolicy(attempts=3, first_s=0.1, factor=1, cap_s=0.1, jitter=0)

class Step(Job, queue="steps", format="json"):
    name: str

class Book(Job, queue="books", format="json"):
    name: str

@app.job(Step, retry=quick)
def step(job: Step, ctx: Context) -> None:
    with psycopg.connect(os.environ["PIPELINE_POSTGRES__DSN"]) as conn:
        conn.execute("INSERT INTO step VALUES (%s, %s)", (job.name, ctx.attempt))
    if job.name == "fails once" and ctx.attempt == 1:
        raise ValueError
    ctx.result([job.name, *(child.result for child in ctx.children())])

@app.job(Book, inbox=True)
def book(job: Book, ctx: Context) -> None:
    ctx.conn.execute("INSERT INTO booked VALUES (%s)", (job.name,))
    ctx.result([job.name, *(child.result for child in ctx.children())])
"""


@pytest.fixture
def desk(prefix: str, open_desk: OpenDesk) -> Desk:
    app = Pipeline(prefix, topic_prefix="", partitions=1)

    @app.job(Step, retry=RetryPolicy(attempts=3, first_s=0.1, factor=1, cap_s=0.1, jitter=0))
    def step(job: Step, ctx: Context) -> None: ...

    @app.job(Book, inbox=True)
    def book(job: Book, ctx: Context) -> None: ...

    desk = open_desk(app)
    desk.conn.execute("CREATE TABLE step (name text, attempt int)")
    desk.conn.execute("CREATE TABLE booked (name text)")
    return desk


@pytest.mark.parametrize("goes_on", [True, False], ids=["the server finishes it", "the server does not"])
def test_workers_killed_in_the_middle_of_a_flows_step_or_an_inboxs_commit_leave_no_flow_stuck_and_no_job_undone(
    desk: Desk,
    conn: psycopg.Connection[Any],
    tmp_path: Path,
    prefix: str,
    cli_environment: dict[str, str],
    goes_on: bool,
) -> None:
    (tmp_path / "work.py").write_text(WORK.format(prefix=prefix))
    dsn = desk.database.dsn
    # static membership: who is started next takes the place of the one that was killed at once
    run = ("consumer", "run", "work:app", "-X", "group.instance.id=one", "-X", "session.timeout.ms=6000")
    last_child = "OLD.state <> 'done' AND NEW.state = 'done' AND NEW.parent IS NOT NULL"

    def killed_in(caught: Trap, queue: str) -> None:
        with process(tmp_path, cli_environment, *run, "--queue", queue) as victim:
            caught.catch()
            victim.kill()
            victim.wait()
        caught.open(goes_on=goes_on)

    def done(kind: str) -> int:
        return int(one(conn, f"SELECT count(*) FROM pipeline.job WHERE state = 'done' AND type = '{kind}'"))

    with desk.carried():
        with trap(dsn, "pipeline.job", "UPDATE", last_child) as settling:
            with conn.transaction():
                stepped = desk.app.enqueue_flow(conn, chain(Step(name="child"), Step(name="parent")))
            killed_in(settling, "steps")
        assert done("Step") == goes_on
        with trap(dsn, "public.booked", "INSERT", at_commit=True) as committing:
            with conn.transaction():
                books = batch([Book(name="a"), Book(name="b")], Book(name="sum"), on_failure="fail")
                booked = desk.app.enqueue_flow(conn, books)
            killed_in(committing, "books")  # the other child waits for their parent's row meanwhile
        assert done("Book") == goes_on
        with trap(dsn, "pipeline.job", "UPDATE", "NEW.state = 'retrying'") as again:
            failing = desk.put(Step(name="fails once"))
            killed_in(again, "steps")  # before it is produced to the retry topic
        with process(tmp_path, cli_environment, *run) as last:
            wait_until(lambda: desk.states() == {"done": 6}, 90, "all are done")
            last.terminate()
            assert last.wait(60) == 0
    assert desk.job(str(stepped))["result"] == ["parent", ["child"]]
    assert desk.job(str(booked))["result"] == ["sum", ["a"], ["b"]]
    assert desk.job(failing)["attempts"] == 2
    # effects of the inbox once; of the others as often as they were begun: by each process at most once
    assert sorted(row[0] for row in conn.execute("SELECT name FROM booked").fetchall()) == ["a", "b", "sum"]
    begun = dict(conn.execute("SELECT name, count(*) FROM step GROUP BY 1").fetchall())
    assert begun["fails once"] == 3
    assert begun["child"] >= 2
    assert begun["parent"] >= 1
    left = conn.execute("SELECT count(*), count(DISTINCT id) FROM pipeline.outbox").fetchone()
    assert left == (6, 6)  # each parent left once
