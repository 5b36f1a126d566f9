"""What ``docs/leave.md`` promises, line by line; and plain clients go on where the workers stopped."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import CommandLine, Result, runner
from confluent_kafka import Consumer, Message
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from figures import Figure
from pages import steps
from relays import RelayProcess, connector_file, headers, ids, insert, read_topic, until
from servers import Database
from working import Broker, running, wait_until

from pipeline import Context, Event, Job, Money, Personal, Pipeline
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


SHOP = """
from pipeline import Context, Event, Job, Pipeline

app = Pipeline({name!r}, topic_prefix="", partitions=1)


class Placed(Event, aggregate={name!r}, key="order_id", format="json"):
    order_id: str


class Remind(Job, queue="mail", format="json"):
    order_id: str


@app.consumer(Placed, group="billing")
def bill(event: Placed, ctx: Context) -> None:
    print(event.order_id, flush=True)


@app.job(Remind)
def remind(job: Remind, ctx: Context) -> None:
    print(job.order_id, flush=True)
"""


class Remind(Job, queue="mail", format="json"):
    order_id: str


class Leaver:
    """Does the page's steps as a user does; ``rows`` is what the last statement gave."""

    def __init__(self, pipeline: CommandLine, conn: psycopg.Connection[Any], relay: RelayProcess) -> None:
        self._pipeline, self._conn, self._relay = pipeline, conn, relay
        self.rows: list[Any] = []

    def do(self, step: str) -> Result:
        words = shlex.split(step)
        if words[0] in {"SELECT", "INSERT", "ALTER", "DROP"}:
            done = self._conn.execute(step.encode())
            self.rows = done.fetchall() if done.description else []
        elif words[:2] == ["kill", "-TERM"]:
            return Result(self._relay.stop(), "", "")
        else:
            assert words[0] == "pipeline", step
            into = words.index(">") if ">" in words else len(words)
            found = self._pipeline(*words[1:into])
            for name in words[into + 1 :]:
                Path(name).write_text(found.stdout)
            return found
        return Result(0, "", "")


@pytest.fixture
def cli_environment(cli_environment: dict[str, str], connect_url: str) -> dict[str, str]:
    return {**cli_environment, "PIPELINE_CONNECT__URL": connect_url}


@contextmanager
def writing(dsn: str, topic: str) -> Iterator[list[str]]:
    """Somebody who writes events all the time: their ids."""
    written: list[str] = []
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not enough.wait(0.005):
                written.append(insert(conn, topic, f"k{len(written) % 5}", b'{"order_id": "1"}'))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        enough.set()
        writer.join()


