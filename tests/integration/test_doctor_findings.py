"""Each finding of ``pipeline doctor`` on real servers: what it prints to mend it is done, and the finding goes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from confluent_kafka import Producer
from relays import connector_file, insert
from servers import Database, Topics

from pipeline.config import Settings
from pipeline.postgres import migrations, poll_position
from pipeline.postgres.diagnosis.providers import provider_of
from pipeline.runtime.doctor import diagnose


@pytest.fixture
def cli_environment(cli_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    own = {key: value for key, value in cli_environment.items() if key != "PIPELINE_CONNECT__URL"}
    return {**own, "PIPELINE_DATA_DIR": str(tmp_path)}


@pytest.fixture
def file(tmp_path: Path, prefix: str, database: Database) -> Path:
    return connector_file(tmp_path, prefix, **{"database.dbname": database.name})


def findings(pipeline: CommandLine, file: Path, *words: str, check: str) -> list[dict[str, str]]:
    """What is not well with one thing that is looked at."""
    found = json.loads(pipeline("doctor", str(file), *words, "-o", "json").stdout)
    return [one for one in found if one["check"] == check and one["level"] in {"warning", "problem"}]


def finding(pipeline: CommandLine, file: Path, *words: str, check: str) -> dict[str, str]:
    (found,) = findings(pipeline, file, *words, check=check)
    return found


def run(conn: psycopg.Connection[tuple[object, ...]], fix: str) -> None:
    for statement in filter(None, fix.split(";")):
        conn.execute(statement.encode())


def alter(topics: Topics, fix: str) -> None:
    """Do what ``kafka-configs --alter`` does."""
    found = re.fullmatch(
        r"kafka-configs --alter --entity-type topics --entity-name (\S+) --add-config (\S+)=(\S+)", fix
    )
    assert found, fix
    topics.set_config(*found.groups())


@pytest.mark.parametrize(
    ("setting", "value", "level", "told"),
    [
        ("max.message.bytes", "1000", "problem", "it would be a dead letter"),
        ("cleanup.policy", "compact", "warning", "only the newest event"),
        ("message.timestamp.type", "LogAppendTime", "warning", "time of the insert is lost"),
        ("retention.ms", "60000", "problem", "a row that is not published yet is 36"),
        ("unclean.leader.election.enable", "true", "warning", "can be lost"),
        ("min.insync.replicas", "2", "problem", "it takes no record"),
    ],
)
def test_an_event_topic_that_does_not_fit_the_rows(
    pipeline: CommandLine, file: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, topics: Topics,
    setting: str, value: str, level: str, told: str,
) -> None:  # fmt: skip
    topic = f"{prefix}.events"
    insert(conn, topic, "k", b"x" * 2000)
    insert(conn, f"{prefix}.other", "k")
    conn.execute(
        "INSERT INTO pipeline.relay_position VALUES (%s, '1', 1, '0/1', now() - interval '2 hours')", (prefix,)
    )
    conn.execute("UPDATE pipeline.outbox SET created_at = created_at - interval '1 hour'")
    missing = finding(pipeline, file, check=f"topic {topic}")
    assert (missing["level"], missing["found"]) == ("problem", "is not there: the relay waits for it")
    topics.create(topic, f"{prefix}.other")
    assert findings(pipeline, file, check=f"topic {topic}") == []
    topics.set_config(topic, setting, value)
    found = finding(pipeline, file, check=f"topic {topic}")
    assert found["level"] == level
    assert told in found["found"]
    alter(topics, found["fix"])
    assert findings(pipeline, file, check=f"topic {topic}") == []


def test_rows_whose_topic_kafka_does_not_allow(
    pipeline: CommandLine, file: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, topics: Topics
) -> None:
    topics.create(topic := f"{prefix}.events")
    for one in ("", "no topic!", topic):
        insert(conn, one, "k")
    found = {one["check"]: one for one in json.loads(pipeline("doctor", str(file), "-o", "json").stdout)}
    assert (found["broker"]["level"], found["event topics"]["found"][:6]) == ("ok", "1 of 1")
    for one in ("", "no topic!"):
        told = found[f"topic {one!r}"]
        assert (told["level"], told["found"]) == ("warning", "no name that Kafka allows: its rows are dead letters")
        assert str(file) in told["fix"]


def test_a_dead_letter_topic_that_would_not_keep_its_letters(
    pipeline: CommandLine, file: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, topics: Topics
) -> None:
    dlq = f"{prefix}.dlq"
    assert "makes it" in finding(pipeline, file, check=f"topic {dlq}")["found"]
    insert(conn, f"{prefix}.events", "k", b"x" * 2000)
    topics.create(dlq, config={"cleanup.policy": "compact", "max.message.bytes": "500"})
    found = findings(pipeline, file, check=f"topic {dlq}")
    assert len(found) == 4
    for one in found:
        alter(topics, one["fix"])
    assert findings(pipeline, file, check=f"topic {dlq}") == []


def test_the_producers_own_limit_and_the_applications_topics(
    pipeline: CommandLine, tmp_path: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str,
    database: Database, topics: Topics,
) -> None:  # fmt: skip
    changes = {"database.dbname": database.name, "producer.override.max.request.size": "1000"}
    file = connector_file(tmp_path, prefix, **changes)
    insert(conn, f"{prefix}.events", "k", b"x" * 2000)
    fix = finding(pipeline, file, check="producer")["fix"]
    key, value = fix.split()[1].split("=")
    connector_file(tmp_path, prefix, **{**changes, key: value})
    assert findings(pipeline, file, check="producer") == []

    Path("shop.py").write_text(
        "from pipeline import Event, Pipeline\n"
        f"app = Pipeline('{prefix}', topic_prefix='')\n"
        f"class Placed(Event, aggregate='{prefix}', key='n'):\n    n: str\n"
        "@app.consumer(Placed, group='g')\ndef take(event: Placed, ctx: object) -> None: ...\n"
    )
    retry = f"topic {prefix}.g.retry.0s"
    fix = finding(pipeline, file, "--app", "shop:app", check=retry)["fix"]
    assert pipeline(*fix.split()[1:]).code == 0
    topics.set_config(f"{prefix}.g.retry.0s", "message.timestamp.type", "CreateTime")
    found = finding(pipeline, file, "--app", "shop:app", check=retry)
    assert found["found"] == "config: message.timestamp.type: CreateTime → LogAppendTime"
    assert pipeline(*found["fix"].split()[1:]).code == 0
    assert findings(pipeline, file, "--app", "shop:app", check=retry) == []


def test_clocks_that_are_ahead_of_this_machines(
    file: Path, prefix: str, topics: Topics, cli_environment: dict[str, str], bootstrap_servers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    topics.create(f"{prefix}.dlq", config={"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"})
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    producer.produce(f"{prefix}.dlq", b"x")
    producer.flush(60)
    for name, value in cli_environment.items():
        if name.startswith("PIPELINE_"):
            monkeypatch.setenv(name, value)

    def clocks(behind_s: float) -> dict[str, str]:
        found = diagnose(Settings.load(), file, now=lambda: time.time() - behind_s)
        return {one.area: one.found for one in found if one.check == "clock" and one.level == "warning"}

    assert clocks(0) == {}
    assert clocks(100).keys() == {"kafka", "postgres"}
    assert all(re.match(r"\+?(9\d|100)\.\d s ", text) for text in clocks(100).values())


def test_a_snapshot_says_how_many_rows_it_would_publish(
    pipeline: CommandLine, tmp_path: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, database: Database
) -> None:
    for _ in range(7):
        insert(conn, f"{prefix}.events", "k")
    conn.execute("ANALYZE pipeline.outbox")
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name, "snapshot.mode": "initial"})
    check = "snapshot of pipeline.outbox"
    found = finding(pipeline, file, check=check)
    assert "publishes about 7 rows" in found["found"]
    key, value = found["fix"].split(",")[0].split()[1].split("=")
    connector_file(tmp_path, prefix, **{"database.dbname": database.name, key: value})
    assert findings(pipeline, file, check=check) == []


def test_a_publication_that_leaves_out_what_the_relay_needs(
    pipeline: CommandLine, tmp_path: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, file: Path,
    database: Database,
) -> None:  # fmt: skip
    conn.execute("ALTER PUBLICATION pipeline_outbox SET TABLE pipeline.outbox (id, aggregateid, topic, created_at)")
    check = "pipeline.outbox in pipeline_outbox"
    found = finding(pipeline, file, check=check)
    assert found["found"] == "its column list leaves out payload, type, headers, traceparent"
    run(conn, found["fix"])
    assert findings(pipeline, file, check=check) == []
    conn.execute("ALTER PUBLICATION pipeline_outbox SET TABLE pipeline.outbox WHERE (topic <> 'x')")
    assert "only rows with" in pipeline("doctor", str(file)).stdout

    columns = "id uuid, aggregateid text, aggregatetype text, payload text"
    conn.execute(f"CREATE TABLE parts ({columns}) PARTITION BY HASH (id)")
    conn.execute("CREATE TABLE part PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    conn.execute("CREATE PUBLICATION parts FOR TABLE parts WITH (publish = 'insert')")
    own = {"database.dbname": database.name, "table.include.list": "public.parts", "publication.name": "parts",
           "transforms.outbox.route.by.field": "aggregatetype",
           "transforms.outbox.table.fields.additional.placement": None}  # fmt: skip
    parted = connector_file(tmp_path, f"{prefix}-p", **own, **{"transforms.outbox.table.field.event.timestamp": "at"})
    assert finding(pipeline, parted, check="columns of public.parts")["found"] == "has no at"
    connector_file(tmp_path, f"{prefix}-p", **own, **{"transforms.outbox.table.field.event.timestamp": None})
    assert findings(pipeline, parted, check="columns of public.parts") == []
    found = finding(pipeline, parted, check="public.parts in parts")
    run(conn, found["fix"])
    assert findings(pipeline, parted, check="public.parts in parts") == []


def test_columns_of_a_users_own_table(
    pipeline: CommandLine, tmp_path: Path, conn: psycopg.Connection[tuple[object, ...]], prefix: str, database: Database
) -> None:
    conn.execute("CREATE TABLE log (event_id uuid, ref uuid, stream text, document jsonb, at timestamptz)")
    conn.execute("CREATE PUBLICATION log FOR TABLE log WITH (publish = 'insert')")
    router = {"field.event.id": "event_id", "field.event.key": "ref", "field.event.payload": "document",
              "field.event.timestamp": "at", "fields.additional.placement": "tenant:header"}  # fmt: skip
    own = {"table.include.list": "public.log", "publication.name": "log", "transforms.outbox.route.by.field": "stream"}
    changes = {**own, **{f"transforms.outbox.table.{key}": value for key, value in router.items()}}
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name, **changes})
    missing, zoned = findings(pipeline, file, check="columns of public.log")
    assert (missing["level"], missing["found"]) == ("problem", "has no tenant")
    assert zoned["level"] == "problem"
    assert zoned["found"].startswith("at has a time zone")
    run(conn, missing["fix"].partition(";")[0].replace("…", "text"))
    run(conn, zoned["fix"].partition(";")[0])
    assert findings(pipeline, file, check="columns of public.log") == []
    conn.execute("ALTER TABLE log DROP tenant")
    connector_file(
        tmp_path,
        prefix,
        **{"database.dbname": database.name, **changes, "transforms.outbox.table.field.additional.missing": "ignore"},
    )
    assert findings(pipeline, file, check="columns of public.log") == []


def test_migrations_that_are_pending(
    pipeline: CommandLine, tmp_path: Path, prefix: str, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = connector_file(tmp_path, prefix, **{"database.dbname": empty_database.name})
    own = {"PIPELINE_POSTGRES__DSN": empty_database.dsn}
    whole = migrations.available()
    with monkeypatch.context() as patch, psycopg.connect(empty_database.dsn, autocommit=True) as conn:
        patch.setattr(migrations, "available", lambda: whole[:-1])
        migrations.migrate(conn)
    shown = json.loads(pipeline("doctor", str(file), "-o", "json", **own).stdout)
    (found,) = [one for one in shown if one["check"] == "migrations"]
    assert (found["level"], found["found"]) == ("problem", f"pending: {whole[-1].number:04} {whole[-1].name}")
    assert pipeline(*found["fix"].split()[1:], **own).code == 0
    assert '"found": "none pending"' in pipeline("doctor", str(file), "-o", "json", **own).stdout


def test_roles_that_lack_grants(
    pipeline: CommandLine, file: Path, prefix: str, conn: psycopg.Connection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    script = migrations._GRANTS.replace("pipeline_", f"{prefix}_")  # roles belong to the whole server
    monkeypatch.setattr(migrations, "_GRANTS", script)
    conn.execute(script.encode())
    try:
        assert "lacks" not in pipeline("doctor", str(file)).stdout
        conn.execute(f"REVOKE INSERT, SELECT ON pipeline.inbox FROM {prefix}_worker")
        conn.execute(f"REVOKE INSERT ON pipeline.outbox FROM {prefix}_writer")
        worker, writer = f"grants of {prefix}_worker", f"grants of {prefix}_writer"
        found = finding(pipeline, file, check=worker)
        assert found["found"] == "lacks SELECT and INSERT on pipeline.inbox"
        run(conn, found["fix"])
        run(conn, finding(pipeline, file, check=writer)["fix"])
        assert findings(pipeline, file, check=worker) == findings(pipeline, file, check=writer) == []
    finally:
        for name in sorted({role for role, _, _ in migrations.grants()} | {f"{prefix}_operator"}):
            conn.execute(f"DROP OWNED BY {name}")
            conn.execute(f"DROP ROLE {name}")


def test_a_slot_that_nobody_reads_and_one_of_somebody_elses(
    pipeline: CommandLine, file: Path, prefix: str, conn: psycopg.Connection[tuple[object, ...]]
) -> None:
    other = f"{prefix}_other"
    for name in (prefix, other):
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    found = finding(pipeline, file, check=f"slot {prefix}")
    assert re.match(r"read by nobody for \d+ s, \d+ bytes behind", found["found"])
    run(conn, finding(pipeline, file, check=f"slot {other}")["fix"].partition(": ")[2])
    assert findings(pipeline, file, check=f"slot {other}") == []


def test_a_host_of_a_managed_service_is_known_by_its_name() -> None:
    known = {
        "x.c1.eu-west-1.rds.amazonaws.com": "rds",
        "x.cluster-c1.eu-west-1.rds.amazonaws.com": "aurora",
        "x.postgres.database.azure.com": "azure",
        "db.x.supabase.co": "supabase",
        "ep-x.eu-central-1.aws.neon.tech": "neon",
        "db.example.org": "",
    }
    assert {host: provider_of("", host).name for host in known} == known
    assert provider_of("", "ep-x-pooler.eu-central-1.aws.neon.tech").is_pooler("ep-x-pooler.eu.aws.neon.tech", 5432)
    assert provider_of("azure", "x").is_pooler("x", 6432)
    assert not provider_of("azure", "x").is_pooler("x", 5432)
    assert "cannot be set there" in provider_of("azure", "x").set("max_slot_wal_keep_size", "20GB")
    assert provider_of("neon", "x").notes


def test_a_table_that_is_polled_needs_no_logical_decoding_but_an_index(
    pipeline: CommandLine, tmp_path: Path, prefix: str, database: Database, conn: psycopg.Connection[tuple[object, ...]]
) -> None:
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name, "pipeline.capture": " Polling"})
    checks = {one["check"] for one in json.loads(pipeline("doctor", str(file), "-o", "json").stdout)}
    assert checks.isdisjoint({"wal_level", "replication", f"slot {prefix}", f"publication {prefix}"})
    table = "polling of pipeline.outbox"
    run(conn, finding(pipeline, file, check=table)["fix"].partition(";")[0])
    assert findings(pipeline, file, check=table) == []
    assert table in checks

    def told(name: str) -> tuple[str, str]:
        (one,) = [one for one in json.loads(pipeline("doctor", str(file), "-o", "json").stdout) if one["check"] == name]
        return one["level"], one["found"]

    assert told(f"position of {prefix}")[0] == "note"
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
    assert told(f"slot {prefix}") == ("note", "is there: the relay that polls takes it over, and drops it")
    assert told("replication")[0] == "ok"  # which that needs
    conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
    poll_position.begin(conn, prefix)
    assert told(f"position of {prefix}")[0] == "warning"
    poll_position.try_lock(conn, prefix)
    assert told(f"position of {prefix}") == ("ok", "a relay polls")
    conn.execute("UPDATE pipeline.poll_position SET system_id = '1'")
    assert "is of another server" in told(f"position of {prefix}")[1]
