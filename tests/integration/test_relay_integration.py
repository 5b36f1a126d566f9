"""The relay on a real PostgreSQL and a real broker."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path

import psycopg
import pytest
from commands import runner
from confluent_kafka import murmur2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from figures import Figure
from relays import RelayProcess, connector_file, headers, ids, insert, read_topic, until
from servers import Database, Endpoints, Topics, new_database
from waiting import DEADLINE_S

DEAD_LETTERS = Path(__file__).parents[2] / "docs" / "dead-letters.md"


@pytest.fixture
def topic(prefix: str, topics: Topics) -> str:
    topics.create(f"{prefix}.events", partitions=4)
    return f"{prefix}.events"


@pytest.fixture
def file(tmp_path: Path, prefix: str, database: Database) -> Path:
    return connector_file(tmp_path, prefix)


def test_committed_rows_arrive_with_key_value_headers_time_and_javas_partition(
    file: Path, topic: str, cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str
) -> None:
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        with psycopg.connect(database.dsn) as conn:
            first = insert(conn, topic, "key-é", b"\0\0\0\0\7abc", traceparent="00-ab-cd-01", headers='{"b": [1, "ü"]}')
            second = insert(conn, topic, "", None)
            times = dict(conn.execute("SELECT id::text, created_at FROM pipeline.outbox").fetchall())
        with psycopg.connect(database.dsn) as conn:
            insert(conn, topic, "never")
            conn.rollback()
        found = until(lambda: len(m := read_topic(bootstrap_servers, topic)) == 2 and m, "two records")
        assert relay.stop() == 0
    by_id = dict(zip(ids(found), found, strict=True))
    assert by_id.keys() == {first, second}
    record = by_id[first]
    assert (record.key(), record.value()) == ("key-é".encode(), b"\0\0\0\0\7abc")
    assert record.headers() == [
        ("id", first.encode()),
        ("type", b"shop.OrderPlaced"),
        ("headers", '{"b": [1, "ü"]}'.encode()),
        ("traceparent", b"00-ab-cd-01"),
    ]
    created = int(times[first].replace(tzinfo=UTC).timestamp() * 1000)
    assert record.timestamp() == (1, created)
    assert record.partition() == murmur2("key-é".encode(), 4)
    assert (by_id[second].key(), by_id[second].value()) == (b"", None)
    assert headers(by_id[second])["traceparent"] is None


def test_after_a_drain_the_position_is_stored_and_nothing_comes_again(
    file: Path, topic: str, cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str, prefix: str
) -> None:
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        sent = [insert(conn, topic, f"k{n}") for n in range(200)]
        assert relay.stop() == 0
        stored, confirmed = conn.execute(
            "SELECT p.lsn, s.confirmed_flush_lsn FROM pipeline.relay_position p"
            " JOIN pg_replication_slots s ON s.slot_name = p.slot WHERE p.slot = %s",
            (prefix,),
        ).fetchone()
        assert stored == confirmed
        published = ids(read_topic(bootstrap_servers, topic))
        missing = [name for name in sent if name not in published]
        with RelayProcess(file, cli_environment) as again:
            again.reading()
            last = insert(conn, topic, "last")
            until(lambda: last in ids(read_topic(bootstrap_servers, topic)), "the last row")
        assert sorted(ids(read_topic(bootstrap_servers, topic))) == sorted([*sent, last])
        assert len(missing) < 200  # what was not read before SIGTERM came after it
        assert len(published) == len(set(published))


def test_a_row_of_1970_is_stamped_1_ms_and_one_that_is_too_late_goes_to_the_dlq(
    file: Path, topics: Topics, prefix: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    """The client takes 0 for now; the broker refuses times far ahead, and column values reach to the year 294276."""
    topics.create(topic := f"{prefix}.old", config={"retention.ms": "-1"})
    times = ("1970-01-01", "2300-01-01", "200000-01-01", "2026-01-01")
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        row = (
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, created_at)"
            " VALUES (gen_random_uuid(), 'order', 'k', 'T', %s, %s, %s)"
        )
        for time_ in times:
            conn.execute(row, (time_.encode(), topic, time_))
        late = {b"2300-01-01", b"200000-01-01"}
        letters = lambda: read_topic(bootstrap_servers, f"{prefix}.dlq")  # noqa: E731
        until(lambda: {one.value() for one in letters()} == late, "both letters, perhaps some of them twice")
        values = lambda found: {(one.value(), one.timestamp()[1]) for one in found}  # noqa: E731
        good = {(b"1970-01-01", 1), (b"2026-01-01", 1_767_225_600_000)}
        until(lambda: values(read_topic(bootstrap_servers, topic)) == good, "both good rows, some of them twice")
        assert relay.stop() == 0


def test_a_row_with_a_bad_topic_goes_to_the_dlq_and_stops_nobody(
    file: Path, topic: str, topics: Topics, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str, prefix: str,
) -> None:  # fmt: skip
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn) as conn:
        relay.reading()
        bad = insert(conn, "not a topic!", "k", b"\0\0\0\0\1bad")
        good = insert(conn, topic, "k")
        conn.commit()
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == [good], "the good row")
        (letter,) = until(lambda: read_topic(bootstrap_servers, f"{prefix}.dlq"), "the dead letter")
    assert (letter.key(), letter.value()) == (b"k", b"\0\0\0\0\1bad")
    found = headers(letter)
    assert found["id"].decode() == bad
    assert found["__dlq.errors.topic"] == b"not a topic!"
    assert b"topic" in found["__dlq.errors.message"]
    assert topics.config(f"{prefix}.dlq", "message.timestamp.type") == "LogAppendTime"  # the relay has made it


def test_a_row_that_was_too_large_goes_to_its_topic_once_that_takes_it(
    file: Path, topic: str, topics: Topics, cli_environment: dict[str, str], bootstrap_servers: str, prefix: str,
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, cli_environment)
    topics.set_config(topic, "max.message.bytes", "5000")
    value = b"\0\0\0\0\1" + random.Random(7).randbytes(10_000)
    with RelayProcess(file, cli_environment, "-X", "compression.type=none") as relay:
        relay.reading()
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            large, bad = insert(conn, topic, "k", value), insert(conn, "not a topic!", "k")
        dlq = f"{prefix}.dlq"
        until(lambda: set(ids(read_topic(bootstrap_servers, dlq))) == {large, bad}, "letters")
    place = next(m for m in read_topic(bootstrap_servers, dlq) if ids([m]) == [large]).offset()
    shown = json.loads(pipeline("dlq", "show", f"{dlq}[0]@{place}", "-o", "json").stdout)
    assert (shown["id"], shown["topic"], shown["flaws"], shown["value_bytes"]) == (large, topic, [], len(value))
    planned = pipeline("dlq", "redrive", "--topic", dlq)
    assert planned.code == 2
    assert f"to {topic}: " in planned.stderr
    assert ": its row names no possible topic" in planned.stderr
    assert pipeline("dlq", "redrive", "--topic", dlq, "--execute").code == 1  # it is still too large
    topics.set_config(topic, "max.message.bytes", "1000000")
    assert pipeline("dlq", "redrive", "--letter", f"{dlq}[0]@{place}", "--topic", dlq, "--execute").code == 0
    (record,) = read_topic(bootstrap_servers, topic)
    assert (ids([record]), record.key(), record.value()) == ([large], b"k", value)
    assert record.partition() == murmur2(b"k", 4)
    assert not [name for name in headers(record) if name.startswith("__dlq.")]
    left = json.loads(pipeline("dlq", "list", "--topic", dlq, "-o", "json").stdout)
    assert bad in [letter["id"] for letter in left]
    assert f"{dlq}[0]@{place}" not in [letter["letter"] for letter in left]


def test_rows_that_the_broker_refuses_are_buried_alone_and_order_is_kept(
    file: Path, prefix: str, topics: Topics, cli_environment: dict[str, str], database: Database,
    bootstrap_servers: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    figure: Figure,
) -> None:  # fmt: skip
    topic = f"{prefix}.small"
    topics.create(topic, partitions=1, config={"max.message.bytes": "20000"})
    topics.create(f"{prefix}.dlq", config={"max.message.bytes": "50000"})
    noise = bytes(range(256)) * 4
    with RelayProcess(file, cli_environment, "-X", "compression.type=none") as relay:
        with psycopg.connect(database.dsn) as conn:
            relay.reading()
            good = []
            for n in range(300):
                good.append(insert(conn, topic, f"k{n % 7}", noise))
                if n == 100:
                    large = insert(conn, topic, "k1", noise * 30)
                if n == 200:
                    huge = insert(conn, topic, "k2", noise * 100)
            conn.commit()
        dlq = f"{prefix}.dlq"
        letters = until(lambda: set(ids(m := read_topic(bootstrap_servers, dlq))) == {large, huge} and m, "letters")
        until(lambda: set(good) <= set(ids(read_topic(bootstrap_servers, topic))), "all good rows")
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            kept = conn.execute("SELECT event_id, topic, key, value, headers->0 FROM pipeline.refused_row").fetchall()
            assert kept == [(huge, topic, b"k2", noise * 100, ["id", b64encode(huge.encode()).decode()])]
            status = runner(capsys, monkeypatch, cli_environment)("outbox", "status")
            assert "1 rows no topic takes" in status.stderr
            topics.set_config(topic, "max.message.bytes", "200000")
            again = DEAD_LETTERS.read_text().partition("```sql\n")[2].partition("```")[0]
            conn.execute(again.replace(":'id'", f"'{huge}'").encode())
            assert conn.execute("SELECT count(*) FROM pipeline.refused_row").fetchone() == (0,)
        until(lambda: huge in ids(read_topic(bootstrap_servers, topic)), "the huge row, by the SQL of the docs")
        assert relay.stop() == 0
    (last,) = [message for message in read_topic(bootstrap_servers, topic) if ids([message]) == [huge]]
    assert (last.key(), last.value(), headers(last)["type"]) == (b"k2", noise * 100, b"shop.OrderPlaced")
    found = [name for name in ids(read_topic(bootstrap_servers, topic)) if name != huge]
    assert list(dict.fromkeys(found)) == good  # first copies in commit order
    figure(f"rows that the broker refuses: {len(found) - len(good)} duplicates of {len(good)}")
    assert dict(zip(ids(letters), [letter.value() for letter in letters], strict=True)) == {
        large: noise * 30,
        huge: None,
    }
    assert headers(letters[-1])["__dlq.errors.value.bytes"] == str(len(noise * 100)).encode()


def test_a_missing_topic_is_waited_for_not_ready_and_never_dead(
    file: Path, topics: Topics, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    late = f"{prefix}.late"
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        first = insert(conn, late, "k")
        second = insert(conn, topic, "k")
        reasons = until(lambda: relay.readiness()["reasons"].get("broker"), "not ready")  # type: ignore[attr-defined]
        assert late in reasons
        topics.create(late)
        until(lambda: ids(read_topic(bootstrap_servers, late)) == [first], "the row on the late topic")
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == [second], "the row behind it")
        until(lambda: relay.readiness()["ready"], "ready again")
    assert read_topic(bootstrap_servers, f"{prefix}.dlq") == []


def test_a_topic_deleted_and_made_again_under_way_loses_no_new_row(
    file: Path, topics: Topics, topic: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        first = insert(conn, topic, "k")
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first], "the first row")
        topics.delete([topic])
        second = insert(conn, topic, "k")
        until(lambda: "broker" in relay.readiness()["reasons"], "not ready")  # type: ignore[operator]
        topics.create(topic, partitions=1)
        until(lambda: second in ids(read_topic(bootstrap_servers, topic)), "the second row", 60)


def test_a_standby_takes_over_within_seconds_of_a_kill(
    file: Path,
    topic: str,
    cli_environment: Mapping[str, str],
    database: Database,
    bootstrap_servers: str,
    figure: Figure,
) -> None:
    with RelayProcess(file, cli_environment) as active, psycopg.connect(database.dsn, autocommit=True) as conn:
        active.reading()
        with RelayProcess(file, cli_environment) as standby:
            until(lambda: standby.readiness()["role"] == "standby" and standby.readiness()["ready"], "a ready standby")
            changed = {"slot.name": json.loads(file.read_text())["config"]["slot.name"]}
            wrong = connector_file(file.parent, "wrong", **changed, **{"publication.name": "nothing_here"})
            with RelayProcess(wrong, cli_environment) as other:  # not only once it would be active
                assert other.process.wait(60) == 1
                assert "publication nothing_here does not exist" in other.log
            first = insert(conn, topic, "k")
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first], "the first row")
            sent, after, killed_at = [first], 0, 0.0
            deadline = time.monotonic() + DEADLINE_S
            while not (killed_at and "slot.read" in standby.actions()):  # rows go on coming all the time
                assert time.monotonic() < deadline, "the standby did not take over"
                sent += [insert(conn, topic, "k") for _ in range(50)]
                if not killed_at and len(sent) > 500:
                    active.kill()
                    killed_at, after = time.monotonic(), len(sent)
            takeover_s = time.monotonic() - killed_at
            until(lambda: sent[after] in ids(read_topic(bootstrap_servers, topic)), "a row of after the kill")
            gap_s = time.monotonic() - killed_at
            until(lambda: sent[-1] in ids(read_topic(bootstrap_servers, topic)), "the last row")
            assert standby.readiness()["role"] == "active"
            assert standby.stop() == 0
    found = ids(read_topic(bootstrap_servers, topic))
    assert list(dict.fromkeys(found)) == sent  # 0 lost, first copies in commit order
    figure(
        f"takeover: {len(sent)} rows, 0 lost, {len(found) - len(sent)} duplicates; the standby reads after "
        f"{takeover_s:.2f} s, the first row of after the kill is on its topic after {gap_s:.2f} s"
    )


def test_columns_added_while_running_change_nothing(
    file: Path, topic: str, cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str
) -> None:
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        names = [insert(conn, topic, "k")]
        conn.execute("ALTER TABLE pipeline.outbox ADD COLUMN extra int DEFAULT 5")
        names.append(insert(conn, topic, "k"))
        conn.execute("ALTER TABLE pipeline.outbox DROP COLUMN extra")
        names.append(insert(conn, topic, "k"))
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == names, "all three")


def test_an_idle_relay_lets_the_server_forget_wal(
    file: Path, cli_environment: Mapping[str, str], database: Database, prefix: str, endpoints: Endpoints
) -> None:
    with (
        RelayProcess(file, cli_environment) as relay,
        new_database(endpoints.postgres_dsn) as another,
        psycopg.connect(database.dsn, autocommit=True) as conn,
        psycopg.connect(another.dsn, autocommit=True) as busy,
    ):
        relay.reading()
        for other in (conn, busy):  # another table, another database
            other.execute("CREATE TABLE noise (t text)")
            for _ in range(15):
                other.execute("INSERT INTO noise SELECT repeat(md5(g::text), 60) FROM generate_series(1, 1000) g")
        target = conn.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
        until(
            lambda: (
                conn.execute(
                    "SELECT confirmed_flush_lsn > %s::pg_lsn - 17000000 FROM pg_replication_slots WHERE slot_name = %s",
                    (target, prefix),
                ).fetchone()
                == (True,)
            ),
            "the slot advances without a row",
            40,
        )


def test_the_active_relay_alone_runs_the_heartbeats_query_and_survives_its_failure(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    query = "INSERT INTO public.beat VALUES (pg_backend_pid() + current_setting('my.zero')::int)"
    options = {
        "heartbeat.interval.ms": "100", "heartbeat.action.query": query,
        "database.initial.statements": "SET my.zero = 0",
    }  # fmt: skip
    file = connector_file(tmp_path, prefix, **options)
    with (
        psycopg.connect(database.dsn, autocommit=True) as conn,
        RelayProcess(file, cli_environment) as active,
    ):
        beats = lambda: dict(conn.execute("SELECT pid, count(*) FROM beat GROUP BY 1").fetchall())  # noqa: E731
        active.reading()
        until(lambda: "heartbeat.failed" in active.actions(), "a failed heartbeat")
        conn.execute("CREATE TABLE beat (pid int)")
        with RelayProcess(file, cli_environment) as standby:
            until(lambda: standby.readiness()["role"] == "standby", "a standby")
            seen = sum(beats().values())
            until(lambda: sum(beats().values()) >= seen + 5, "heartbeats beside a standby")
            (first,) = beats()
            sent = insert(conn, topic, "k")
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == [sent], "the row")
            active.kill()
            until(lambda: beats().keys() - {first}, "a heartbeat of the new active relay")
            assert standby.stop() == 0
        assert active.actions().count("heartbeat.failed") == active.actions().count("heartbeat.back") == 1


def test_json_payloads_are_encoded_by_their_subjects_schema_and_wait_for_it(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str, registry_client: SchemaRegistryClient,
) -> None:  # fmt: skip
    router = "transforms.outbox."
    options = {
        "table.include.list": "public.events",
        "publication.name": "events",
        "pipeline.payload.encode": "avro",
        router + "table.fields.additional.placement": "type:header:type",
    }
    schema = {"type": "record", "name": "Paid", "namespace": "shop", "fields": [{"name": "cents", "type": "long"}]}
    row = "INSERT INTO events (aggregateid, type, topic, payload) VALUES ('k', 'shop.Paid', %s, %s)"
    with (
        psycopg.connect(database.dsn, autocommit=True) as conn,
        RelayProcess(connector_file(tmp_path, prefix, **options), cli_environment) as relay,
    ):
        assert relay.process.wait(60) == 1  # no such publication yet
        conn.execute(
            "CREATE TABLE events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text,"
            " type text, topic text, payload jsonb, created_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'))"
        )
        conn.execute("CREATE PUBLICATION events FOR TABLE events WITH (publish = 'insert')")
        with RelayProcess(connector_file(tmp_path, prefix, **options), cli_environment) as relay:
            relay.reading()
            conn.execute(row, (topic, '{"cents": 5}'))
            reasons = lambda: str(relay.readiness()["reasons"])  # noqa: E731
            until(lambda: f"{topic}-shop.Paid" in reasons(), "not ready: the registry has no schema")
            version = registry_client.register_schema(f"{topic}-shop.Paid", Schema(json.dumps(schema), "AVRO"))
            (first,) = until(lambda: read_topic(bootstrap_servers, topic), "the first record")
            until(lambda: relay.readiness()["ready"], "ready")
            conn.execute(row, (topic, '{"cents": "many"}'))
            conn.execute(row, (topic, '{"cents": 7}'))
            (letter,) = until(lambda: read_topic(bootstrap_servers, f"{prefix}.dlq"), "the dead letter")
            wider = {**schema, "fields": [*schema["fields"], {"name": "tip", "type": "long", "default": 0}]}
            newer = registry_client.register_schema(f"{topic}-shop.Paid", Schema(json.dumps(wider), "AVRO"))
            time.sleep(1.1)  # a schema is asked for again at most each second
            conn.execute(row, (topic, '{"cents": 8, "tip": 2}'))
            found = until(lambda: len(m := read_topic(bootstrap_servers, topic)) == 3 and m, "three records")
            assert relay.stop() == 0
    assert (first.key(), first.value()) == (b"k", struct.pack(">bI", 0, version) + b"\x0a")
    assert letter.value() == b'{"cents": "many"}'
    assert b"payload.cents: is not long" in headers(letter)["__dlq.errors.message"]
    assert [record.value() for record in found[1:]] == [
        struct.pack(">bI", 0, version) + b"\x0e",
        struct.pack(">bI", 0, newer) + b"\x10\x04",
    ]


def test_a_huge_row_passes_where_the_topic_takes_it(
    file: Path, topics: Topics, prefix: str, cli_environment: Mapping[str, str], database: Database,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    topic = f"{prefix}.huge"
    topics.create(topic, config={"max.message.bytes": "50000000"})
    payload = struct.pack(">I", 0xDEADBEEF) * 8_000_000  # more than the relay holds at a time
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        insert(conn, topic, "k", payload)
        (record,) = until(lambda: read_topic(bootstrap_servers, topic), "the row")
    assert record.value() == payload


def test_a_large_transaction_passes_in_bounded_memory_without_its_rolled_back_savepoints(
    file: Path,
    topic: str,
    cli_environment: Mapping[str, str],
    database: Database,
    bootstrap_servers: str,
    prefix: str,
    figure: Figure,
) -> None:
    """100 MB in one transaction, which the server spills to its disk; a relay is killed in the middle of it."""
    with psycopg.connect(database.dsn) as conn:
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            conn.execute("SELECT")  # begins the transaction that holds all chunks
            for chunk in range(100):
                with conn.transaction(force_rollback=chunk % 10 == 9):
                    conn.execute(CHUNK, {"topic": topic, "chunk": chunk})
            assert read_topic(bootstrap_servers, topic) == []  # nothing before it is committed
            conn.commit()
            until(lambda: read_topic(bootstrap_servers, topic), "the first records")
            peaks = [relay.peak_memory_bytes()]
            relay.kill()
        with RelayProcess(file, cli_environment) as again:
            last = insert(conn, topic, "last")
            conn.commit()
            until(lambda: last in ids(read_topic(bootstrap_servers, topic)), "the row behind it", 60)
            peaks.append(again.peak_memory_bytes())
        spilled = "SELECT spill_bytes > 64000000 FROM pg_stat_replication_slots WHERE slot_name = %s"
        until(lambda: conn.execute(spilled, (prefix,)).fetchone() == (True,), "what the server has spilled")
    keys = [record.key() for record in read_topic(bootstrap_servers, topic)]
    assert set(keys) == {b"last", *(f"{n}".encode() for n in range(100_000) if n // 1000 % 10 != 9)}
    figure(
        f"100 MB in one transaction: peaks {[round(peak / 1e6) for peak in peaks]} MB, {len(keys) - 90_001} duplicates"
    )
    assert max(peaks) < 130e6


CHUNK = """
INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', n, 'shop.OrderPlaced', decode(repeat(md5(n::text), 64), 'hex'), %(topic)s
FROM generate_series(%(chunk)s * 1000, %(chunk)s * 1000 + 999) AS n
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"publication.name": "nothing_here"}, "publication nothing_here does not exist"),
        ({"table.include.list": "public.other"}, "has no table that table.include.list=public.other takes"),
        ({"database.dbname": "nowhere_at_all"}, "nowhere_at_all"),
        ({"database.password": "wrong"}, "password authentication failed"),
        ({"transforms.outbox.table.field.event.key": "keyless"}, "column 'keyless'"),
    ],
)
def test_a_start_that_cannot_work_ends_with_what_where_and_what_to_do(
    tmp_path: Path, prefix: str, cli_environment: Mapping[str, str], database: Database, changes: dict[str, str],
    told: str,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix, **changes)
    with RelayProcess(file, cli_environment) as relay:
        if "transforms.outbox.table.field.event.key" in changes:  # only a row brings the layout
            relay.reading()
            with psycopg.connect(database.dsn) as conn:
                insert(conn, "t", "k")
        assert relay.process.wait(60) == 1
        assert told in relay.log
        assert f"error: {file}: " in relay.log
        assert "→" in relay.log
    if "publication.name" in changes or "table.include.list" in changes:  # a slot that nobody reads holds back WAL
        with psycopg.connect(database.dsn) as conn:
            assert conn.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (prefix,)).fetchall() == []