@contextmanager
def working(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The application's worker."""
    words = [sys.executable, "-m", "pipeline", "consumer", "run", "shop:app"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(60)


def test_the_page_is_true_line_by_line(
    prefix: str, pipeline: CommandLine, cli_environment: dict[str, str], database: Database,
    conn: psycopg.Connection[Any], bootstrap_servers: str, tmp_path: Path, figure: Figure,
) -> None:  # fmt: skip
    class Placed(Event, aggregate=prefix, key="order_id", format="json"):
        order_id: str

    (tmp_path / "shop.py").write_text(SHOP.format(name=prefix))
    (tmp_path / "connectors").mkdir()
    topic = f"outbox.event.{prefix}"

    def make_file(**changes: str) -> Path:
        same = {"database.dbname": database.name, "topic.prefix": prefix}
        return connector_file(tmp_path / "connectors", prefix, **same, **changes)

    def records() -> list[Message]:
        return read_topic(bootstrap_servers, topic)

    def slot(active: bool) -> None:
        state = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        until(lambda: conn.execute(state, (prefix,)).fetchone() == (active,), f"slot active: {active}")

    def lag() -> int:
        return sum(one["lag"] for one in json.loads(pipeline("consumer", "lag", "shop:app", "-o", "json").stdout))

    def published(schema: str) -> None:
        """The row that a statement of the page has made is on its topic."""
        (name,) = conn.execute(f"SELECT id FROM {schema}.outbox ORDER BY seq DESC LIMIT 1").fetchone() or ("",)
        found = until(lambda: [one for one in records() if ids([one]) == [str(name)]], "its record")
        assert (found[0].key(), json.loads(found[0].value() or b"")) == (b"42", {"order_id": "42"})
        assert headers(found[0])["type"] == b"OrderPlaced"

    def begin(relay: RelayProcess) -> None:
        """What there is before anybody leaves: events, jobs, one of them for next year."""
        app = Pipeline(prefix, topic_prefix="", partitions=1)
        relay.reading()
        with conn.transaction():
            app.publish_many(conn, [Placed(order_id=str(n)) for n in range(20)])
            app.enqueue(conn, Remind(order_id="now"))
            app.enqueue(conn, Remind(order_id="later"), delay_s=86400 * 365)
        until(lambda: len(records()) == 20, "the relay publishes")

    def before(step: str) -> None:
        """What the page tells to do, or to wait for, before a step."""
        if "lag" in step:
            until(lambda: lag() == 0, "queues and retries are empty")
        elif "kill" in step:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
            written.append(writers.enter_context(writing(database.dsn, topic)))
            until(lambda: len(written[0]) > 100, "rows")
        elif "deploy" in step and "kill" not in done[-1]:
            make_file(**{"table.include.list": "pipeline.outbox,public.outbox"})
        elif "pg_drop" in step:
            slot(active=False)

    def after(step: str, result: Result) -> None:
        """What the page promises of a step."""
        if "--counts" in step:
            assert [line.split()[2:] for line in result.stdout.splitlines()[1:]] == [["delayed", "1"], ["done", "1"]]
        elif "> delayed.json" in step:
            (job,) = json.loads(Path("delayed.json").read_text())
            assert (job["type"], job["state"]) == ("Remind", "delayed")
        elif "pipeline.due" in step:
            ((_, due_at, name, queue, payload),) = leaver.rows
            assert (name, queue, json.loads(payload)) == ("Remind", f"{prefix}.jobs.mail", {"order_id": "later"})
            assert due_at - datetime.now(UTC) > timedelta(days=364)
        elif "deploy" in step and "kill" in done[-1]:
            slot(active=True)
            sofar = len(written[0])
            until(lambda: len(written[0]) > sofar + 100, "more rows")
            writers.close()
            found = until(lambda: set(written[0]) <= set(ids(records())) and ids(records()), "every row, by Debezium")
            assert len(found) == len(set(found))
            figure(f"left for Debezium, which was never there: {len(written[0])} rows, 0 lost, 0 duplicates")
        elif "INSERT" in step:
            published("pipeline")
            inserts.append(step)
        elif "ALTER" in step or "DROP SCHEMA pipeline" in step:
            conn.execute(inserts[0].replace("pipeline.outbox", "public.outbox").encode())
            published("public")

    done, inserts = [""], []
    written: list[list[str]] = []
    assert pipeline("topics", "apply", "shop:app").code == 0
    names = {
        r"connectors/outbox\.json": f"connectors/{prefix}.json", r"delete outbox": f"delete {prefix}",
        r"slot\('pipeline_outbox'\)": f"slot('{prefix}')", r"outbox\.event\.order": topic,
    }  # fmt: skip
    with ExitStack() as running, ExitStack() as writers:
        relay = running.enter_context(RelayProcess(make_file(), cli_environment))
        worker = running.enter_context(working(tmp_path, cli_environment))
        begin(relay)
        leaver = Leaver(pipeline, conn, relay)
        try:
            for step in steps("leave.md", names):
                before(step)
                result = leaver.do(step)
                print(step, result)
                assert result.code == 0, (step, result)
                after(step, result)
                done.append(step)
        finally:
            pipeline("connector", "delete", prefix, "--execute")
