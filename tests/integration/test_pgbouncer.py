"""Writers behind the real PgBouncer in transaction mode: each transaction may have another server connection.

The binary comes from the distribution's package. As root the fixture installs it; otherwise the test fails and says
how to.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import conninfo
from servers import Database
from sqlalchemy.orm import Session
from transactions import ASYNC_WAYS, WAYS

from pipeline import Event, Job, Pipeline
from pipeline.avro import schema_of
from pipeline.errors import JobError, SourceError
from pipeline.job import Unique
from pipeline.local.ports import free_port
from pipeline.postgres.diagnosis import Capture, examine
from pipeline.postgres.polling import PollingSource, PollSettings
from pipeline.postgres.schema_ids import SchemaIdTable
from pipeline.subject import subject_of


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Noted(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


class Mail(Job, queue="mail"):
    to: str


def fresh() -> Pipeline:
    """An application that remembers no schema id, so that lookup and insert go through the pooler each time."""
    return Pipeline("shop", topic_prefix="")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to run PgBouncer: installed, else installed as root, else unpacked from Debian's packages as anybody."""
    where = f"{os.environ.get('PATH', '')}:/usr/sbin"
    if found := shutil.which("pgbouncer", path=where):
        return [found]
    if shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if os.geteuid() == 0:
            for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "pgbouncer"]):
                subprocess.run(command, capture_output=True, check=False, env=quiet)
            if found := shutil.which("pgbouncer", path=where):
                return [found]
        elif unpacked := _unpacked(tmp_path_factory.mktemp("pgbouncer")):
            return unpacked
    pytest.fail("this test needs PgBouncer: sudo apt-get install pgbouncer (or your distribution's package)")


def _unpacked(folder: Path) -> list[str] | None:
    """Fetch and unpack the packages without installing them, which needs no rights; None where that fails."""
    listed = subprocess.run(["apt-cache", "depends", "pgbouncer"], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"^  Depends: (lib(?:event|cares|c-ares)\S*)", listed, re.MULTILINE)
    subprocess.run(["apt-get", "download", "pgbouncer", *libraries], cwd=folder, capture_output=True, check=False)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder)], capture_output=True, check=False)
    found = folder / "usr/sbin/pgbouncer"
    path = ":".join(sorted({str(file.parent) for file in folder.rglob("*.so*")}))
    return ["env", f"LD_LIBRARY_PATH={path}", str(found)] if found.exists() else None


