"""``pipeline connector reconcile``: what the outbox has and the topics have not, and nothing else, is published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine, runner
from confluent_kafka import TopicPartition
from relays import RelayProcess, busy, connector_file, headers, ids, insert, read_topic, until
from servers import Database, Topics

Conn = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def pipeline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str]
) -> CommandLine:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    return runner(capsys, monkeypatch, cli_environment)


@contextmanager
def reading(file: Path, environment: Mapping[str, str]) -> Iterator[RelayProcess]:
    """A relay that reads its slot."""
    with RelayProcess(file, environment) as relay:
        yield relay.reading()


def a_lost_slot(conn: Conn, slot: str) -> None:
    """What somebody does who starts anew after a slot was lost."""
    conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    conn.execute("DELETE FROM pipeline.relay_position WHERE slot = %s", (slot,))


def test_rows_of_a_lost_slot_are_found_and_they_alone_are_published(
    pipeline: CommandLine, tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str],
    database: Database, conn: Conn, bootstrap_servers: str,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix)
    with reading(file, cli_environment) as relay:
        before = [insert(conn, topic, f"k{n}", headers='{"a": 1}') for n in range(20)]
        until(lambda: set(before) <= set(ids(read_topic(bootstrap_servers, topic))), "rows before")
        assert relay.stop() == 0
    lost = [insert(conn, topic, f"k{n % 3}", f"v{n}".encode()) for n in range(120)]
    a_lost_slot(conn, prefix)
    times = dict(conn.execute("SELECT id::text, extract(epoch FROM created_at) * 1000 FROM pipeline.outbox").fetchall())
    with reading(file, cli_environment) as relay, busy(database.dsn, lambda own: insert(own, topic, "later")):
        planned = pipeline("connector", "reconcile", str(file), "-o", "json")
        assert planned.code == 2, planned.stderr
        plan = json.loads(planned.stdout)
        assert plan["missing"] == len(lost)
        assert [(one["topic"], one["missing"]) for one in plan["topics"]] == [(topic, len(lost))]
        assert plan["topics"][0]["rows"] >= len(before) + len(lost)
        assert plan["topics"][0]["oldest_missing"] < plan["topics"][0]["newest_missing"]
        assert "would publish 120 rows: add --execute" in pipeline("connector", "reconcile", str(file)).stderr
        assert not set(lost) & set(ids(read_topic(bootstrap_servers, topic)))
        done = pipeline("connector", "reconcile", str(file), "--execute")
        assert (done.code, "published: 120" in done.stderr) == (0, True), done
        assert pipeline("connector", "reconcile", str(file)).code == 0
        assert relay.stop() == 0
    records = read_topic(bootstrap_servers, topic)
    assert len(ids(records)) == len(set(ids(records)))
    emitted = {headers(one)["id"].decode(): one for one in records if "__pipeline.origin.timestamp.ms" in headers(one)}
    assert emitted.keys() == set(lost)
    for name, one in emitted.items():
        assert int(headers(one)["__pipeline.origin.timestamp.ms"]) == int(times[name])
        assert one.timestamp()[1] > int(times[name])
        assert one.value() == f"v{lost.index(name)}".encode()
        assert headers(one)["type"] == b"shop.OrderPlaced"
    for key in (b"k0", b"k1", b"k2"):
        order = [name for name, one in emitted.items() if one.key() == key]
        assert order == [name for n, name in enumerate(lost) if b"k%d" % (n % 3) == key]


def test_what_the_relay_has_not_passed_is_not_called_missing(
    pipeline: CommandLine, tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], conn: Conn,
    bootstrap_servers: str, topics: Topics,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix)
    with reading(file, cli_environment) as relay:
        insert(conn, topic, "k")
        until(lambda: read_topic(bootstrap_servers, topic), "the first row")
        assert relay.stop() == 0
    assert pipeline("connector", "reconcile", str(file)).code == 0
    insert(conn, topic, "k")
    stopped = pipeline("connector", "reconcile", str(file), "--execute")
    assert stopped.code == 1
    assert f"slot {prefix} is read by nobody" in stopped.stderr
    with reading(file, cli_environment) as relay:
        insert(conn, absent := f"{prefix}.absent", "k")  # holds the relay up
        late = pipeline("connector", "reconcile", str(file), "--wait", "0.5", "--execute")
        assert late.code == 1
        assert "was not confirmed within 0 s" in late.stderr
        assert "pipeline outbox status" in late.stderr
        topics.create(absent)
        assert pipeline("connector", "reconcile", str(file)).code == 0
    assert len(read_topic(bootstrap_servers, topic)) == 2
    assert len(read_topic(bootstrap_servers, absent)) == 1


def test_what_a_topic_deleted_itself_is_not_published_again_unless_told(
    pipeline: CommandLine, tmp_path: Path, prefix: str, topics: Topics, cli_environment: Mapping[str, str],
    database: Database, conn: Conn, bootstrap_servers: str,
) -> None:  # fmt: skip
    topics.create(topic := f"{prefix}.short")
    topics.create(compacted := f"{prefix}.compacted", config={"cleanup.policy": "compact"})
    file = connector_file(tmp_path, prefix)
    with reading(file, cli_environment), busy(database.dsn, lambda own: insert(own, topic, "later")):
        insert(conn, topic, "k")
        until(lambda: len(read_topic(bootstrap_servers, topic)) > 3, "some rows")
        (deleted,) = topics.admin.delete_records([TopicPartition(topic, 0, 2)]).values()
        deleted.result(60)
        refused = pipeline("connector", "reconcile", str(file), "--execute")
        assert refused.code == 1
        assert f"topic {topic} has deleted records" in refused.stderr
        since = refused.stderr.partition("--since ")[2].partition(",")[0]
        again = lambda: pipeline("connector", "reconcile", str(file), "--since", since).code  # noqa: E731
        assert until(lambda: again() == 0 or None, "rows of after that time") is True
        told = pipeline("connector", "reconcile", str(file), "--despite-retention", "-o", "json")
        assert (told.code, json.loads(told.stdout)["missing"]) == (2, 2), told
        keys = lambda: insert(conn, compacted, "k") and pipeline("connector", "reconcile", str(file), "--since", since)  # noqa: E731
        until(lambda: f"topic {compacted} is compacted" in keys().stderr, "a row of after that time")


def test_a_table_of_your_own_by_its_file_and_rows_on_the_dlq_are_not_missing(
    pipeline: CommandLine, tmp_path: Path, prefix: str, topics: Topics, cli_environment: Mapping[str, str],
    database: Database, conn: Conn, bootstrap_servers: str,
) -> None:  # fmt: skip
    conn.execute(
        "CREATE TABLE public.message (number bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, place text,"
        " subject text, body jsonb, secret text DEFAULT 'no')"
    )
    topics.create(topic := f"{prefix}.things")
    router = "transforms.outbox."
    file = connector_file(
        tmp_path, prefix,
        **{
            "table.include.list": "public.message", "publication.name": prefix,
            "publication.autocreate.mode": "filtered",
            router + "table.field.event.id": "number", router + "table.field.event.key": "subject",
            router + "table.field.event.payload": "body", router + "route.by.field": "place",
            router + "table.field.event.timestamp": None,
            router + "table.fields.additional.placement": "subject:header:subject,secret:header:secret",
            router + "table.field.additional.missing": "ignore", "column.exclude.list": "public.message.secret",
        },
    )  # fmt: skip

    def write(own: Conn, place: str = topic) -> str:
        made = own.execute(
            "INSERT INTO message (place, subject, body) VALUES (%s, 's', '{\"a\": 1}') RETURNING number", (place,)
        ).fetchone()
        return str(made[0]) if made else ""

    lost = [write(conn), write(conn)]
    with reading(file, cli_environment) as relay, busy(database.dsn, write):
        write(conn, "no topic!")
        until(lambda: read_topic(bootstrap_servers, f"{prefix}.dlq"), "the dead letter")
        plan = pipeline("connector", "reconcile", str(file), "-o", "json")
        assert (plan.code, json.loads(plan.stdout)["missing"]) == (2, 2), plan
        since = pipeline("connector", "reconcile", str(file), "--since", "2026-01-01T00:00:00Z")
        assert (since.code, "table.field.event.timestamp" in since.stderr) == (1, True)
        assert pipeline("connector", "reconcile", str(file), "--execute").code == 0
        assert relay.stop() == 0
    found = {headers(one)["id"].decode(): one for one in read_topic(bootstrap_servers, topic)}
    assert set(lost) <= set(found)
    assert (found[lost[0]].key(), found[lost[0]].value()) == (b"s", b'{"a": 1}')
    assert {
        tuple(sorted(headers(one))) for one in found.values() if "__pipeline.origin.timestamp.ms" in headers(one)
    } == {("__pipeline.origin.timestamp.ms", "id", "subject")}


def test_behind_debezium_its_records_are_found_and_what_it_never_had_is_published(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefix: str, topic: str,
    cli_environment: dict[str, str], connect_url: str, database: Database, conn: Conn, bootstrap_servers: str,
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, {**cli_environment, "PIPELINE_CONNECT__URL": connect_url})
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name, "topic.prefix": prefix})
    lost = [insert(conn, topic, f"k{n}", f"v{n}".encode()) for n in range(5)]  # before there was a slot
    try:
        assert pipeline("connector", "deploy", str(file)).code == 0
        read = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
        until(lambda: conn.execute(read, (prefix,)).fetchone() is not None, "its slot")
        with busy(database.dsn, lambda own: insert(own, topic, "later")):
            until(lambda: len(read_topic(bootstrap_servers, topic)) > 20, "rows by Debezium")
            plan = pipeline("connector", "reconcile", str(file), "-o", "json")
            assert (plan.code, json.loads(plan.stdout)["missing"]) == (2, len(lost)), plan
            done = pipeline("connector", "reconcile", str(file), "--execute")
            assert (done.code, f"published: {len(lost)}" in done.stderr) == (0, True), done
            assert pipeline("connector", "reconcile", str(file)).code == 0
            assert pipeline("connector", "stop", prefix).code == 0
            stopped = pipeline("connector", "reconcile", str(file))
            assert f"slot {prefix} is read by nobody" in stopped.stderr
    finally:
        pipeline("connector", "delete", prefix, "--execute")
    records = read_topic(bootstrap_servers, topic)
    assert len(set(ids(records))) == len(records)
    ours = {headers(one)["id"].decode(): one for one in records if "__pipeline.origin.timestamp.ms" in headers(one)}
    assert [ours[event].value() for event in lost] == [f"v{n}".encode() for n in range(5)]
    assert set(ours) == set(lost)
    of_debezium = next(one for one in records if headers(one)["id"].decode() not in ours)
    assert headers(of_debezium).keys() == headers(ours[lost[0]]).keys() - {"__pipeline.origin.timestamp.ms"}
