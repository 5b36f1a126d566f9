"""Columns whose names are adjusted: polling, a reconciliation and the doctor find them as the router does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from commands import CommandLine
from relays import RelayProcess, connector_file, read_topic, until
from servers import Database, Topics

ROUTER = "transforms.outbox."


def checks(pipeline: CommandLine, file: Path) -> dict[str, dict[str, str]]:
    """What the doctor finds, by what it looked at; nothing of columns that a table has not."""
    found = json.loads(pipeline("doctor", str(file), "-o", "json").stdout)
    assert "has no " not in json.dumps(found)
    return {one["check"]: one for one in found}


def test_a_table_with_odd_names_is_polled_reconciled_and_looked_at(
    tmp_path: Path, prefix: str, topics: Topics, pipeline: CommandLine, cli_environment: Mapping[str, str],
    bootstrap_servers: str, conn: psycopg.Connection[Any],
) -> None:  # fmt: skip
    conn.execute(
        'CREATE TABLE odd ("event-id" uuid PRIMARY KEY DEFAULT gen_random_uuid(), key text, topic text, '
        '"pay-load" bytea, "at-time" timestamp DEFAULT (now() AT TIME ZONE \'UTC\'), '
        "seq bigint GENERATED ALWAYS AS IDENTITY, xid xid8 NOT NULL DEFAULT pg_current_xact_id())"
    )
    conn.execute("CREATE INDEX ON odd (seq); CREATE INDEX ON odd (xid)")
    topics.create(topic := f"{prefix}.events")
    file = connector_file(
        tmp_path, prefix, **{
            "pipeline.capture": "polling", "table.include.list": "public.odd", "field.name.adjustment.mode": "avro",
            ROUTER + "table.field.event.id": "event_id", ROUTER + "table.field.event.key": "key",
            ROUTER + "table.field.event.payload": "pay_load", ROUTER + "table.field.event.timestamp": "at_time",
            ROUTER + "table.fields.additional.placement": "pay_load:header",
            "header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
        },
    )  # fmt: skip
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        conn.execute("INSERT INTO odd (key, topic, \"pay-load\") VALUES ('k', %s, 'x')", (topic,))
        (record,) = until(lambda: read_topic(bootstrap_servers, topic), "the row")
        assert (record.key(), record.value()) == (b"k", b"x")
        topics.delete([topic])
        topics.create(topic)
        done = pipeline("connector", "reconcile", str(file), "--since", "2020-01-01T00:00:00Z", "--execute")
        assert (done.code, "published: 1" in done.stderr) == (0, True), done
        assert relay.stop() == 0
    (again,) = read_topic(bootstrap_servers, topic)
    assert again.value() == b"x"
    assert checks(pipeline, file)["event topics"]["found"].startswith("1 of 1 ")

    conn.execute('ALTER TABLE odd ALTER "at-time" TYPE timestamptz')
    told = checks(pipeline, file)["columns of public.odd"]
    assert told["found"].startswith("at_time has a time zone")
    conn.execute(told["fix"].partition(";")[0].encode())
    assert "columns of public.odd" not in checks(pipeline, file)


def test_the_key_of_shards_is_found_by_its_adjusted_name(
    tmp_path: Path, prefix: str, pipeline: CommandLine, database: Database, conn: psycopg.Connection[Any]
) -> None:
    conn.execute('CREATE TABLE odd (id uuid, "the-key" uuid, topic text, payload bytea)')
    changes = {
        "database.dbname": database.name, "table.include.list": "public.odd", "field.name.adjustment.mode": "avro",
        "pipeline.shards": "2", ROUTER + "table.field.event.key": "the_key",
        ROUTER + "table.field.event.timestamp": None, ROUTER + "table.fields.additional.placement": None,
    }  # fmt: skip
    told = checks(pipeline, connector_file(tmp_path, prefix, **changes))["shards of public.odd"]
    assert told["found"].startswith("1001 of 1001 keys are in none")  # as there are no publications
