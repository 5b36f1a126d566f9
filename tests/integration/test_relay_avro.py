"""The relay with Avro converters on a real registry: what waits for it, what is dead, what is written."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import fastavro
import psycopg
import pytest
from commands import CommandLine
from confluent_kafka import Message
from confluent_kafka.schema_registry import SchemaRegistryClient
from faults.proxy import Link, Proxies
from relays import RelayProcess, connector_file, headers, read_topic, until
from servers import Database, Topics

from pipeline.codec import unframe
from pipeline.local import Endpoints


@pytest.fixture
def link(endpoints: Endpoints) -> Iterator[Link]:
    """A way to the registry, which refuses at first."""
    address = urlsplit(endpoints.registry)
    proxies = Proxies()
    made = proxies.link("registry", (address.hostname or "", address.port or 0))
    made.refuse()
    yield made
    proxies.close()


def converters(name: str, link: Link, endpoints: Endpoints) -> dict[str, str]:
    server, user, password = f"http://127.0.0.1:{link.port}", endpoints.registry_username, endpoints.registry_password
    own = {
        "confluent": {
            "": "io.confluent.connect.avro.AvroConverter",
            ".schema.registry.url": server + urlsplit(endpoints.registry).path,
            ".basic.auth.credentials.source": "USER_INFO",
            ".basic.auth.user.info": f"{user}:{password}",
        },
        "apicurio": {
            "": "io.apicurio.registry.utils.converter.AvroConverter",
            ".apicurio.registry.url": f"{server}/apis/registry/v2",
            ".apicurio.auth.username": user or "",
            ".apicurio.auth.password": password or "",
            ".apicurio.registry.auto-register": "true",
            ".apicurio.registry.as-confluent": "true",
            ".apicurio.registry.use-id": "contentId",
            ".apicurio.registry.headers.enabled": "false",
        },
    }
    return {f"{part}.converter{key}": value for part in ("key", "value") for key, value in own[name].items()}


@pytest.mark.parametrize("name", ["confluent", "apicurio"])
def test_records_wait_for_the_registry_and_for_a_schema_that_it_does_not_take(
    name: str, tmp_path: Path, prefix: str, topics: Topics, pipeline: CommandLine,
    cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str,
    registry_client: SchemaRegistryClient, endpoints: Endpoints, link: Link,
) -> None:  # fmt: skip
    topic, beats = f"{prefix}.events", f"__debezium-heartbeat.{prefix}"
    topics.create(topic)
    file = connector_file(
        tmp_path, prefix, **converters(name, link, endpoints), **{
            "table.include.list": "public.events", "publication.name": "events", "topic.prefix": prefix,
            "heartbeat.interval.ms": "300", "transforms.outbox.table.expand.json.payload": "true",
            "transforms.outbox.table.fields.additional.placement": None,
        },
    )  # fmt: skip

    def read(framed: bytes | None) -> tuple[str, object]:
        schema_id, body = unframe(framed or b"")
        text = registry_client.get_schema(schema_id).schema_str or ""
        return text, fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(json.loads(text)), None)

    def records(count: int) -> list[Message]:
        return until(lambda: len(m := read_topic(bootstrap_servers, topic)) >= count and m, f"{count} records")

    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregateid text NOT NULL, topic text,"
            " payload jsonb, created_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'))"
        )
        conn.execute("CREATE PUBLICATION events FOR TABLE events WITH (publish = 'insert')")

        def write(document: str) -> None:
            conn.execute("INSERT INTO events (aggregateid, topic, payload) VALUES ('k', %s, %s)", (topic, document))

        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            reasons = lambda: str(relay.readiness()["reasons"])  # noqa: E731
            write('{"total": 7}')
            until(lambda: "registry: register " in reasons(), "not ready: the registry is away")
            registry_client.set_compatibility(f"{topic}-value", "BACKWARD")
            link.restore()
            (first,) = records(1)
            until(lambda: relay.readiness()["ready"], "ready")

            write('{"total": "seven"}')
            told = {"confluent": "HTTP 409", "apicurio": "HTTP 400, Incompatible artifact"}[name]
            until(lambda: f"register {topic}-value: {told}" in reasons(), "not ready: the schema is incompatible")
            registry_client.set_compatibility(f"{topic}-value", "NONE")
            second = records(2)[1]
            link.refuse()
            write('{"to tal": 7}')  # no name in Avro, whatever the registry says
            write('{"total": 8}')  # by a schema that is known
            (letter,) = until(lambda: read_topic(bootstrap_servers, f"{prefix}.dlq"), "the dead letter")
            third = records(3)[2]
            (beat, *_) = until(lambda: read_topic(bootstrap_servers, beats), "a heartbeat")
            assert relay.stop() == 0

        write('{"total": 9}')  # which no relay reads: its slot is lost
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        conn.execute("DELETE FROM pipeline.relay_position")
        link.restore()
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            done = pipeline("connector", "reconcile", str(file), "--execute")
            assert (done.code, "published: 1" in done.stderr) == (0, True), done
            fourth = records(4)[3]
            assert relay.stop() == 0
    topics.delete([beats])
    assert read(first.key()) == ('"string"', "k")
    record = '{"type":"record","name":"payload","fields":[%s],"connect.name":"payload"}'
    field = '{"name":"total","type":["null","%s"],"default":null}'
    schema = '["null",%s]' if name == "confluent" else "%s"
    assert read(first.value()) == (schema % (record % (field % "int")), {"total": 7})
    assert read(second.value()) == (schema % (record % (field % "string")), {"total": "seven"})
    assert read(third.value()) == (read(first.value())[0], {"total": 8})
    assert (read(fourth.key()), read(fourth.value())) == (read(third.key()), (read(first.value())[0], {"total": 9}))
    assert json.loads(letter.value() or b"")["payload"] == {"to tal": 7}
    assert b"'to tal' is no name in Avro" in headers(letter)["__dlq.errors.message"]
    text, key = read(beat.key())
    assert (json.loads(text)["connect.name"], key) == (
        "io.debezium.connector.common.ServerNameKey", {"serverName": prefix},
    )  # fmt: skip
    assert isinstance(dict(read(beat.value())[1]).get("ts_ms"), int)  # type: ignore[call-overload]
