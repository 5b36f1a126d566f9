"""The local stack with real servers: what a developer does with ``pipeline up``, and what goes wrong then."""

from __future__ import annotations

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from servers import Database, Topics, registry_client_config

from pipeline.local import Endpoints, LocalStack

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
    topics.admin.list_topics(f"{prefix}.never", timeout=5)
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
    assert f"{prefix}.orders" in admin.list_topics(timeout=10).topics
    with SchemaRegistryClient(registry_client_config(private_endpoints)) as client:
        assert prefix in client.get_subjects()
