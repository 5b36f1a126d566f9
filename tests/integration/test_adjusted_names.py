"""Columns whose names are adjusted: polling, a reconciliation and the doctor find them as the router does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from commands import CommandLine
from relays import RelayProcess, connector_file, read_topic, until
from servers import Topics

ROUTER = "transforms.outbox."


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
    found = json.loads(pipeline("doctor", str(file), "-o", "json").stdout)
    assert "table public.odd" in json.dumps(found)
    assert [one for one in found if "has no" in json.dumps(one)] == []
