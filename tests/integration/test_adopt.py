"""``docs/adopt.md`` line by line: a table of a user's own, Debezium → native → Debezium on one slot, under load."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine, Result, runner
from confluent_kafka import Message
from figures import Figure
from pages import steps
from psycopg import conninfo
from relays import RelayProcess, headers, ids, read_topic, until
from servers import Database, Topics, environment
from working import Broker

from pipeline import Event, Outbox, Pipeline
from pipeline.local import Endpoints

WRITERS, KEYS = 4, 3  # threads, and keys of each
TABLE = """
CREATE SCHEMA sales;
CREATE TABLE sales.event_log (
    event_id uuid PRIMARY KEY, stream text NOT NULL, ref uuid NOT NULL, kind text NOT NULL, document jsonb NOT NULL,
    tenant text NOT NULL, context jsonb, at timestamp NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'));
CREATE PUBLICATION event_log FOR TABLE sales.event_log WITH (publish = 'insert');
"""
ROUTER = {
    "type": "io.debezium.transforms.outbox.EventRouter",
    "table.field.event.id": "event_id",
    "table.field.event.key": "ref",
    "table.field.event.type": "kind",
    "table.field.event.payload": "document",
    "table.field.event.timestamp": "at",
    "table.fields.additional.placement": "kind:header:kind,tenant:header:tenant,context:header:context",
    "table.expand.json.payload": "true",
    "route.by.field": "stream",
}
STORAGE = "org.apache.kafka.connect.storage"


class Sold(Event, aggregate="sale", key="ref", format="json"):
    """What is written: the n-th row of a key."""

    ref: uuid.UUID
    n: int
    note: str


def file_of_the_users(name: str, database: Database, topic: str, password: str) -> dict[str, str]:
    """Debezium's configuration of a user's own, who has never heard of us."""
    at = {key: str(value) for key, value in conninfo.conninfo_to_dict(database.dsn).items()}
    router = {**ROUTER, "route.topic.replacement": topic}
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": at["host"], "database.port": at["port"], "database.dbname": database.name,
        "database.user": name, "database.password": password, "topic.prefix": name, "slot.name": name,
        "plugin.name": "pgoutput", "publication.name": "event_log", "publication.autocreate.mode": "disabled",
        "table.include.list": "sales.event_log", "snapshot.mode": "no_data", "extended.headers.enabled": "false",
        "message.prefix.exclude.list": ".*", "tombstones.on.delete": "false",
        "key.converter": f"{STORAGE}.StringConverter", "header.converter": f"{STORAGE}.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "false",
        "transforms": "outbox", **{f"transforms.outbox.{key}": value for key, value in router.items()},
    }  # fmt: skip


class Writers:
    """Threads that publish until they are told to end, each rows of its own keys, some of them in one transaction."""

    def __init__(self, dsn: str) -> None:
        columns = {"id": "event_id", "aggregatetype": "stream", "aggregateid": "ref", "type": "kind",
                   "payload": "document", "headers": "context", "topic": None, "traceparent": None}  # fmt: skip
        outbox = Outbox("sales", "event_log", columns=columns, extra={"tenant": "acme"}, payload="json")
        self._app, self._dsn = Pipeline("sales", outbox=outbox), dsn
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(WRITERS)]
        self.written: dict[str, Sold] = {}  # by event id

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._enough.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _write(self) -> None:
        keys, n = [uuid.uuid4() for _ in range(KEYS)], 0
        with psycopg.connect(self._dsn) as conn:
            while not self._enough.wait(0.02):
                events = [Sold(ref=keys[(n + i) % KEYS], n=n + i, note="Ü ✓ " * (n % 50)) for i in range(1 + n % 3)]
                n += len(events)
                found = self._app.publish_many(conn, events, headers={"writer": "1"})
                conn.commit()
                self.written |= dict(zip(map(str, found), events, strict=True))


def secret(folder: Path) -> str:
    """A reference that Connect resolves as the relay does."""
    (folder / "secrets.properties").write_text("password=s3cret\n")
    return f"${{file:{folder}/secrets.properties:password}}"


def compare(found: list[Message], written: dict[str, Sold]) -> int:
    """Say how many came again. Nothing is missing, invented or changed, and first copies of a key are in order."""
    first: dict[str, Message] = {}
    order = defaultdict(list)
    for one, name in zip(found, ids(found), strict=True):
        wanted, told = written[name], headers(one)
        assert (one.key() or b"").decode() == str(wanted.ref)
        assert json.loads(one.value() or b"") == wanted.model_dump(mode="json")
        assert (told["kind"], told["tenant"], json.loads(told["context"])) == (b"Sold", b"acme", {"writer": "1"})
        again = first.setdefault(name, one)
        assert (one.value(), one.headers(), one.timestamp()) == (again.value(), again.headers(), again.timestamp())
        if again is one:
            order[wanted.ref].append(wanted.n)
    assert first.keys() == written.keys()
    assert [ns for ns in order.values() if ns != sorted(ns)] == []
    assert len(order) == WRITERS * KEYS
    return len(found) - len(first)


class Page:
    """The page's commands, done as a user does them; and what is to be seen after each."""

    def __init__(self, pipeline: CommandLine, environment: dict[str, str], owner: str, file: Path) -> None:
        self._pipeline, self._environment, self._owner, self._file = pipeline, environment, owner, file
        self.relays = ExitStack()
        self._relay: RelayProcess | None = None

    def do(self, step: str) -> Result:
        """Do one step. Everything but a relay is waited for."""
        words = shlex.split(step)
        if step.startswith("GRANT"):
            with psycopg.connect(self._owner, autocommit=True) as conn:
                conn.execute(step.encode())
        elif words[0] == "curl":
            subprocess.run(step, shell=True, check=True, timeout=60)
        elif words[:3] == ["pipeline", "connector", "run"]:
            self._relay = self.relays.enter_context(RelayProcess(Path(words[3]), self._environment)).reading()
        elif words[:2] == ["kill", "-TERM"] and self._relay is not None:
            return Result(self._relay.stop(), "", "")
        else:
            assert words[0] == "pipeline", step
            return self._pipeline(*words[1:])
        return Result(0, "", "")

    def findings(self, *levels: str) -> dict[str, str]:
        """What the doctor finds of these levels: check → what."""
        found = json.loads(self._pipeline("doctor", str(self._file), "-o", "json").stdout)
        return {one["check"]: one["found"] for one in found if one["level"] in levels}


@pytest.fixture
def pipeline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, endpoints: Endpoints, connect_url: str,
    empty_database: Database, tmp_path: Path,
) -> CommandLine:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch, {**environment(endpoints, empty_database), "PIPELINE_CONNECT__URL": connect_url})