def test_a_role_without_rights_is_told_so_and_runs_once_the_doctors_grants_are_given(
    tmp_path: Path, prefix: str, topic: str, cli_environment: dict[str, str], database: Database,
    bootstrap_servers: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, cli_environment)
    file = connector_file(tmp_path, prefix, **{"database.user": prefix, "database.password": "p"})

    def ended() -> str:
        with RelayProcess(file, cli_environment) as relay:
            assert relay.process.wait(30) == 1
        return relay.log

    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {prefix} LOGIN PASSWORD 'p'")
        try:
            error = ended()
            assert "→ the role of database.user needs REPLICATION" in error
            conn.execute(f"ALTER ROLE {prefix} REPLICATION")
            assert f"→ grant it to database.user: pipeline doctor {file} says what is missing" in ended()
            conn.execute(f"ALTER ROLE {prefix} NOREPLICATION")
            for _ in range(2):  # what is wrong with a table is not seen before the schema may be used
                for one in json.loads(pipeline("doctor", str(file), "-o", "json").stdout):
                    if one["level"] == "problem" and one["area"] == "postgres":
                        conn.execute(one["fix"].encode())
            with RelayProcess(file, cli_environment) as relay:
                relay.reading()
                event = insert(conn, topic, "k")
                until(lambda: ids(read_topic(bootstrap_servers, topic)) == [event], "the row")
                assert relay.stop() == 0
        finally:
            conn.execute(f"DROP OWNED BY {prefix}")
            conn.execute(f"DROP ROLE {prefix}")


