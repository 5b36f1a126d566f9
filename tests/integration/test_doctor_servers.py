"""What ``pipeline doctor`` says of whole servers, on servers of the test's own: what it prints to mend it is done."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine, runner
from pair import Pair
from relays import busy, connector_file, until
from servers import Database

from pipeline.local import Endpoints, LocalStack
from pipeline.postgres.diagnosis import server
from pipeline.postgres.slot import ReplicationConnection

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def pipeline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, private_cli_environment: dict[str, str],
    tmp_path: Path,
) -> CommandLine:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch, {**private_cli_environment, "PIPELINE_DATA_DIR": str(tmp_path)})


def said(pipeline: CommandLine, file: Path, check: str, **environment: str) -> list[dict[str, str]]:
    found = json.loads(pipeline("doctor", str(file), "-o", "json", **environment).stdout)
    return [one for one in found if one["check"] == check and one["level"] in {"warning", "problem"}]


def set_(conn: Connection, *settings: str) -> None:
    for setting in settings:
        conn.execute(f"ALTER SYSTEM SET {setting}".encode())
    conn.execute("SELECT pg_reload_conf()")


def run(conn: Connection, fix: str) -> None:
    for statement in filter(None, (part.strip() for part in fix.split(";"))):
        if not statement.startswith(("then ", "else ")):
            conn.execute(statement.encode())


def make_noise(conn: Connection) -> None:
    conn.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000))")


def restart(stack: LocalStack) -> None:
    stack.postgres.stop()
    stack.up()


def test_settings_of_the_server(
    pipeline: CommandLine, tmp_path: Path, prefix: str, private_database: Database, private_stack: LocalStack,
    private_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix, **{"database.dbname": private_database.name})
    connect: Callable[[], Connection] = lambda: psycopg.connect(private_database.dsn, autocommit=True)  # noqa: E731

    with connect() as conn:  # those that need no restart
        for setting, check in (
            ("max_slot_wal_keep_size = -1", "max_slot_wal_keep_size"),
            ("idle_replication_slot_timeout = '1h'", "idle_replication_slot_timeout"),
            ("synchronized_standby_slots = 'nowhere'", "synchronized_standby_slots"),
        ):
            set_(conn, setting)
            until(lambda check=check: said(pipeline, file, check), check)  # type: ignore[misc]
            (found,) = said(pipeline, file, check)
            run(conn, found["fix"])
            until(lambda check=check: not said(pipeline, file, check), f"no {check}")  # type: ignore[misc]
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
        (found,) = said(pipeline, file, f"slot {prefix}")  # the bound is set by the remedy above
        assert re.search(r"read by nobody for \d+ s, \d+ bytes behind, \d+ bytes to invalidation", found["found"])
        with busy(private_database.dsn, make_noise, every_s=0):
            (found,) = said(pipeline, file, f"slot {prefix}")
            told = re.search(r"(\d+) bytes to invalidation: (\d+) s at this rate", found["found"])
            assert told, found["found"]
            left, seconds = map(int, told.groups())
            assert 0 < seconds < left
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        set_(conn, "wal_level = 'replica'", "max_wal_senders = 1", "max_prepared_transactions = 5")
        set_(conn, "max_replication_slots = 1")
    restart(private_stack)
    assert said(pipeline, file, "wal_level")[0]["found"] == "replica"
    with connect() as conn:
        run(conn, said(pipeline, file, "wal_level")[0]["fix"])
        monkeypatch.setattr(server, "_LONG_TRANSACTION_S", 0.0)
        conn.execute("BEGIN")
        conn.execute("SELECT pg_current_xact_id()")
        conn.execute("PREPARE TRANSACTION 'it''s'")
        (found,) = said(pipeline, file, "prepared transaction it's")
        run(conn, found["fix"])
        assert said(pipeline, file, "prepared transaction it's") == []
        with closing(connect()) as other:  # which is ended
            other.execute("BEGIN")
            other.execute("SELECT pg_current_xact_id()")
            run(conn, said(pipeline, file, "long transactions")[0]["fix"])
        until(lambda: not said(pipeline, file, "long transactions"), "it was ended")
    restart(private_stack)
    assert said(pipeline, file, "wal_level") == []
    with connect() as conn:
        assert said(pipeline, file, f"slot {prefix}")[0]["found"] == "is not there"
        conn.execute("SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
        (found,) = said(pipeline, file, f"slot {prefix}")
        assert (found["level"], found["found"]) == ("problem", "is not there, and all slots are taken")
        assert "max_replication_slots" in found["fix"]
        conn.execute("SELECT pg_drop_replication_slot('other')")
        assert said(pipeline, file, f"slot {prefix}")[0]["level"] == "warning"
    with closing(ReplicationConnection(private_database.dsn)):
        assert said(pipeline, file, "max_wal_senders")[0]["found"] == "all are taken"
    with connect() as conn:
        conn.execute("ALTER SYSTEM RESET ALL")
    restart(private_stack)


def test_a_registry_that_takes_no_schemas(
    pipeline: CommandLine, tmp_path: Path, prefix: str, private_database: Database, private_endpoints: Endpoints
) -> None:
    file = connector_file(tmp_path, prefix, **{"database.dbname": private_database.name})
    (ready,) = [
        one
        for one in json.loads(pipeline("doctor", str(file), "-o", "json").stdout)
        if one["area"] == "registry" and one["check"] == "registry"
    ]
    assert ready["level"] == "ok"
    mode = f"curl -sS -X PUT {private_endpoints.registry}/mode -H 'content-type: application/json' -d "
    user = f" -u {private_endpoints.registry_username}:{private_endpoints.registry_password}"
    subprocess.run(mode + '\'{"mode": "READONLY"}\'' + user, shell=True, check=True, timeout=60)
    (found,) = said(pipeline, file, "mode")
    assert found["found"] == "READONLY: schemas cannot be pushed"
    subprocess.run(found["fix"].replace("USER:PASSWORD", user.split()[1]), shell=True, check=True, timeout=60)
    assert said(pipeline, file, "mode") == []


def test_a_primary_whose_standby_would_lack_the_slot(
    pipeline: CommandLine, tmp_path: Path, prefix: str, servers: Pair
) -> None:
    own = {"PIPELINE_POSTGRES__DSN": servers.dsn}
    file = connector_file(tmp_path, prefix, **{"slot.failover": "true"})
    with psycopg.connect(servers.primary.dsn(), autocommit=True) as conn:
        set_(conn, "synchronous_standby_names = ''")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
        (found,) = said(pipeline, file, "failover", **own)
        assert "is no failover slot" in found["found"]
        with closing(ReplicationConnection(servers.primary.dsn())) as psql:
            psql.rows(found["fix"].partition(": ")[2].rstrip(";"))
        assert said(pipeline, file, "failover", **own) == []

        set_(conn, "synchronized_standby_slots = ''")
        until(lambda: said(pipeline, file, "failover", **own), "the standby is not waited for")
        run(conn, said(pipeline, file, "failover", **own)[0]["fix"])
        until(lambda: not said(pipeline, file, "failover", **own), "it is waited for")

        servers.standby.stop()
        check = "synchronized_standby_slots"
        until(lambda: said(pipeline, file, check, **own), "a standby that does not follow")
        (found,) = said(pipeline, file, check, **own)
        assert (found["level"], "standby does not follow" in found["found"]) == ("problem", True)
        servers.standby.start(threading.Event())
        until(lambda: not said(pipeline, file, check, **own), "it follows again")
    alone = connector_file(
        tmp_path,
        f"{prefix}-s",
        **{"database.hostname": "127.0.0.1", "database.port": str(servers.standby.home.port("postgres"))},
    )
    assert said(pipeline, alone, "role of the server", **own)[0]["found"] == "standby"