@pytest.fixture
def user(empty_database: Database, prefix: str) -> Iterator[str]:
    """Debezium's user: it may replicate, and read the table."""
    with psycopg.connect(empty_database.dsn, autocommit=True) as conn:
        conn.execute(TABLE)
        conn.execute(f"CREATE ROLE {prefix} LOGIN REPLICATION PASSWORD 's3cret'".encode())
        conn.execute(f"GRANT USAGE ON SCHEMA sales TO {prefix}; GRANT SELECT ON sales.event_log TO {prefix}".encode())
        yield prefix
        conn.execute(f"DROP OWNED BY {prefix}".encode())
        conn.execute(f"DROP ROLE {prefix}".encode())


def test_the_page_is_true_for_a_table_of_a_users_own_under_load(
    pipeline: CommandLine, endpoints: Endpoints, connect_url: str, empty_database: Database, user: str, topics: Topics,
    broker: Broker, bootstrap_servers: str, tmp_path: Path, figure: Figure,
) -> None:  # fmt: skip
    topic, file = f"{user}.sales", tmp_path / "connectors" / f"{user}.json"
    file.parent.mkdir()
    topics.create(topic, partitions=2)
    writers = Writers(empty_database.dsn)
    page = Page(pipeline, environment(endpoints, empty_database), empty_database.dsn, file)

    def goes_on(who: str) -> None:
        before = broker.count(topic)
        until(lambda: broker.count(topic) > before + 50, f"{who} publishes")

    def read_by(reader: str) -> None:
        told: dict[str, str] = {}

        def reads() -> bool:
            told.update(page.findings("ok", "problem"))
            return told[f"slot {user}"].startswith(f"read by {reader}")

        until(reads, f"{reader} reads")

    def look(step: str, done: Result) -> None:
        """What the page says of a step."""
        if "validate" in step:
            assert f"{user}.json: ok: slot {user}" in done.stdout
            assert page.findings("problem").keys() == {"pipeline.relay_position"}
            file.write_text(json.dumps(json.loads(file.read_text()) | {"offset.mismatch.strategy": "trust_slot"}))
        elif "diff" in step:
            assert done.stdout.splitlines()[1:] == ["  + offset.mismatch.strategy: trust_slot"]
        elif "migrate" in step:
            assert page.findings("problem") == {
                f"grants of {user}": "lacks SELECT on pipeline.migration, SELECT and INSERT and UPDATE on "
                "pipeline.relay_position, SELECT on pipeline.poll_position, INSERT on pipeline.refused_row, "
                "USAGE on schema pipeline"
            }
        elif "doctor" in step:
            read_by("Debezium")
        elif "stop" in step:
            told = page.findings("note", "warning")
            assert told[f"connector {user}"] == "STOPPED, tasks: none"
            assert told[f"slot {user}"].startswith("read by nobody")
        elif "connector run" in step:
            read_by("pipeline-relay")
            goes_on("the native relay")
        elif "resume" in step:
            read_by("Debezium")
            goes_on("Debezium again")

    with page.relays:
        try:
            old = tmp_path / f"{user}.json"
            old.write_text(json.dumps(file_of_the_users(user, empty_database, topic, secret(tmp_path))))
            assert pipeline("connector", "deploy", str(old)).code == 0
            writers.start()
            goes_on("Debezium")
            for step in steps("adopt.md", {r"http://HOST:8083": connect_url, r"\boutbox\b|\bdebezium\b": user}):
                done = page.do(step)
                assert done.code == (2 if " diff " in step else 0), (step, done)
                look(step, done)
            writers.end()
            until(lambda: writers.written.keys() <= set(ids(read_topic(bootstrap_servers, topic))), "every row")
        finally:
            writers.end()
            pipeline("connector", "delete", user, "--execute")
    found = read_topic(bootstrap_servers, topic)
    copies = compare(found, writers.written)
    figure(f"own table, handed over twice: {len(writers.written)} rows, 0 lost, {copies} duplicates, keys in order")
