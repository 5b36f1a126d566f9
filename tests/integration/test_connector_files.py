"""The files in ``connectors/`` on the real Kafka Connect: each comes up, and gives what docs/connect.md says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from confluent_kafka import Message
from pydantic import BaseModel
from relays import RelayProcess, headers, insert, read_topic, until
from servers import Database, Topics

from pipeline.codec import Decoder
from pipeline.event import Event
from pipeline.local import Endpoints
from pipeline.registry.client import RegistrySchemas

FOLDER = Path(__file__).parents[2] / "connectors"
ALL = sorted(file.stem for file in FOLDER.glob("*.json") if "polling" not in file.stem)  # that is the native relay's
FILES = [stem for stem in ALL if "sharded" not in stem]  # which needs publications first: test_shards.py


class Value(BaseModel):
    """A row of the table, as far as its reader knows it."""

    id: int
    name: str | None


class Change(Event, aggregate="customer", key="op", name="shop.Envelope"):
    """A change of the table, as Debezium has it."""

    op: str
    before: Value | None
    after: Value | None


@pytest.fixture
def cli_environment(cli_environment: dict[str, str], connect_url: str) -> dict[str, str]:
    return {**cli_environment, "PIPELINE_CONNECT__URL": connect_url}


@pytest.fixture
def folder(tmp_path: Path, prefix: str, database: Database, pipeline: CommandLine) -> Iterator[Path]:
    """Our files, for this test's own database and names; what was deployed of them is deleted."""
    made = tmp_path / "connectors"
    made.mkdir()
    names = []
    for stem in FILES:
        config = json.loads((FOLDER / f"{stem}.json").read_text())["config"]
        name = f"{prefix}-{stem}"
        slot = name.replace("-", "_")
        config |= {"database.dbname": database.name, "topic.prefix": name, "slot.name": slot}
        if config["publication.autocreate.mode"] != "disabled":
            config["publication.name"] = slot
        if "heartbeat.interval.ms" in config:
            config["heartbeat.interval.ms"] = "300"
        if stem in {"outbox-json", "outbox-messages"}:
            config["transforms.outbox.route.topic.replacement"] = prefix + ".${routedByValue}"
        (made / f"{name}.json").write_text(json.dumps({"name": name, "config": config}))
        names.append(name)
    yield made
    for name in names:
        pipeline("connector", "delete", name, "--execute")


def two(bootstrap_servers: str, topic: str) -> list[Message]:
    found = read_topic(bootstrap_servers, topic)
    return found if len(found) >= 2 else []


@pytest.fixture
def registry(endpoints: Endpoints) -> Iterator[RegistrySchemas]:
    found = RegistrySchemas(endpoints.registry, endpoints.registry_username, endpoints.registry_password)
    yield found
    found.close()


def test_every_file_runs_and_publishes(
    folder: Path, prefix: str, pipeline: CommandLine, database: Database, topics: Topics, bootstrap_servers: str,
    registry: RegistrySchemas,
) -> None:  # fmt: skip
    events, routed, table = f"{prefix}.events", f"{prefix}.order", f"{prefix}-table-avro.public.customer"
    emitted = f"{prefix}.message"
    beats = f"__debezium-heartbeat.{prefix}-outbox-heartbeat"
    topics.create(events, routed, table, beats, emitted)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE public.outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, "
            "aggregateid text NOT NULL, type text NOT NULL, payload jsonb)"
        )
        conn.execute("CREATE TABLE public.customer (id integer PRIMARY KEY, name text)")
        conn.execute("INSERT INTO public.customer VALUES (1, 'Ada')")
        deployed = pipeline("connector", "deploy", str(folder))
        assert deployed.code == 0, deployed.stderr
        active = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active"
        until(lambda: (conn.execute(active).fetchone() or [0])[0] == len(FILES), "all slots are read")

        first = insert(conn, events, "k")
        conn.execute(
            "INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload) "
            """VALUES ('order', 'k', 'OrderPlaced', '{"total": 7, "lines": [{"sku": "a"}]}')"""
        )
        emit(conn)
        conn.execute("UPDATE public.customer SET name = 'Grace'")
        wal = conn.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("",)

        rows = until(lambda: two(bootstrap_servers, events), "the row, by both")
        assert {(headers(row)["id"], row.value()) for row in rows} == {(first.encode(), b"\0\0\0\0\1x")}
        (row,) = until(lambda: read_topic(bootstrap_servers, routed), "the row of the JSON outbox")
        assert (row.key(), json.loads(row.value() or b"")) == (b"k", {"total": 7, "lines": [{"sku": "a"}]})
        assert headers(row)["type"] == b"OrderPlaced"
        assert_emitted(until(lambda: read_topic(bootstrap_servers, emitted), "the logical message"))
        changes = until(lambda: two(bootstrap_servers, table), "what was there, and its change")
        reads = Decoder(registry)
        told = [reads.decode(change.value(), Change) for change in changes]
        assert [(one.op, one.after and one.after.name) for one in told] == [("r", "Ada"), ("u", "Grace")]
        assert {change.headers() for change in changes} == {None}
        assert registry.latest(f"{table}-value")[0] == int.from_bytes((changes[0].value() or b"")[1:5], "big")

        until(lambda: read_topic(bootstrap_servers, beats), "a heartbeat")
        past = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn > %s::pg_lsn"
        slot = f"{prefix}-outbox-heartbeat".replace("-", "_")
        until(lambda: conn.execute(past, (slot, *wal)).fetchone() is not None, "the quiet slot goes on")
    topics.delete([beats])


def emit(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """An event as docs/relay.md has it."""
    document = {"id": "m", "aggregatetype": "message", "aggregateid": "42", "type": "Told", "payload": {"total": 7}}
    conn.execute("SELECT pg_logical_emit_message(true, 'outbox', %s)", (json.dumps(document),))


def assert_emitted(found: list[Message]) -> None:
    (record,) = found
    assert (record.key(), json.loads(record.value() or b"")) == (b"42", {"total": 7})
    assert (headers(record)["id"], headers(record)["type"]) == (b"m", b"Told")


def test_the_file_for_logical_messages_runs_natively_too(
    folder: Path, prefix: str, pipeline: CommandLine, cli_environment: dict[str, str], database: Database,
    topics: Topics, bootstrap_servers: str,
) -> None:  # fmt: skip
    topics.create(f"{prefix}.message")
    with (
        RelayProcess(folder / f"{prefix}-outbox-messages.json", cli_environment) as relay,
        psycopg.connect(database.dsn, autocommit=True) as conn,
    ):
        relay.reading()
        emit(conn)
        assert_emitted(until(lambda: read_topic(bootstrap_servers, f"{prefix}.message"), "the logical message"))
        assert relay.stop() == 0
    told = pipeline("connector", "reconcile", str(folder / f"{prefix}-outbox-messages.json")).stderr
    assert "logical messages stand in no table" in told


@pytest.mark.parametrize("stem", ALL)
def test_connect_takes_every_file_and_the_native_relay_takes_it_or_names_the_key(
    stem: str, pipeline: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FOLDER / f"{stem}.json"
    for name in ("URL", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"REGISTRY_{name}", "x")
    checked = pipeline("connector", "validate", "--connect", str(file))
    assert checked.code == 0, checked.stderr
    native = pipeline("connector", "validate", str(file))
    config = json.loads(file.read_text())["config"]
    told = native.stderr.rpartition("error: ")[2]
    assert native.code == 0 or (
        stem == "table-avro" and any(told.startswith(f"{file}: {key}: ") for key in [*config, "transforms"])
    ), told
