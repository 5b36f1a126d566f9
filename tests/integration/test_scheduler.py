"""Schedulers on a real database: due jobs move once, ticks are made once, whoever is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg.conninfo import make_conninfo
from relays import RelayProcess, connector_file, insert
from servers import Database
from waiting import wait_until

from pipeline import Context, Job, Outbox, Pipeline, jobs
from pipeline.errors import JobError, SourceError
from pipeline.flow import chain
from pipeline.metrics import PrometheusMeter, SilentMeter
from pipeline.postgres.due import DueStore
from pipeline.postgres.jobs import JobRows
from pipeline.postgres.position import PositionStore
from pipeline.postgres.statistics import SlotWatch
from pipeline.postgres.tidy import _OLD_JOBS, fold, tidy
from pipeline.probes import Readiness
from pipeline.report import Entry
from pipeline.runtime.slots import SlotMetrics
from pipeline.scheduler import Moved, Scheduler

APP = """
from pipeline import Context, Job, Pipeline
app = Pipeline("shop", topic_prefix="")

class Mail(Job, queue="email", format="json"):
    to: str

@app.schedule("* * * * * *", name="each-second", timezone="UTC", missed="all")
def each_second(ctx: Context) -> None: ...
"""


class Mail(Job, queue="email", format="json"):
    to: str


def plain_app() -> Pipeline:
    return Pipeline("shop", topic_prefix="")


def one(conn: psycopg.Connection[Any], sql: str) -> Any:
    row = conn.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]


def scheduler_of(app: Pipeline, database: Database) -> tuple[Scheduler, DueStore]:
    store = DueStore(database.dsn, app.outbox, Moved)
    health = Readiness("scheduler")
    return Scheduler(store, app.schedules, tidy=store.tidy, meter=SilentMeter(), health=health), store


@contextmanager
def running(*schedulers: tuple[Scheduler, DueStore]) -> Iterator[None]:
    until = threading.Event()
    threads = [threading.Thread(target=scheduler.run, args=(until,)) for scheduler, _ in schedulers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        until.set()
        for thread in threads:
            thread.join(60)
        for _, store in schedulers:
            store.close()


def test_due_jobs_move_to_the_outbox_in_order_and_others_stay(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    with conn.transaction():
        later = app.enqueue(conn, Mail(to="later"), delay_s=3600)
        ids = [app.enqueue(conn, Mail(to=str(n)), delay_s=0.3 - n / 100) for n in range(20)]
    with running(scheduler_of(app, database), scheduler_of(app, database)):
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.outbox") == 20)
    rows = conn.execute("SELECT id FROM pipeline.outbox ORDER BY seq").fetchall()
    assert sorted(row[0] for row in rows) == sorted(ids)
    assert conn.execute("SELECT id, state FROM pipeline.job WHERE state <> 'waiting'").fetchall() == [
        (later, "delayed")
    ]
    assert one(conn, "SELECT id FROM pipeline.due") == later


def test_moved_rows_are_what_an_enqueue_without_delay_writes(database: Database, conn: psycopg.Connection[Any]) -> None:
    app = plain_app()
    app.queue("email", priorities=True)
    with conn.transaction():
        for delay_s in (0, 0.01):
            app.enqueue(conn, Mail(to="ä\t\\"), delay_s=delay_s, headers={"h": "ü"}, priority="high")
    scheduler, store = scheduler_of(app, database)
    wait_until(lambda: scheduler.step() is not None and one(conn, "SELECT count(*) FROM pipeline.outbox") == 2)
    store.close()
    rows = conn.execute(
        "SELECT aggregatetype, type, payload, topic, headers, traceparent FROM pipeline.outbox"
    ).fetchall()
    assert rows[0] == rows[1]
    assert rows[0][3] == "shop.jobs.email.high"


def test_a_job_of_next_year_waits_and_leaves_when_its_time_has_come(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    with conn.transaction():
        job_id = app.enqueue(conn, Mail(to="a"), run_at=datetime.now(UTC) + timedelta(days=400))
    scheduler, store = scheduler_of(app, database)
    assert 0 < scheduler.step() <= 0.1  # how long it looks away: a part of how late a job may be
    assert conn.execute("SELECT id FROM pipeline.due").fetchall() == [(job_id,)]
    assert one(conn, "SELECT count(*) FROM pipeline.outbox") == 0
    conn.execute("UPDATE pipeline.due SET due_at = due_at - interval '400 days'")
    wait_until(lambda: scheduler.step() is not None and one(conn, "SELECT count(*) FROM pipeline.outbox") == 1)
    store.close()
    assert conn.execute("SELECT id, state, due_at FROM pipeline.job").fetchall() == [(job_id, "waiting", None)]
    assert one(conn, "SELECT id FROM pipeline.outbox") == job_id
    assert one(conn, "SELECT count(*) FROM pipeline.due") == 0


def test_what_waits_for_months_is_not_read_for_what_is_due(database: Database, conn: psycopg.Connection[Any]) -> None:
    """The plan of the statement that schedulers run, before the table's statistics are known and after."""
    conn.execute(
        "INSERT INTO pipeline.due (id, due_at, aggregatetype, aggregateid, type, topic) SELECT gen_random_uuid(),"
        " CASE WHEN n % 1000 = 0 THEN now() ELSE now() + n * interval '1 hour' END, 'a', 'a', 'Mail', 'q'"
        " FROM generate_series(1, 20000) AS n"
    )
    store = DueStore(database.dsn, plain_app().outbox, Moved)
    sql = b"EXPLAIN (ANALYZE, FORMAT JSON) " + store._move_sql.encode()
    for _ in range(2):
        with conn.transaction(force_rollback=True):
            (plan,) = conn.execute(sql, (500,)).fetchone() or ()
        reads = [
            node
            for node in nodes(plan[0]["Plan"])
            if node.get("Relation Name") == "due" and "Scan" in node["Node Type"]
        ]
        assert sorted((node["Node Type"], node.get("Index Name")) for node in reads) == [
            ("Index Scan", "due_at"),
            ("Tid Scan", None),
        ]
        assert {node["Actual Rows"] * node["Actual Loops"] for node in reads} == {20}
        conn.execute("VACUUM ANALYZE pipeline.due")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_a_table_of_the_users_own_is_moved_to(database: Database, conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE public.events (event_id text, agg text, body jsonb, dest text, who text)")
    columns = {
        "id": "event_id", "aggregateid": "agg", "payload": "body", "topic": "dest",
        "aggregatetype": None, "type": None, "headers": None, "traceparent": None,
    }  # fmt: skip
    app = Pipeline("shop", topic_prefix="", outbox=Outbox("public", "events", columns, {"who": "me"}, payload="json"))
    with conn.transaction():
        job_id = app.enqueue(conn, Mail(to="a"), delay_s=0.01)
    scheduler, store = scheduler_of(app, database)
    wait_until(lambda: scheduler.step() is not None and one(conn, "SELECT count(*) FROM public.events"))
    store.close()
    assert conn.execute("SELECT * FROM public.events").fetchone() == (
        str(job_id),
        str(job_id),
        {"to": "a"},
        "shop.jobs.email",
        "me",
    )


def test_a_thousand_due_at_once_are_moved_in_batches_by_several(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    with conn.transaction():
        app.enqueue_many(conn, [Mail(to=str(n)) for n in range(3000)], delay_s=0.05)
    with running(*(scheduler_of(app, database) for _ in range(3))):
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.due") == 0)
    assert one(conn, "SELECT count(*) FROM pipeline.outbox") == 3000
    assert one(conn, "SELECT count(DISTINCT id) FROM pipeline.outbox") == 3000


def scheduled(overlap: Any = "allow", missed: Any = "all", cron: str = "* * * * * *") -> Pipeline:
    app = plain_app()

    @app.schedule(cron, name="tick", timezone="UTC", overlap=overlap, missed=missed)
    def handle(ctx: object) -> None: ...

    return app


def test_several_schedulers_make_each_tick_once_with_its_job(database: Database, conn: psycopg.Connection[Any]) -> None:
    with running(*(scheduler_of(scheduled(), database) for _ in range(3))):
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.tick") >= 3)
    ticks = conn.execute("SELECT at, job_id FROM pipeline.tick ORDER BY at").fetchall()
    steps = {b[0] - a[0] for a, b in itertools.pairwise(ticks)}
    assert steps == {timedelta(seconds=1)}
    rows = conn.execute(
        "SELECT id, convert_from(payload, 'UTF8')::json->>'at' FROM pipeline.outbox ORDER BY seq"
    ).fetchall()
    assert [(job_id, datetime.fromisoformat(at)) for job_id, at in rows] == [(job_id, at) for at, job_id in ticks]
    assert one(conn, "SELECT count(*) FROM pipeline.job WHERE type = 'Tick_tick'") == len(ticks)


def test_a_new_schedule_begins_now_and_a_missed_tick_follows_the_rule(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    last = (datetime.now(UTC) - timedelta(minutes=30)).replace(second=0, microsecond=0)  # too long ago to be in time
    for missed, expected in (("skip", 0), ("once", 1), ("all", 3)):
        conn.execute("TRUNCATE pipeline.schedule, pipeline.tick")
        scheduler, store = scheduler_of(scheduled(missed=missed, cron=f"{last.minute} * * * *"), database)
        scheduler.step()
        assert one(conn, "SELECT count(*) FROM pipeline.tick") == 0
        conn.execute("UPDATE pipeline.schedule SET last_at = %s", (last - timedelta(hours=2, seconds=1),))
        scheduler._next_read = 0
        scheduler.step()
        store.close()
        assert one(conn, "SELECT count(*) FROM pipeline.tick") == expected


def test_a_paused_schedule_makes_no_ticks_and_goes_on_from_when_it_is_resumed(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()

    @app.schedule("* * * * * *", name="each-second", timezone="UTC", missed="all")
    def each_second(ctx: Context) -> None: ...

    def ticks() -> int:
        return int(one(conn, "SELECT count(*) FROM pipeline.tick"))

    with running(scheduler_of(app, database)):
        wait_until(lambda: ticks() > 0)
        conn.execute("BEGIN")
        app.run(conn, jobs.pause_schedule("shop.each-second"))
        conn.execute("COMMIT")
        begun = one(conn, "SELECT last_at FROM pipeline.schedule")
        wait_until(lambda: one(conn, "SELECT now() - last_at > interval '4 s' FROM pipeline.schedule"))
        assert one(conn, "SELECT last_at FROM pipeline.schedule") - begun <= timedelta(seconds=2)
        held = ticks()
        with conn.transaction():
            by_hand = app.run(conn, app.tick("each-second"))
        assert one(conn, f"SELECT state FROM pipeline.job WHERE id = '{by_hand}'") == "waiting"
        with conn.transaction():
            app.run(conn, jobs.resume_schedule("shop.each-second"))
        resumed = one(conn, "SELECT clock_timestamp()")
        wait_until(lambda: ticks() > held + 2)
    made_up = one(
        conn,
        f"SELECT count(*) FROM pipeline.tick WHERE at > '{begun + timedelta(seconds=2)}' AND at < '{resumed}'"
        f" AND job_id <> '{by_hand}'",
    )
    assert made_up == 0


def test_overlap_skip_leaves_ticks_out_until_the_job_is_finished(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    with running(scheduler_of(scheduled("skip"), database)):
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.tick WHERE job_id IS NULL") >= 2)
        (job_id,) = conn.execute("SELECT job_id FROM pipeline.tick WHERE job_id IS NOT NULL").fetchall()
        conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([{"id": str(job_id[0]), "state": "done"}]),))
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.tick WHERE job_id IS NOT NULL") == 2)
    assert one(conn, "SELECT count(*) FROM pipeline.outbox") == 2


def test_a_schedule_declared_otherwise_by_a_newer_process_is_left_to_it(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    old, old_store = scheduler_of(scheduled(cron="* * * * * *"), database)
    old.step()
    new, new_store = scheduler_of(scheduled(cron="0 0 1 1 *"), database)
    new.step()
    conn.execute("UPDATE pipeline.schedule SET last_at = now() - interval '10 seconds'")
    old._next_read = new._next_read = 0
    old.step()
    new.step()
    assert one(conn, "SELECT count(*) FROM pipeline.tick") == 0
    old_store.close()
    new_store.close()


def test_finished_jobs_are_deleted_after_their_retention_and_counts_agree(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    with conn.transaction():
        ids = app.enqueue_many(conn, [Mail(to=str(n)) for n in range(10)])
    reports = [{"id": str(job_id), "state": "done"} for job_id in ids[:6]]
    conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps(reports),))
    store = DueStore(database.dsn, Outbox(), Moved)
    store.tidy()
    assert one(conn, "SELECT count(*) FROM pipeline.job") == 10
    old = str(ids[0]).replace(str(ids[0])[:8], "01000000")
    conn.execute(
        "UPDATE pipeline.job SET id = %s, finished_at = now() - interval '8 days' WHERE id = %s", (old, ids[0])
    )
    store.tidy()
    store.tidy()  # folds what the first one deleted
    store.close()
    assert one(conn, "SELECT count(*) FROM pipeline.job") == 9
    assert dict(conn.execute("SELECT state, count FROM pipeline.job_count").fetchall()) == {"waiting": 4, "done": 5}
    assert one(conn, "SELECT count(*) FROM pipeline.job_delta WHERE count > 0") == 0


OLD_JOBS = """
INSERT INTO pipeline.job (id, queue, type, state, finished_at, parent)
SELECT CAST('01000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid), 'q', 'T', 'done', {}, {}
FROM generate_series(CAST(%s AS int), CAST(%s AS int)) AS n
"""
LONG_AGO = "now() - interval '8 days'"
OLD = "SELECT count(*) FROM pipeline.job WHERE queue = 'q'"


def test_more_than_a_part_of_what_is_old_is_deleted_look_by_look_but_due_rows_come_first(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    conn.execute(OLD_JOBS.format(LONG_AGO, "NULL").encode(), (1, 7_000))
    fold(conn)
    store = DueStore(database.dsn, app.outbox, Moved)
    health = Readiness("scheduler")
    scheduler = Scheduler(store, (), tidy=store.tidy, meter=SilentMeter(), health=health, clock=lambda: 0.0)
    scheduler.step()
    assert one(conn, OLD) == 5_000
    with conn.transaction():
        app.enqueue_many(conn, [Mail(to="a")] * 600, delay_s=0.001)
    wait_until(lambda: one(conn, "SELECT bool_and(due_at < now()) FROM pipeline.due"))
    left = []
    for _ in range(5):
        scheduler.step()
        left.append((one(conn, "SELECT count(*) FROM pipeline.due"), one(conn, OLD)))
    store.close()
    assert left == [(100, 5_000), (0, 3_000), (0, 1_000), (0, 0), (0, 0)]


def test_old_jobs_that_finished_lately_or_wait_for_their_parent_do_not_hold_up_the_others(
    conn: psycopg.Connection[Any],
) -> None:
    """By the plan, too: parts are found by the index, with and without statistics, and young rows are not read."""
    parent = one(conn, "SELECT gen_random_uuid()")
    conn.execute("INSERT INTO pipeline.job (id, queue, type, state) VALUES (%s, 'p', 'P', 'blocked')", (parent,))
    conn.execute(OLD_JOBS.format("now()", "NULL").encode(), (1, 30))
    conn.execute(OLD_JOBS.format(LONG_AGO, f"CAST('{parent}' AS uuid)").encode(), (31, 60))
    conn.execute(OLD_JOBS.format(LONG_AGO, "NULL").encode(), (61, 85))
    conn.execute(
        "INSERT INTO pipeline.job (id, queue, type, state, finished_at) SELECT CAST('f' || substr(CAST("
        "gen_random_uuid() AS text), 2) AS uuid), 'q', 'T', 'done', now() FROM generate_series(1, 20000)"
    )
    fold(conn)
    for _ in range(2):
        plan = conn.execute(b"EXPLAIN (FORMAT JSON) " + _OLD_JOBS.encode(), {"part": 10, "keep_days": 7}).fetchone()
        assert plan is not None
        reads = [node for node in nodes(plan[0][0]["Plan"]) if node.get("Relation Name") == "job"]
        assert {node["Node Type"] for node in reads if "Scan" in node["Node Type"]} == {"Index Scan"}
        assert "job_state" in {node.get("Index Name") for node in reads}
        conn.execute("VACUUM ANALYZE pipeline.job")
    told = [(tidy(conn, keep_days=7, part=10), one(conn, OLD) - 20_000) for _ in range(4)]
    assert told == [(True, 75), (True, 65), (False, 60), (False, 60)]
    conn.execute("UPDATE pipeline.job SET finished_at = now() WHERE id = %s", (parent,))
    told = [(tidy(conn, keep_days=7, part=25), one(conn, OLD) - 20_000) for _ in range(2)]
    assert told == [(True, 35), (False, 30)]


def test_connections_that_are_kept_find_out_that_their_server_is_gone(database: Database) -> None:
    """Else a scheduler, the journal of a queue or a relay that begins waits for an hour across a cut network."""
    store, rows = DueStore(database.dsn, Outbox(), Moved), JobRows(database.dsn, lambda *asked: asked)
    store.tidy()
    rows.control("shop.jobs.email")
    positions = PositionStore(database.dsn, "slot")
    for conn in (store._kept._conn, rows._kept._conn, positions._conn):
        assert conn is not None
        told = conn.info.get_parameters()
        assert (told["tcp_user_timeout"], told["keepalives_idle"]) == ("30000", "15")
    for each in (store, rows, positions):
        each.close()


def test_a_store_that_is_closed_connects_to_nobody_any_more(database: Database, conn: psycopg.Connection[Any]) -> None:
    """Its thread may be in the middle of something, and would leave a connection behind."""
    store, rows = DueStore(database.dsn, Outbox(), Moved), JobRows(database.dsn, lambda *asked: asked)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pipe%'"
    store.tidy()
    rows.control("shop.jobs.email")
    assert one(conn, ours) == 2
    store.close()
    rows.close()
    for ask in (store.tidy, lambda: rows.control("shop.jobs.email")):
        with pytest.raises(SourceError, match="is closed"):
            ask()
    wait_until(lambda: one(conn, ours) == 0, why="their sessions end")


def test_what_passes_by_itself_is_waited_for_a_primary_that_became_a_standby_and_time_limits_of_the_role(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    with conn.transaction():
        job = plain_app().enqueue(conn, Mail(to="a"))
    read_only = f'ALTER DATABASE "{database.name}" SET default_transaction_read_only'
    conn.execute(f"{read_only} = on".encode())
    rows, store = JobRows(database.dsn, lambda *asked: asked), DueStore(database.dsn, Outbox(), Moved)
    report = Entry(str(job), 1, 0.0, False, list).report("done")

    def refused(call: Callable[[], Any]) -> str:
        with pytest.raises(SourceError) as raised:
            call()
        assert raised.value.retryable
        return raised.value.what

    assert "read-only" in refused(lambda: rows.settle([report]))
    assert "read-only" in refused(lambda: store.move(1))
    conn.execute(f'ALTER DATABASE "{database.name}" RESET default_transaction_read_only'.encode())
    rows.settle([report])  # by a new connection
    store.move(1)
    assert one(conn, "SELECT state FROM pipeline.job") == "done"
    limited = JobRows(make_conninfo(database.dsn, options="-c lock_timeout=50"), lambda *asked: asked)
    with conn.transaction():
        conn.execute("LOCK TABLE pipeline.job")
        assert "lock timeout" in refused(lambda: limited.settle([report]))
    for each in (rows, store, limited):
        each.close()


def test_tidying_up_is_one_transaction_as_a_pooler_may_give_the_next_one_another_session(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    store, other = DueStore(database.dsn, Outbox(), Moved), DueStore(database.dsn, Outbox(), Moved)
    begun = """SELECT a.xact_start < a.query_start FROM pg_stat_activity AS a JOIN pg_locks AS l ON l.pid = a.pid
               WHERE NOT l.granted AND l.relation = 'pipeline.tick'::regclass"""
    with psycopg.connect(database.dsn) as slow:
        slow.execute("LOCK TABLE pipeline.tick IN EXCLUSIVE MODE")  # the last of it waits
        tidying = threading.Thread(target=store.tidy)
        tidying.start()
        ((earlier,),) = wait_until(lambda: conn.execute(begun).fetchall())
        other.tidy()  # leaves it to the first
        assert earlier
    tidying.join()
    store.close()
    other.close()


def test_a_result_goes_with_its_row_and_a_childs_stays_until_its_parent_has_had_it(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    app = plain_app()
    store = DueStore(database.dsn, Outbox(), Moved)
    with conn.transaction():
        app.enqueue_flow(conn, chain(Mail(to="child"), Mail(to="parent")))
    # all of it long ago: ids begin with their time
    old = "CAST('01000000' || substr(CAST({0} AS text), 9) AS uuid)"
    conn.execute(f"UPDATE pipeline.job SET id = {old.format('id')}, parent = {old.format('parent')}".encode())
    child, parent = (
        row[0] for row in conn.execute("SELECT id FROM pipeline.job ORDER BY parent NULLS LAST").fetchall()
    )

    def finish(job_id: Any) -> None:
        report = {"id": str(job_id), "state": "done", "result": [str(job_id)]}
        conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([report]),))
        conn.execute("UPDATE pipeline.job SET finished_at = now() - interval '8 days' WHERE id = %s", (job_id,))
        for _ in range(2):  # the kinds of jobs are known from the counts
            store.tidy()

    finish(child)
    with conn.transaction():
        assert app.run(conn, jobs.find(child)).result == [str(child)]
    finish(parent)
    for job_id in (parent, child):
        store.tidy()
        with conn.transaction(), pytest.raises(JobError, match="younger than the scheduler's --keep-days"):
            app.run(conn, jobs.find(job_id))
    store.close()


def test_schedulers_killed_in_the_middle_lose_and_double_nothing(
    database: Database, conn: psycopg.Connection[Any], cli_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline", "scheduler", "run", "shop:app", "--log-level", "error"]
        process = subprocess.Popen(
            [*command, "--metrics-port", "0"], cwd=tmp_path, env=cli_environment, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        assert b"port" in process.stderr.readline()
        return process

    app = plain_app()
    processes = [start(), start()]
    ids = []
    try:
        for round_ in range(8):
            with conn.transaction():
                ids += app.enqueue_many(conn, [Mail(to=str(n)) for n in range(700)], delay_s=0.2)
            moved = one(conn, "SELECT count(*) FROM pipeline.outbox WHERE type = 'Mail'")
            wait_until(
                lambda moved=moved: one(conn, "SELECT count(*) FROM pipeline.outbox WHERE type = 'Mail'") > moved
            )
            victim = processes[round_ % 2]
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
            processes[round_ % 2] = start()
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.due") == 0)
        wait_until(lambda: one(conn, "SELECT now() - last_at < interval '1.5 seconds' FROM pipeline.schedule"))
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    rows = [row[0] for row in conn.execute("SELECT id FROM pipeline.outbox WHERE type = 'Mail'").fetchall()]
    assert (len(rows), set(rows)) == (len(ids), set(ids))
    ticks = [row[0] for row in conn.execute("SELECT at FROM pipeline.tick ORDER BY at").fetchall()]
    assert {b - a for a, b in itertools.pairwise(ticks)} == {timedelta(seconds=1)}
    assert one(conn, "SELECT count(*) FROM pipeline.outbox WHERE type <> 'Mail'") == len(ticks)


def test_it_waits_for_a_database_and_says_so(
    database: Database, conn: psycopg.Connection[Any], cli_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pipeline", "scheduler", "run", "--metrics-port", "0"]
    with subprocess.Popen(command, env=cli_environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = process.stderr.readline().rsplit(" ", 1)[1].strip()

        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(ready)
        with conn.transaction():
            plain_app().enqueue(conn, Mail(to="a"), delay_s=0.01)
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                     " WHERE pid <> pg_backend_pid() AND datname = current_database()")  # fmt: skip
        wait_until(lambda: one(conn, "SELECT count(*) FROM pipeline.outbox") == 1)
        wait_until(ready)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert b"pipeline_scheduler_moved_total 1.0" in answer.read()
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0


def scraped(port: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_it_tells_of_the_slot_of_a_relay_that_is_down_and_a_relay_tells_nothing_of_schedulers(
    database: Database, conn: psycopg.Connection[Any], cli_environment: dict[str, str], tmp_path: Path, prefix: str
) -> None:
    with RelayProcess(connector_file(tmp_path, prefix), cli_environment) as relay:
        relay.reading()
        relay.readiness()
        port = next(line.split()[-1] for line in relay.log.splitlines() if "probes on port" in line)
        by_relay = wait_until(lambda: scraped(port) if "pipeline_slot_lag_bytes" in str(scraped(port)) else None)
        assert f'pipeline_slot_active{{slot="{prefix}"}}' in by_relay
        assert [name for name in by_relay if name.startswith(("pipeline_scheduler", "pipeline_handler"))] == []
        assert relay.stop() == 0
    assert one(conn, "SELECT count(*) FROM pipeline.relay_position") == 1
    insert(conn, "t", "k")
    command = [sys.executable, "-m", "pipeline", "scheduler", "run", "--metrics-port", "0"]
    with subprocess.Popen(command, env=cli_environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = process.stderr.readline().rsplit(" ", 1)[1].strip()
        active = f'pipeline_slot_active{{slot="{prefix}"}}'
        found = wait_until(lambda: scraped(port) if active in scraped(port) else None)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert found["pipeline_scheduler_moved_total"] == 0
    assert found["pipeline_scheduler_lateness_seconds_count"] == 0
    assert found[active] == 0
    assert found[f'pipeline_slot_lag_bytes{{slot="{prefix}"}}'] > 0
    assert found[f'pipeline_slot_wal_retained_bytes{{slot="{prefix}"}}'] > 0
    assert found[f'pipeline_outbox_unpublished_seconds{{slot="{prefix}"}}'] > 0


def test_a_slot_that_is_gone_is_told_of_no_more(database: Database, conn: psycopg.Connection[Any], prefix: str) -> None:
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
    registry = CollectorRegistry()
    metrics = SlotMetrics(SlotWatch(database.dsn), PrometheusMeter(registry))
    metrics.export()
    assert prefix.encode() in generate_latest(registry)
    conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
    metrics.export()
    assert prefix.encode() not in generate_latest(registry)
