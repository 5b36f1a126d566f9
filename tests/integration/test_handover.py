"""One slot handed from Debezium to the native relay and back, while rows are written: none is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest
from commands import runner
from figures import Figure
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics


def test_debezium_native_debezium_on_one_slot_under_load_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str],
    connect_url: str, tmp_path: Path, prefix: str, database: Database, topics: Topics, bootstrap_servers: str,
    figure: Figure,
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, {**cli_environment, "PIPELINE_CONNECT__URL": connect_url})
    topic = f"{prefix}.events"
    topics.create(topic)
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name, "topic.prefix": prefix})
    written: list[str] = []
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            while not enough.wait(0.005):
                written.append(insert(conn, topic, f"k{len(written) % 7}"))

    def published() -> int:
        return len(read_topic(bootstrap_servers, topic))

    def grows(what: str) -> None:
        before = published()
        until(lambda: published() > before + 20, what)

    writer = threading.Thread(target=write)
    try:
        assert pipeline("connector", "deploy", str(file)).code == 0
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            active = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
            until(lambda: conn.execute(active, (prefix,)).fetchone() is not None, "its slot")
        writer.start()
        grows("Debezium publishes")
        assert pipeline("connector", "stop", prefix).code == 0
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            grows("the native relay publishes")
            assert relay.stop() == 0
        assert pipeline("connector", "resume", prefix).code == 0
        grows("Debezium publishes again")
        enough.set()
        writer.join()
        until(lambda: set(written) <= set(ids(read_topic(bootstrap_servers, topic))), "every row")
    finally:
        enough.set()
        if writer.ident is not None:
            writer.join()
        pipeline("connector", "delete", prefix, "--execute")
    found = ids(read_topic(bootstrap_servers, topic))
    assert set(found) == set(written)
    figure(f"handover: {len(written)} rows, 0 lost, {len(found) - len(set(found))} duplicates")


def test_debezium_refuses_a_slot_that_begins_past_its_offset_unless_it_trusts_the_slot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str],
    connect_url: str, tmp_path: Path, prefix: str, database: Database, topics: Topics, bootstrap_servers: str,
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, {**cli_environment, "PIPELINE_CONNECT__URL": connect_url})
    topic = f"{prefix}.events"
    topics.create(topic)
    same = {"database.dbname": database.name, "topic.prefix": prefix}
    checking = connector_file(tmp_path, prefix, **same, **{"offset.mismatch.strategy": None})
    try:
        assert pipeline("connector", "deploy", str(checking)).code == 0
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            state = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            until(lambda: conn.execute(state, (prefix,)).fetchone() == (True,), "its slot")
            first = insert(conn, topic, "k")
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first], "the row")
            assert pipeline("connector", "stop", prefix).code == 0
            until(lambda: conn.execute(state, (prefix,)).fetchone() == (False,), "the slot is free")
            conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
            insert(conn, topic, "lost")
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
            refused = pipeline("connector", "resume", prefix)
            assert (refused.code, "no longer available on the server" in refused.stderr) == (1, True)
            trusting = connector_file(tmp_path, prefix, **same)
            assert pipeline("connector", "deploy", str(trusting)).code == 0
            until(lambda: conn.execute(state, (prefix,)).fetchone() == (True,), "its slot")
            last = insert(conn, topic, "k")
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first, last], "what was written since")
    finally:
        pipeline("connector", "delete", prefix, "--execute")