def test_a_slot_that_vanished_is_an_error_that_says_what_may_be_missing(
    file: Path, topic: str, cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str, prefix: str
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            insert(conn, topic, "k")
            until(lambda: len(read_topic(bootstrap_servers, topic)) == 1, "the row")
            assert relay.stop() == 0
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        with RelayProcess(file, cli_environment) as again:
            assert again.process.wait(60) == 1
            assert f"slot {prefix} is gone" in again.log


@pytest.mark.parametrize("trust", [True, False])
def test_a_recreated_slot_is_noticed(
    tmp_path: Path, topic: str, cli_environment: Mapping[str, str], database: Database, bootstrap_servers: str,
    prefix: str, trust: bool,
) -> None:  # fmt: skip
    file = connector_file(tmp_path, prefix, **{"offset.mismatch.strategy": "trust_slot" if trust else "no_validation"})
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        with RelayProcess(file, cli_environment) as relay:
            relay.reading()
            insert(conn, topic, "k")
            until(lambda: len(read_topic(bootstrap_servers, topic)) == 1, "the row")
            assert relay.stop() == 0
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        insert(conn, topic, "lost")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
        with RelayProcess(file, cli_environment) as again:
            if trust:
                again.reading()
                assert "are missing" in again.log
            else:
                assert again.process.wait(60) == 1
                assert f"error: {file}: slot {prefix}: it was recreated or moved" in again.log


def test_sigterm_twice_ends_at_once_while_the_broker_holds_everything_back(
    file: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database
) -> None:
    with RelayProcess(file, cli_environment) as relay, psycopg.connect(database.dsn, autocommit=True) as conn:
        relay.reading()
        insert(conn, f"{prefix}.nowhere", "k")
        until(lambda: "broker" in relay.readiness()["reasons"], "not ready")  # type: ignore[operator]
        relay.process.terminate()
        until(lambda: "relay.drain" in relay.actions(), "draining")
        relay.process.terminate()
        assert relay.process.wait(60) == 0


def test_validate_checks_a_file_without_servers(tmp_path: Path) -> None:
    good = connector_file(tmp_path, "good")
    environment = {f"PG{name}": "1" for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE")}
    code = "from pipeline.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "connector", "validate", str(good)],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "good.json: ok" in done.stdout
    broken = connector_file(tmp_path, "broken", **{"slot.nam": "x"})
    done = subprocess.run(
        [sys.executable, "-c", code, "connector", "validate", str(broken)],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "slot.nam: unknown key" in done.stderr
    assert "slot.name" in done.stderr
