"""Snapshots by the relay's own process on real servers: what comes, in which order, and what comes after."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest
from relays import RelayProcess, connector_file, headers, ids, insert, read_topic, until
from servers import Database, Topics

Conn = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def topic(topics: Topics, prefix: str) -> str:
    topics.create(name := f"{prefix}.events")
    return name


def stored(conn: Conn, slot: str) -> bool:
    """Tell whether a position of the slot was stored: the snapshot is published."""
    position = "SELECT lsn > '0/0' FROM pipeline.relay_position WHERE slot = %s"
    return conn.execute(position, (slot,)).fetchone() == (True,)


def test_rows_that_are_there_come_in_order_and_those_after_it_by_the_stream(
    tmp_path: Path, prefix: str, conn: Conn, topic: str, database: Database, cli_environment: Mapping[str, str],
    bootstrap_servers: str,
) -> None:  # fmt: skip
    """Written all the while: none is lost between snapshot and stream, none comes twice."""
    made = [insert(conn, topic, "k", secrets.token_bytes(200)) for _ in range(50)]
    conn.execute("UPDATE pipeline.outbox SET traceparent = 'moved' WHERE seq % 7 = 0")  # not as they lie in the table
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as own:
            while not enough.is_set():
                made.append(insert(own, topic, "k"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with RelayProcess(connector_file(tmp_path, prefix, **{"snapshot.mode": "initial"}), cli_environment) as relay:
            relay.reading()
            until(lambda: "snapshot.end" in relay.actions(), "the snapshot")
            count = len(made)
            until(lambda: len(made) > count + 50, "rows after the snapshot")
            enough.set()
            writer.join()
            until(lambda: len(read_topic(bootstrap_servers, topic)) >= len(made), "all rows")
            assert relay.stop() == 0
    finally:
        enough.set()
        writer.join()
    assert ids(read_topic(bootstrap_servers, topic)) == made


def test_a_snapshot_is_taken_once_and_begins_again_after_a_crash(
    tmp_path: Path, prefix: str, conn: Conn, topics: Topics, cli_environment: Mapping[str, str], bootstrap_servers: str
) -> None:
    topic = f"{prefix}.late"  # not there yet: the relay waits for it
    made = [insert(conn, topic, "k") for _ in range(3)]
    file = connector_file(tmp_path, prefix, **{"snapshot.mode": "initial"})
    with RelayProcess(file, cli_environment) as relay:
        until(lambda: "snapshot.end" in relay.actions(), "the snapshot is read")
        assert not stored(conn, prefix)
        relay.kill()
    topics.create(topic)
    made.append(insert(conn, topic, "k"))
    with RelayProcess(file, cli_environment) as relay:
        until(lambda: stored(conn, prefix), "the snapshot is published")
        assert relay.stop() == 0
    published = ids(read_topic(bootstrap_servers, topic))
    assert published[:4] == made
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        last = insert(conn, topic, "k")
        until(lambda: last in ids(read_topic(bootstrap_servers, topic)), "a row by the stream")
        assert "snapshot.begin" not in relay.actions()
        assert relay.stop() == 0


def test_initial_only_publishes_what_is_there_once_without_a_slot(
    tmp_path: Path, prefix: str, conn: Conn, topic: str, cli_environment: Mapping[str, str], bootstrap_servers: str
) -> None:
    made = [insert(conn, topic, "k") for _ in range(3)]
    file = connector_file(tmp_path, prefix, **{"snapshot.mode": "initial_only"})
    with RelayProcess(file, cli_environment) as relay, RelayProcess(file, cli_environment) as other:
        until(lambda: stored(conn, f"snapshot:{prefix}"), "the snapshot is published")
        until(lambda: {relay.readiness().get("role"), other.readiness().get("role")} == {"active", "standby"}, "roles")
        insert(conn, topic, "k")
        assert (relay.stop(), other.stop()) == (0, 0)
    with RelayProcess(file, cli_environment) as relay:
        until(lambda: "snapshot.done" in relay.actions(), "nothing is left to do")
        assert relay.readiness()["ready"]
        assert relay.stop() == 0
    assert ids(read_topic(bootstrap_servers, topic)) == made
    slots = conn.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", (prefix,))
    assert slots.fetchone() == (0,)


@pytest.mark.parametrize("mode", ["always", "when_needed"])
def test_a_slot_that_is_gone_is_made_up_for_by_a_snapshot(
    mode: str, tmp_path: Path, prefix: str, conn: Conn, topic: str, cli_environment: Mapping[str, str],
    bootstrap_servers: str,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix, **{"snapshot.mode": mode})
    made = [insert(conn, topic, "k")]
    for turn in range(3):
        if turn == 2 and mode == "when_needed":
            conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
            made.append(insert(conn, topic, "k"))
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            made.append(insert(conn, topic, "k"))
            until(lambda: made[-1] in ids(read_topic(bootstrap_servers, topic)), "a row by the stream")
            assert ("snapshot.end" in relay.actions()) == (mode == "always" or turn != 1)
            assert relay.stop() == 0
    published = ids(read_topic(bootstrap_servers, topic))
    assert list(dict.fromkeys(published)) == made
    assert len(published) > len(made)


def test_what_is_read_and_how_it_is_stamped_can_be_said(
    tmp_path: Path, prefix: str, conn: Conn, topic: str, cli_environment: Mapping[str, str], bootstrap_servers: str
) -> None:
    first, _, third = (insert(conn, topic, "k", payload) for payload in (b"a", b"b", b"c"))
    conn.execute("UPDATE pipeline.outbox SET created_at = '2001-02-03 04:05:06.789'")
    conn.execute("CREATE TABLE public.parted (LIKE pipeline.outbox) PARTITION BY HASH (id)")
    conn.execute("CREATE TABLE public.parted_0 PARTITION OF public.parted FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    conn.execute("INSERT INTO public.parted SELECT * FROM pipeline.outbox WHERE id = %s", (first,))
    conn.execute("CREATE TABLE public.aside (LIKE pipeline.outbox)")
    conn.execute("INSERT INTO public.aside SELECT * FROM pipeline.outbox")
    selects = "snapshot.select.statement.overrides"
    changes = {
        "snapshot.mode": "initial", "pipeline.snapshot.timestamp": "now",
        "table.include.list": "pipeline.outbox,public\\..*", "publication.name": prefix,
        "snapshot.include.collection.list": "pipeline.outbox,public.parted.*",
        selects: "pipeline.outbox", "publication.autocreate.mode": "filtered", "publish.via.partition.root": "true",
        "database.initial.statements": "SET my.mark = 'b'; SET my.other = ';;';",
        f"{selects}.pipeline.outbox": "SELECT * FROM pipeline.outbox"
        " WHERE payload <> current_setting('my.mark')::bytea AND current_setting('my.other') = ';' ORDER BY seq DESC;",
    }  # fmt: skip
    conn.execute("DROP PUBLICATION pipeline_outbox")
    with RelayProcess(connector_file(tmp_path, prefix, **changes), cli_environment) as relay:
        until(lambda: stored(conn, prefix), "the snapshot is published")
        assert relay.stop() == 0
    found = read_topic(bootstrap_servers, topic)
    assert ids(found) == [third, first, first]  # the partitioned table once, not its part as well
    row_ms = 981_173_106_789
    assert {headers(message)["__pipeline.origin.timestamp.ms"] for message in found} == {str(row_ms).encode()}
    assert all(message.timestamp()[1] > row_ms for message in found)


def test_rows_that_a_policy_hides_are_an_error(
    tmp_path: Path, prefix: str, conn: Conn, topic: str, database: Database, cli_environment: Mapping[str, str]
) -> None:
    insert(conn, topic, "k")
    role = f"{prefix}_role"
    conn.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'")
    try:
        conn.execute(f"GRANT USAGE ON SCHEMA pipeline TO {role}")
        conn.execute(f"GRANT SELECT ON pipeline.outbox TO {role}")
        positions = "pipeline.relay_position, pipeline.poll_position"
        conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {positions} TO {role}")
        conn.execute("ALTER TABLE pipeline.outbox ENABLE ROW LEVEL SECURITY")
        login = {"database.user": role, "database.password": "x", "database.dbname": database.name}
        file = connector_file(tmp_path, prefix, **login, **{"snapshot.mode": "initial"})
        with RelayProcess(file, cli_environment) as relay:
            assert relay.process.wait(60) == 1
            assert "row-level security" in relay.log
        assert not stored(conn, prefix)
    finally:
        conn.execute(f"DROP OWNED BY {role}")
        conn.execute(f"DROP ROLE {role}")