@pytest.fixture
def pooled(binary: list[str], database: Database, tmp_path: Path) -> Iterator[str]:
    """DSN of a PgBouncer with two server connections, used in turn."""
    parts = conninfo.conninfo_to_dict(database.dsn)
    port = free_port(())  # below those that systems take for outgoing connections
    server = " ".join(f"{name}={parts[name]}" for name in ("host", "port", "dbname", "user", "password"))
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npooled = {server}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    config.chmod(0o644)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):  # pytest's own: nobody has to pass
        folder.chmod(folder.stat().st_mode | 0o711)
    as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with subprocess.Popen([*binary, "-q", *as_user, str(config)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _when_up(process, f"postgresql://anyone@127.0.0.1:{port}/pooled")
        finally:
            process.terminate()


def _when_up(process: subprocess.Popen[str], dsn: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"pgbouncer does not answer: {error}")
            time.sleep(0.05)
        else:
            return dsn


@pytest.fixture
def pushed(database: Database) -> Database:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        event = (subject_of("outbox.event.order", "Placed"), schema_of(Placed).fingerprint)
        job = (subject_of("shop.jobs.mail", "Mail"), schema_of(Mail).fingerprint)
        SchemaIdTable(conn).put({event: 1, job: 2})
    return database


def count(database: Database, table: str = "outbox") -> int:
    with psycopg.connect(database.dsn) as conn:
        row = conn.execute(f"SELECT count(*) FROM pipeline.{table}").fetchone()
    assert row is not None
    return int(row[0])


def test_two_server_connections_are_really_used(pooled: str) -> None:
    with psycopg.connect(pooled, prepare_threshold=None) as conn:
        pids = set()
        for _ in range(6):
            with conn.transaction():
                pids.add(conn.execute("SELECT pg_backend_pid()").fetchone())
            conn.commit()
    with psycopg.connect(pooled) as one, psycopg.connect(pooled) as two:
        pids |= {one.execute("SELECT pg_backend_pid()").fetchone(), two.execute("SELECT pg_backend_pid()").fetchone()}
    assert len(pids) == 2


def test_psycopg_publishes_with_its_default_settings(pooled: str, pushed: Database) -> None:
    with psycopg.connect(pooled) as conn, psycopg.connect(pooled) as other:
        for n in range(20):  # psycopg prepares after five: not what we run
            fresh().publish(conn, Placed(order_id=f"{n}"))
            fresh().publish(other, Placed(order_id=f"{n}"))
            for each in ((conn, other), (other, conn))[n % 2]:
                each.commit()
        fresh().publish_many(conn, [Placed(order_id=f"{n}") for n in range(100)])
        conn.commit()
    assert count(pushed) == 140


def test_sqlalchemy_publishes_on_psycopg_and_psycopg2(pooled: str, pushed: Database) -> None:
    for driver, options in (("psycopg", {"prepare_threshold": None}), ("psycopg2", {})):
        engine = sa.create_engine(pooled.replace("postgresql", f"postgresql+{driver}"), connect_args=options)
        for n in range(10):
            with Session(engine) as session, Session(engine) as other:
                fresh().publish(session, Placed(order_id=f"{n}"))
                fresh().publish(other, Placed(order_id=f"{n}"))
                other.commit()
                session.commit()
        engine.dispose()
    assert count(pushed) == 40


def test_asyncpg_publishes_without_its_statement_cache(pooled: str, pushed: Database) -> None:
    async def run() -> None:
        conns = [await asyncpg.connect(pooled, statement_cache_size=0) for _ in range(2)]
        for n in range(10):
            async with conns[n % 2].transaction(), conns[1 - n % 2].transaction():
                await fresh().apublish(conns[0], Placed(order_id=f"{n}"))
                await fresh().apublish_many(conns[1], [Noted(order_id=f"{n}"), Placed(order_id="x")])
        for conn in conns:
            await conn.close()

    asyncio.run(run())
    assert count(pushed) == 30


# ── jobs ───────────────────────────────────────────────────────────────────────────────────────────────────────

_TURNS = 8
_ONE = Unique(key="one", on_conflict="keep")


class Turns:
    """Lets the transactions of one client connection have another server connection in each second turn."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.seen: set[int] = set()
        self.kept: set[UUID] = set()

    def __iter__(self) -> Iterator[int]:
        with psycopg.connect(self._dsn, prepare_threshold=None) as other:
            for n in range(_TURNS):
                other.execute("SELECT 1")  # it has one of the two while this turn lasts …
                yield n
                other.commit()
                if n % 2:  # … and here a turn of its own, so that the next is another's
                    other.execute("SELECT 1")
                    other.commit()

    def check(self, database: Database) -> None:
        """All that was enqueued is there once, and came over both server connections."""
        assert len(self.seen) == 2
        assert len(self.kept) == 1
        assert count(database) == _TURNS * 32 + 1
        assert count(database, "due") == _TURNS
        assert count(database, "job") == _TURNS * 32 + 1
        assert count(database, "job_key") == 1


@pytest.mark.parametrize("way", WAYS)
def test_jobs_are_enqueued_at_once_later_and_once(way: str, pooled: str, pushed: Database) -> None:
    turns = Turns(pooled)
    with WAYS[way](pooled) as (conn, asked, transaction):
        for n in turns:
            app = fresh()
            with transaction():
                turns.seen.add(asked("SELECT pg_backend_pid()"))
                app.enqueue(conn, Mail(to=f"{n}"), tags=["first"], timeout_s=5)
                app.enqueue(conn, Mail(to=f"{n}"), delay_s=3600)
                turns.kept.add(app.enqueue(conn, Mail(to="same"), unique=_ONE))
                app.enqueue_many(conn, [Mail(to=f"{n}") for n in range(30)])  # by COPY where that is known
                app.publish(conn, Placed(order_id=f"{n}"))
            with pytest.raises(JobError, match="held by job"), transaction():
                app.enqueue(conn, Mail(to="same"), unique=Unique(key="one", on_conflict="reject"))
    turns.check(pushed)


@pytest.mark.parametrize("way", ASYNC_WAYS)
def test_jobs_are_enqueued_at_once_later_and_once_by_async_connections(way: str, pooled: str, pushed: Database) -> None:
    async def run() -> None:
        async with ASYNC_WAYS[way](pooled) as (conn, asked, transaction):
            for n in turns:
                app = fresh()
                async with transaction():
                    turns.seen.add(await asked("SELECT pg_backend_pid()"))
                    await app.aenqueue(conn, Mail(to=f"{n}"), tags=["first"], timeout_s=5)
                    await app.aenqueue(conn, Mail(to=f"{n}"), delay_s=3600)
                    turns.kept.add(await app.aenqueue(conn, Mail(to="same"), unique=_ONE))
                    await app.aenqueue_many(conn, [Mail(to=f"{n}") for n in range(30)])
                    await app.apublish(conn, Placed(order_id=f"{n}"))
                with pytest.raises(JobError, match="held by job"):
                    async with transaction():
                        await app.aenqueue(conn, Mail(to="same"), unique=Unique(key="one", on_conflict="reject"))

    turns = Turns(pooled)
    asyncio.run(run())
    turns.check(pushed)


def test_a_job_without_a_connection_goes_through_the_pooler_too(
    pooled: str, pushed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", pooled)
    for n in range(8):
        fresh().enqueue(Mail(to=f"{n}"))
        asyncio.run(fresh().aenqueue(Mail(to=f"{n}"), delay_s=3600))
    assert (count(pushed), count(pushed, "due")) == (8, 8)


def test_the_doctor_sees_the_pooler(pooled: str) -> None:
    found = {one.check: one for one in examine(pooled, Capture("s", "pipeline_outbox", ("pipeline.outbox",)))}
    assert (found["connection"].level, found["connection"].found) == ("problem", "through a pooler")


def test_a_relay_that_polls_refuses_a_pooler_and_says_why(pooled: str, prefix: str) -> None:
    settings = PollSettings(prefix, lambda _schema, _table: True, "pipeline.outbox", "payload")
    with pytest.raises(SourceError, match="goes through a pooler") as raised:
        PollingSource(pooled, settings, lambda _relation: ((), lambda: None)).start()  # type: ignore[arg-type,return-value]
    assert not raised.value.retryable
    assert "database.hostname" in raised.value.remedy
