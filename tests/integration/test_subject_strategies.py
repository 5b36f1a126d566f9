"""The same application under each subject strategy, on the real registry: pushed, checked, published, handled."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from relays import RelayProcess, connector_file, read_topic, until
from servers import Database, Endpoints, Topics
from waiting import wait_until
from working import Broker, running

from pipeline import Context, Event, Pipeline
from pipeline.errors import SchemaError
from pipeline.registry.client import RegistrySchemas
from pipeline.subject import SubjectStrategy

APP = """
from pipeline import Event, Pipeline

app = Pipeline({name!r}, topic_prefix="dev.")


class Placed(Event, aggregate={name!r}, key="order_id", name="{name}.Placed"):
    order_id: str
"""
MORE = """

class Paid(Event, aggregate={name!r}, key="order_id"):
    order_id: str


class Shipped(Event, aggregate={name!r}, key="order_id", name="Sent"):
    order_id: str


class Noted(Event, aggregate={name!r}, key="order_id", format="json"):
    order_id: str
"""
VARIABLE = "PIPELINE_REGISTRY__SUBJECT_STRATEGY"


@pytest.mark.parametrize(
    ("strategy", "subject", "file"),
    [
        ("TopicRecordNameStrategy", "dev.outbox.event.{0}-{0}.Placed", "outbox.event.{0}-{0}.Placed.avsc"),
        ("TopicNameStrategy", "dev.outbox.event.{0}-value", "outbox.event.{0}-value.avsc"),
        ("RecordNameStrategy", "{0}.Placed", "{0}.Placed.avsc"),
    ],
)
def test_what_is_pushed_under_a_strategy_is_found_by_its_writers_and_handled(
    strategy: SubjectStrategy, subject: str, file: str, prefix: str, tmp_path: Path, pipeline: CommandLine,
    database: Database, broker: Broker, endpoints: Endpoints, registry_client: SchemaRegistryClient,
) -> None:  # fmt: skip
    class Placed(Event, aggregate=prefix, key="order_id", name=f"{prefix}.Placed"):
        order_id: str

    subject, chosen = subject.format(prefix), {VARIABLE: strategy}
    (tmp_path / "app.py").write_text(APP.format(name=prefix))
    assert pipeline("schema", "generate", "app:app", **chosen).code == 0
    assert [path.name for path in (tmp_path / "schemas").iterdir()] == [file.format(prefix)]
    assert pipeline("schema", "check", "app:app", "--registry", **chosen).code == 2  # not pushed yet
    assert pipeline("schema", "push", "app:app", **chosen).code == 0
    assert pipeline("schema", "check", "app:app", "--registry", **chosen).code == 0
    assert registry_client.get_versions(subject) == [1]

    app, seen = Pipeline(prefix, topic_prefix="dev.", partitions=1, subject_strategy=strategy), []

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        seen.append(event.order_id)

    with psycopg.connect(database.dsn) as conn:
        app.publish(conn, Placed(order_id="7"))
        row = conn.execute("SELECT topic, type, payload FROM pipeline.outbox").fetchone()
        others = {"TopicRecordNameStrategy", "TopicNameStrategy", "RecordNameStrategy"} - {strategy}
        for other in others:
            with pytest.raises(SchemaError, match="never pushed"):
                Pipeline(prefix, topic_prefix="dev.", subject_strategy=other).publish(conn, Placed(order_id="8"))  # type: ignore[arg-type]
    assert row is not None
    (group,) = app.groups.values()
    broker.create(app)
    broker.put(row[0], row[1], bytes(row[2]), key="7")
    broker.flush()
    schemas = RegistrySchemas(endpoints.registry, endpoints.registry_username, endpoints.registry_password)
    with closing(schemas), running(broker, group, schemas=schemas):
        wait_until(lambda: seen == ["7"], why="the event")


def test_several_types_of_one_topic_are_named_where_it_can_have_only_one(
    prefix: str, tmp_path: Path, pipeline: CommandLine, database: Database, registry_client: SchemaRegistryClient
) -> None:
    (tmp_path / "app.py").write_text(
        (APP + MORE + "\napp.register(Placed, Paid, Shipped, Noted)\n").format(name=prefix)
    )
    for words in (("generate",), ("check",), ("push",), ("push", "--dry-run")):
        refused = pipeline("schema", words[0], "app:app", *words[1:], **{VARIABLE: "TopicNameStrategy"})
        assert refused.code == 1
        said = f"subject dev.outbox.event.{prefix}-value: 3 models, app.Paid and app.Shipped and app.Placed"
        assert said in refused.stderr
        assert "one record type for each topic" in refused.stderr
        assert "Noted" not in refused.stderr  # JSON has no schema
    assert not (tmp_path / "schemas").exists()
    assert not [name for name in registry_client.get_subjects() if prefix in name]
    assert pipeline("schema", "generate", "app:app").code == 0  # the default knows them apart


def test_a_strategy_that_there_is_not_is_refused_by_name(prefix: str, tmp_path: Path, pipeline: CommandLine) -> None:
    (tmp_path / "app.py").write_text(APP.format(name=prefix))
    refused = pipeline("schema", "check", "app:app", **{VARIABLE: "TopicStrategy"})
    assert refused.code == 1
    assert VARIABLE in refused.stderr
    assert "'TopicNameStrategy'" in refused.stderr


def test_the_relay_encodes_json_by_the_subject_of_the_strategy(
    tmp_path: Path, prefix: str, topics: Topics, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str, registry_client: SchemaRegistryClient,
) -> None:  # fmt: skip
    topics.create(topic := f"{prefix}.events")
    schema = {"type": "record", "name": "Paid", "namespace": "shop", "fields": [{"name": "cents", "type": "long"}]}
    version = registry_client.register_schema(f"{topic}-value", Schema(json.dumps(schema), "AVRO"))
    file = connector_file(
        tmp_path,
        prefix,
        **{
            "table.include.list": "public.events",
            "publication.name": "events",
            "pipeline.payload.encode": "avro",
            "transforms.outbox.table.fields.additional.placement": "type:header:type",
        },
    )
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text,"
            " type text, topic text, payload jsonb, created_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'))"
        )
        conn.execute("CREATE PUBLICATION events FOR TABLE events WITH (publish = 'insert')")
        with RelayProcess(file, {**cli_environment, VARIABLE: "TopicNameStrategy"}) as relay:
            relay.reading()
            row = (
                "INSERT INTO events (aggregateid, type, topic, payload) VALUES ('k', 'shop.Paid', %s, '{\"cents\": 5}')"
            )
            conn.execute(row, (topic,))
            (record,) = until(lambda: read_topic(bootstrap_servers, topic), "the record")
            assert relay.stop() == 0
    assert record.value() == struct.pack(">bI", 0, version) + b"\x0a"
