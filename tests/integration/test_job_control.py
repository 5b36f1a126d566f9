"""What people command, obeyed by worker processes: rate, pause, an outage of the database meanwhile, cancel.

Time does not pass by itself in these tests: a rate's row is dated ahead, and tokens come when the test gives some.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from jobbing import Desk, OpenDesk
from servers import Database
from working import wait_until

from pipeline import Context, Job, Pipeline, jobs
from pipeline.definition import Queue, Rate
from pipeline.headers import EVENT_ID
from pipeline.postgres.jobs import JobRows
from pipeline.probes import Readiness
from pipeline.progress import Progress
from pipeline.record import Record
from pipeline.worker.delivery import Assigned, Delivery, Route
from pipeline.worker.journal import Control, Journal
from pipeline.worker.solitude import Solitude

APP = """
import asyncio, os, time
from pipeline import Context, Job, Pipeline, RetryPolicy
from pipeline.definition import Rate

app = Pipeline({prefix!r}, topic_prefix="", partitions=2)
app.queue("limited", rate=Rate(10))
once_more = RetryPolicy(attempts=2, first_s=0.05, factor=1, cap_s=0.05, jitter=0)

def begun(text):
    with open("begun", "a") as file:
        file.write(f"{{text}} {{os.getpid()}}\\n")

class Limited(Job, queue="limited", format="json"):
    n: int

@app.job(Limited, order="key", retry=once_more)
def limited(job: Limited, ctx: Context) -> None:
    begun(f"limited {{job.n}}")
    if job.n % 4 == 0 and ctx.attempt == 1:
        raise ValueError("once more, in place")

class Free(Job, queue="free", format="json"):
    n: int

@app.job(Free)
def free(job: Free, ctx: Context) -> None:
    begun(f"free {{job.n}}")

class Coroutine(Job, queue="coroutines", format="json"):
    n: int

@app.job(Coroutine)
async def coroutine(job: Coroutine, ctx: Context) -> None:
    begun("coroutine")
    await asyncio.sleep(600)

class Looks(Job, queue="long", format="json"):
    n: int

@app.job(Looks)
def looks(job: Looks, ctx: Context) -> None:
    begun("looks")
    while not ctx.cancelled:
        time.sleep(0.02)
    ctx.raise_if_cancelled()

class Deaf(Job, queue="long", format="json"):
    n: int

@app.job(Deaf, process=True)
def deaf(job: Deaf, ctx: Context) -> None:
    begun("deaf")
    time.sleep(600)
