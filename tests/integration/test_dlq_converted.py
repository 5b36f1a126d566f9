"""Dead letters whose records went through converters: redriven byte for byte, or left where they were never encoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from commands import CommandLine
from relays import RelayProcess, connector_file, headers, read_topic, until
from servers import Topics
from working import Broker, running

from pipeline import Context, Event, Pipeline, RetryPolicy
from pipeline.local import Endpoints
from pipeline.record import Record

JSON = "org.apache.kafka.connect.json.JsonConverter"
BINARY = "io.debezium.converters.BinaryDataConverter"
ROW = (
    "INSERT INTO converted (id, aggregateid, topic, kind, payload, created_at)"
    " VALUES (%s, 'k', %s, 'T', %s, localtimestamp + %s::interval)"
)
IN_TIME, TOO_LATE = "0", "2 days"  # the broker takes an hour (message.timestamp.after.max.ms)


def converters(endpoints: Endpoints) -> dict[str, dict[str, str]]:
    """Return name → the converters of a file."""
    avro = {
        "": "io.apicurio.registry.utils.converter.AvroConverter",
        ".apicurio.registry.url": endpoints.registry.replace("/ccompat/v7", "/registry/v2"),
        ".apicurio.auth.username": endpoints.registry_username or "",
        ".apicurio.auth.password": endpoints.registry_password or "",
        ".apicurio.registry.auto-register": "true", ".apicurio.registry.as-confluent": "true",
        ".apicurio.registry.use-id": "contentId", ".apicurio.registry.headers.enabled": "false",
    }  # fmt: skip
    return {
        "schemas": {"key.converter": JSON, "value.converter": JSON, "header.converter": JSON},
        "avro": {f"{part}.converter{key}": value for part in ("key", "value") for key, value in avro.items()},
        "binary": {"key.converter": JSON, "value.converter": BINARY, "value.converter.delegate.converter.type": JSON},
    }


def test_records_of_converters_go_back_byte_for_byte_and_what_was_never_encoded_does_not(
    tmp_path: Path, prefix: str, topics: Topics, pipeline: CommandLine, cli_environment: Mapping[str, str],
    bootstrap_servers: str, conn: psycopg.Connection[Any], endpoints: Endpoints, broker: Broker,
) -> None:  # fmt: skip
    conn.execute(
        "CREATE TABLE converted (id uuid PRIMARY KEY, aggregateid text NOT NULL, topic text, kind text, payload jsonb,"
        " created_at timestamp)"
    )
    conn.execute("CREATE PUBLICATION converted FOR TABLE converted WITH (publish = 'insert')")
    files = {
        name: connector_file(
            tmp_path, f"{prefix}-{name}", **options, **{
                "table.include.list": "public.converted", "publication.name": "converted", "topic.prefix": prefix,
                "transforms.outbox.table.expand.json.payload": "true",
                "transforms.outbox.route.topic.replacement": f"{prefix}.{name}",
                "transforms.outbox.table.fields.additional.placement": "kind:envelope",
            },
        )
        for name, options in converters(endpoints).items()
    }  # fmt: skip
    topics.create(*(f"{prefix}.{name}" for name in files))
    read = lambda name: read_topic(bootstrap_servers, f"{prefix}.{name}")  # noqa: E731
    letters = lambda name: read_topic(bootstrap_servers, f"{prefix}-{name}.dlq")  # noqa: E731
    document = '{"total": 7, "lines": [{"sku": "a"}, {"sku": null}], "gone": null}'
    good, late, unnamed = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(3))
    with ExitStack() as stack:
        relays = [stack.enter_context(RelayProcess(file, cli_environment)) for file in files.values()]
        for relay in relays:
            relay.reading()
        conn.execute(ROW, (good, "t", document, IN_TIME))
        conn.execute(ROW, (late, "t", document, TOO_LATE))
        conn.execute(ROW, (unnamed, "t", '{"to tal": 7}', IN_TIME))  # no name to Avro
        for name in files:
            dead = {late, unnamed} if name == "avro" else {late}
            until(lambda name=name, dead=dead: set(map(_id, letters(name))) == dead, f"{name}: letters")
            until(lambda name=name: good in map(_id, read(name)), f"{name}: the good row")
        for relay in relays:
            assert relay.stop() == 0
    for name in files:
        (taken,) = [one for one in read(name) if _id(one) == good]
        (letter, *_) = [one for one in letters(name) if _id(one) == late]
        assert (letter.key(), letter.value()) == (taken.key(), taken.value()), "dead as converted"
        done = pipeline("dlq", "redrive", "--topic", f"{prefix}-{name}.dlq", "--execute")
        assert (done.code, "never encoded" in done.stderr) == ((2, True) if name == "avro" else (0, False)), done
        (again, *_) = [one for one in read(name) if _id(one) == late]
        assert (again.key(), again.value()) == (taken.key(), taken.value())
        known = headers(taken).keys()
        assert {key: value for key, value in headers(again).items() if key in known - {"id"}} == {
            key: value for key, value in headers(taken).items() if key != "id"
        }
        assert headers(again).keys() == known | {"__pipeline.origin.timestamp.ms"}
        assert unnamed not in map(_id, read("avro"))

    class Taken(Event, aggregate=f"{prefix}c", key="key", format="json"):
        key: str

    app = Pipeline(prefix, topic_prefix="", partitions=1)
    for name in files:

        @app.consumer(
            Taken, group=name, topic=f"{prefix}.{name}", decoder=_decode(Taken), event_id=_stated, order="none",
            retry=RetryPolicy(attempts=1),
        )  # fmt: skip
        def refuse(event: Taken, ctx: Context) -> None:
            raise PermissionError(event.key)

    broker.create(app)
    content = lambda found: sorted((one.key(), one.value()) for one in found)  # noqa: E731
    for name in files:
        (group,) = [one for one in app.groups.values() if one.name.endswith(f".{name}")]
        with running(broker, group):
            until(lambda name=name, group=group: broker.count(group.dlq) == len(read(name)), f"{name}: dead letters")
        assert pipeline("dlq", "redrive", "--group", group.name, "--execute").code == 0
        assert content(read_topic(bootstrap_servers, f"{group.name}.retry.0s")) == content(read(name))


def _decode(model: type[Event]) -> Any:
    return lambda _record: model(key="k")


def _stated(record: Record) -> str:
    return json.dumps([text.decode() for name, text in record.headers if name == "id" and isinstance(text, bytes)])


def _id(message: Any) -> str:
    text = headers(message)["id"].decode()
    return str(json.loads(text)["payload"]) if text[0] == "{" else text
