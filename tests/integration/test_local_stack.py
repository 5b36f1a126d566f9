"""The local stack with real servers: what a developer does with ``pipeline up``, and what goes wrong then."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from servers import Database, Topics, registry_client_config

from pipeline.errors import LocalStackError
from pipeline.local import Endpoints, LocalStack
from pipeline.local.progress import silent

EMPTY = Schema('{"type":"record","name":"a","fields":[]}', "AVRO")


def test_postgres_decodes_logically_keeps_utf8_and_asks_for_a_password(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        shown = connection.execute(
            "SELECT current_setting('wal_level'), current_setting('fsync'), current_setting('server_encoding'),"
            " current_setting('listen_addresses'), to_regclass('pipeline.outbox') IS NOT NULL"
        ).fetchone()
    assert shown == ("logical", "on", "UTF8", "127.0.0.1", True)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(database.dsn, password="wrong")


def test_kafka_makes_topics_only_when_asked(topics: Topics, prefix: str) -> None:
    topics.admin.list_topics(f"{prefix}.never", timeout=60)
    topics.create(f"{prefix}.orders", partitions=3)
    assert topics.names(prefix) == [f"{prefix}.orders"]


def test_registry_asks_for_a_password(registry_client: SchemaRegistryClient, endpoints: Endpoints, prefix: str) -> None:
    assert registry_client.register_schema(prefix, EMPTY) > 0
    with (
        SchemaRegistryClient({"url": endpoints.registry}) as anonymous,
        pytest.raises(SchemaRegistryError, match="401"),
    ):
        anonymous.get_subjects()


def test_a_second_up_finds_what_runs(private_stack: LocalStack, private_endpoints: Endpoints) -> None:
    before = [status.pid for status in private_stack.status()]
    assert private_stack.up() == private_endpoints
    assert [status.pid for status in private_stack.status()] == before


@pytest.mark.parametrize("name", ["postgres", "kafka", "registry"])
def test_a_killed_server_comes_back_where_it_was(
    private_stack: LocalStack, private_endpoints: Endpoints, name: str
) -> None:
    private_stack.kill(name)  # type: ignore[arg-type]  # a parameter is a str
    assert {status.name: status.state for status in private_stack.status()}[name] == "stopped"
    assert private_stack.endpoints() is None
    private_stack.start(name)  # type: ignore[arg-type]
    assert private_stack.endpoints() == private_endpoints
    assert {status.state for status in private_stack.status()} == {"healthy"}


def test_what_was_written_survives_down_and_up(
    private_stack: LocalStack, private_endpoints: Endpoints, private_database: Database, prefix: str
) -> None:
    Topics(private_endpoints.kafka).create(f"{prefix}.orders")
    with SchemaRegistryClient(registry_client_config(private_endpoints)) as client:
        client.register_schema(prefix, EMPTY)
    with psycopg.connect(private_database.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    private_stack.down()
    assert {status.state for status in private_stack.status()} == {"stopped"}
    assert private_stack.up() == private_endpoints
    with psycopg.connect(private_database.dsn) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    admin = AdminClient({"bootstrap.servers": private_endpoints.kafka})
    assert f"{prefix}.orders" in admin.list_topics(timeout=60).topics
    with SchemaRegistryClient(registry_client_config(private_endpoints)) as client:
        assert prefix in client.get_subjects()


def test_connect_has_debezium(connect_url: str) -> None:
    with urllib.request.urlopen(f"{connect_url}/connector-plugins", timeout=60) as response:
        plugins = json.load(response)
    assert "io.debezium.connector.postgresql.PostgresConnector" in {plugin["class"] for plugin in plugins}


def test_a_taken_port_is_chosen_again_by_up_and_refused_by_start(
    private_stack: LocalStack, private_endpoints: Endpoints
) -> None:
    host, _, port = private_endpoints.kafka.partition(":")
    private_stack.stop("kafka")
    with socket.create_server((host, int(port))):
        with pytest.raises(LocalStackError, match=rf"port {port} is in use by \S+ \(pid {os.getpid()}\)"):
            private_stack.start("kafka")
        now = private_stack.up()
    assert now.kafka != private_endpoints.kafka
    assert now.postgres_dsn == private_endpoints.postgres_dsn
    assert AdminClient({"bootstrap.servers": now.kafka}).list_topics(timeout=60).brokers


def test_a_port_that_somebody_takes_while_the_server_starts_is_chosen_again_too(
    private_stack: LocalStack, private_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_stack.stop("kafka")
    host, _, port = private_endpoints.kafka.partition(":")
    check = private_stack.kafka._check_ports
    said: list[str] = []
    with ExitStack() as strangers:

        def check_and_lose() -> None:
            check()
            if not said:
                strangers.enter_context(socket.create_server((host, int(port))))
            said.append(private_stack.kafka.address())

        monkeypatch.setattr(private_stack.kafka, "_check_ports", check_and_lose)
        now = private_stack.up()
    assert said == [private_endpoints.kafka, now.kafka]
    assert AdminClient({"bootstrap.servers": now.kafka}).list_topics(timeout=60).brokers


def test_a_server_that_dies_while_starting_shows_the_end_of_its_log_and_nothing_else_is_touched(
    private_stack: LocalStack,
) -> None:
    private_stack.stop("kafka")
    meta = private_stack.data / "kafka" / "logs" / "meta.properties"
    good = meta.read_text()
    meta.write_text(good.replace("node.id=1", "node.id=7"))
    try:
        with pytest.raises(LocalStackError, match=r"(?s)kafka died while starting; its log ends:.*node id 7") as error:
            private_stack.up()
    finally:
        meta.write_text(good)
    assert "kafka.log" in error.value.remedy
    assert [status.state for status in private_stack.status()] == ["healthy", "stopped", "healthy"]


@pytest.mark.parametrize(("how", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_an_interrupted_up_stops_what_it_started_and_a_killed_one_is_taken_up_by_the_next(
    private_stack: LocalStack, how: signal.Signals, left: int
) -> None:
    private_stack.down()
    code = "import sys, pathlib, pipeline.local as local; local.LocalStack(pathlib.Path(sys.argv[1])).up()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(private_stack.data)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    ) as up:
        pid_file = private_stack.data / "kafka" / "pid"
        while not (pid_file.exists() and pid_file.read_text()):
            assert up.poll() is None
        up.send_signal(how)
    running = [status.name for status in private_stack.status() if status.pid is not None]
    assert bool(running) == bool(left)
    private_stack.up()
    assert {status.state for status in private_stack.status()} == {"healthy"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
def test_as_root_in_a_private_home_postgres_has_its_data_where_its_user_can_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    stack = LocalStack(tmp_path / "data")
    try:
        stack.postgres.home._make()
        servers = (stack.postgres, stack.kafka, stack.registry, stack.connect)
        stack.postgres.home.settle([port for server in servers for port in server.port_names], silent)
        stack.start("postgres")
        (status, *_) = stack.status()
        assert status.state == "healthy"
        assert not Path(status.data).is_relative_to(tmp_path)
    finally:
        stack.down(delete=True)
    assert not Path(status.data).exists()