"""


LEASES = """
CREATE TABLE lease (pid integer, tokens float8, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note_lease() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO lease VALUES (pg_backend_pid(), OLD.tokens - NEW.tokens);
    RETURN NULL;
END $$;
CREATE TRIGGER note_lease AFTER UPDATE ON pipeline.rate
    FOR EACH ROW WHEN (NEW.tokens <= OLD.tokens) EXECUTE FUNCTION note_lease();
"""


class Limited(Job, queue="limited", format="json"):
    n: int


class Free(Job, queue="free", format="json"):
    n: int


class Coroutine(Job, queue="coroutines", format="json"):
    n: int


class Looks(Job, queue="long", format="json"):
    n: int


class Deaf(Job, queue="long", format="json"):
    n: int


@pytest.fixture
def desk(prefix: str, open_desk: OpenDesk, tmp_path: Path) -> Desk:
    app = Pipeline(prefix, topic_prefix="", partitions=2)
    app.queue("limited", rate=Rate(10))
    for model in (Limited, Free, Coroutine, Looks, Deaf):

        @app.job(model)
        def handle(job: Any, ctx: Context) -> None: ...

    (tmp_path / "control.py").write_text(APP.format(prefix=prefix))
    return open_desk(app)


class WorkerProcess:
    """``pipeline consumer run`` with probes."""

    def __init__(self, folder: Path, env: dict[str, str], *queues: str) -> None:
        self.folder = folder
        words = [word for queue in queues for word in ("--queue", queue)]
        # by topic, so that each has some of the queue: cooperative-sticky may give one of two the retry topics alone
        words += ["-X", "group.protocol=consumer", "-X", "group.remote.assignor=range", "--metrics-port", "0"]
        command = [sys.executable, "-m", "pipeline", "consumer", "run", "control:app", *words]
        self._log = folder / f"worker-{len(list(folder.glob('worker-*')))}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=env, stderr=log)

    def state(self) -> Any:
        found = wait_until(lambda: re.search(r"on port (\d+)", self._log.read_text()), 60, "it serves probes")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/readyz", timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self._log.read_text()


@contextmanager
def workers(folder: Path, env: dict[str, str], count: int, *queues: str) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            started.append(WorkerProcess(folder, env, *queues))
            stack.callback(started[-1].kill)
        wait_until(lambda: all(one.state()["ready"] for one in started), 60, "they are ready")
        yield started
        for one in started:
            one.stop()


def begun(folder: Path, kind: str) -> list[str]:
    path = folder / "begun"
    return [line for line in path.read_text().splitlines() if line.startswith(kind)] if path.exists() else []


def allow_connections(database: Database, whether: str) -> None:
    with psycopg.connect(database.dsn, dbname="postgres", autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS {whether}".encode())


def test_two_processes_share_a_rate_obey_a_pause_and_keep_it_while_the_database_is_away(
    desk: Desk, database: Database, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    queue = desk.app.topic_of(Limited)
    granted = 0

    def grant(count: int) -> None:
        nonlocal granted
        granted += count
        desk.conn.execute("UPDATE pipeline.rate SET tokens = tokens + %s", (count,))

    def all_have_asked() -> None:
        """Wait until each that has jobs left has asked for tokens since now."""
        attempts = Counter(line.split()[-1] for line in begun(tmp_path, "limited"))
        waiting = sum(attempts[pid] < 20 for pid in (str(worker.process.pid) for worker in (one, other)))
        since = desk.conn.execute("SELECT clock_timestamp() AS now").fetchone()["now"]  # type: ignore[index]
        asked = "SELECT count(DISTINCT pid) AS n FROM lease WHERE at > %s"
        wait_until(lambda: desk.conn.execute(asked, (since,)).fetchone()["n"] >= waiting, 60, f"{waiting} ask")  # type: ignore[index]

    desk.conn.execute(LEASES)
    desk.conn.execute("INSERT INTO pipeline.rate VALUES (%s, 0, now() + interval '1 day')", (queue,))
    with workers(tmp_path, cli_environment, 2, "limited", "free") as (one, other):
        ids = [desk.put(Limited(n=n)) for n in range(32)]
        desk.carry(lambda number: number // 4 % 2)
        # 32 and the 8 that come again in place, half of them in each process: each attempt pays
        for _ in range(4):
            all_have_asked()
            assert len(begun(tmp_path, "limited")) == granted
            grant(10)
            wait_until(lambda: len(begun(tmp_path, "limited")) >= granted, 60, f"{granted} have begun")
        for job_id in ids:
            desk.until(job_id, "done")
        assert len(begun(tmp_path, "limited")) == 40
        leased = desk.conn.execute("SELECT sum(tokens) AS n FROM lease GROUP BY pid").fetchall()
        assert (len(leased), sum(row["n"] for row in leased)) == (2, 40)
        assert all(row["n"] > 0 for row in leased)

        with desk.conn.transaction():
            desk.app.run(desk.conn, jobs.pause(queue))
        wait_until(lambda: all(w.state()["notes"].get(queue) == "paused" for w in (one, other)), 60, "both obey")
        grant(10)
        held = [desk.put(Limited(n=n)) for n in range(1, 3)]
        desk.carry()

        # the database refuses everybody but us
        allow_connections(database, "false")
        desk.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: not one.state()["ready"] and not other.state()["ready"], 60, "they say that it is away")
        free = [desk.put(Free(n=n)) for n in range(4)]
        held += [desk.put(Limited(n=n)) for n in range(5, 7)]
        desk.carry()
        wait_until(lambda: len(begun(tmp_path, "free")) == 4, 60, "others go on")
        assert all(worker.state()["notes"] == {queue: "paused"} for worker in (one, other))
        assert {desk.job(job_id)["state"] for job_id in free} == {"waiting"}
        allow_connections(database, "true")
        for job_id in free:
            desk.until(job_id, "done")
        wait_until(lambda: all(worker.state()["ready"] for worker in (one, other)), 60, "they are ready again")
        assert len(begun(tmp_path, "limited")) == 40
        assert {desk.job(job_id)["state"] for job_id in held} == {"waiting"}
        with desk.conn.transaction():
            desk.app.run(desk.conn, jobs.resume(queue))
        for job_id in held:
            desk.until(job_id, "done")
        assert one.state()["notes"] == other.state()["notes"] == {}


def test_what_runs_is_cancelled_coroutines_and_processes_too_and_a_plain_function_is_told(
    desk: Desk, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    with workers(tmp_path, cli_environment, 1, "coroutines", "long"):
        ids = {model.__name__.lower(): desk.put(model(n=1)) for model in (Coroutine, Looks, Deaf)}
        desk.carry()
        wait_until(lambda: all(begun(tmp_path, kind) for kind in ids), 60, "all run")
        child = int(begun(tmp_path, "deaf")[0].split()[1])
        with desk.conn.transaction():
            assert desk.app.run(desk.conn, jobs.cancel_many(ids.values())) == 3
        for job_id in ids.values():
            row = desk.until(job_id, "cancelled")
            assert (row["attempts"], row["error"]) == (1, None)
        with pytest.raises(ProcessLookupError):  # it did not look: killed
            os.kill(child, 0)
        assert len(begun(tmp_path, "")) == 3


class Engine:
    """What a journal stands around here: it runs what it is told to, and notes what is to end."""

    def __init__(self) -> None:
        self.runs: list[tuple[Delivery, float]] = []
        self.ended: list[Delivery] = []

    def running(self) -> list[tuple[Delivery, float]]:
        return self.runs

    def cancel(self, delivery: Delivery) -> None:
        self.ended.append(delivery)


class Mail(Job, queue="email", format="json"):
    n: int


def test_of_more_cancelled_jobs_than_are_read_at_once_none_begins_and_those_that_run_are_told(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = Pipeline("shop", topic_prefix="")
    app.job(Mail)(lambda job, ctx: None)
    (group,) = app.groups.values()
    (handler,) = group.handlers
    with conn.transaction():
        ids = app.enqueue_many(conn, [Mail(n=n) for n in range(8)])
        assert app.run(conn, jobs.cancel_many(ids[1:])) == 7
    rows, engine = JobRows(database.dsn, Control, most=3), Engine()
    queue = Queue(group.name)
    journal = Journal(rows, queue, worker="w", health=Readiness("w"), concurrency=1, threaded=False, control_s=0)
    journal.around(cast("Any", engine), lambda outcome: None, lambda error: None, Solitude().admit)

    def delivery(job_id: UUID) -> Delivery:
        record = Record(group.name, 0, 0, None, b"", [(EVENT_ID, str(job_id).encode())], 0)
        assigned = Assigned(group.name, 0, Progress(0, 0), None)
        return Delivery(assigned, record, dict(record.headers), Route(handler, print), None, None)

    def begins() -> list[bool]:
        entries = [journal.entry(one, cast("Route", one.route)) for one in map(delivery, ids)]
        return [entry is not None and not entry.cancelled for entry in entries]

    running = [delivery(one) for one in ids]
    for one in running:
        one.entry = journal.entry(one, cast("Route", one.route))
    engine.runs = [(one, time.monotonic()) for one in running]
    assert len(rows.control(group.name).cancelled) == 3
    journal.step()
    assert engine.ended == running[1:]
    assert begins() == [True] + [False] * 7
    with conn.transaction():
        conn.execute("UPDATE pipeline.job SET cancel_at = NULL WHERE id = ANY (%s)", (ids[3:],))
    journal.step()
    assert begins() == [True, False, False] + [True] * 5
    with conn.transaction():
        app.run(conn, jobs.cancel_many(ids[3:]))
    journal.step()
    rows.close()
    assert begins().count(False) == 3  # without an answer, by what was read last
