"""What ``docs/leave.md`` promises: plain clients read what is on the topics, and go on where the workers stopped."""

from __future__ import annotations

import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from commands import runner
from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from servers import Database
from working import Broker, running, wait_until

from pipeline import Context, Event, Money, Personal, Pipeline
from pipeline.registry.client import RegistrySchemas

APP = """
from pipeline import Event, Money, Personal, Pipeline

app = Pipeline({name!r}, topic_prefix="", partitions=1)


class Left(Event, aggregate={name!r}, key="order_id", name="LeavePlaced"):
    order_id: str
    total: Money
    address: Personal[str] | None = None


app.register(Left)
"""


def test_a_plain_client_decodes_the_events_and_goes_on_behind_the_worker(
    prefix: str, database: Database, registry_client: SchemaRegistryClient, registry_config: dict[str, str],
    cli_environment: dict[str, str], bootstrap_servers: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    class Left(Event, aggregate=prefix, key="order_id", name="LeavePlaced"):
        order_id: str
        total: Money
        address: Personal[str] | None = None

    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP.format(name=prefix))
    pipeline = runner(capsys, monkeypatch, cli_environment)
    assert pipeline("schema", "generate", "app:app").code == 0
    assert pipeline("schema", "push", "app:app").code == 0

    app, seen = Pipeline(prefix, topic_prefix="", partitions=1), []

    @app.consumer(Left, group="billing")
    def bill(event: Left, ctx: Context) -> None:
        seen.append(event.order_id)

    broker, (group,) = Broker(bootstrap_servers), app.groups.values()
    broker.create(app)
    with psycopg.connect(database.dsn) as conn:
        for number in range(4):
            app.publish(conn, Left(order_id=f"o{number}", total=Decimal("9.90"), address="Ü 1" if number else None))
        rows = conn.execute("SELECT payload, topic FROM pipeline.outbox ORDER BY seq").fetchall()
    topic = rows[0][1]
    for payload, _ in rows[:2]:
        broker.put(topic, "LeavePlaced", bytes(payload), key="k")
    broker.flush()
    user, _, password = registry_config.get("basic.auth.user.info", "").partition(":")
    schemas = RegistrySchemas(registry_config["url"], user or None, password or None)
    with closing(schemas), running(broker, group, schemas=schemas):
        wait_until(lambda: broker.committed(group.name, topic) == 2, why="the worker's share")
    for payload, _ in rows[2:]:
        broker.put(topic, "LeavePlaced", bytes(payload), key="k")
    broker.flush()

    decode = AvroDeserializer(registry_client)
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group.name, "session.timeout.ms": 6000})
    consumer.subscribe([topic])
    found, end = [], time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < end:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(decode(message.value(), SerializationContext(topic, MessageField.VALUE)))
    consumer.close()
    assert seen == ["o0", "o1"]
    assert found == [{"order_id": f"o{n}", "total": Decimal("9.90"), "address": "Ü 1"} for n in (2, 3)]
