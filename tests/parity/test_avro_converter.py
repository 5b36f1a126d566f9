"""Avro converters in the native relay beside Apicurio's on Kafka Connect: one registry, so the same bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import fastavro
import psycopg
import pytest
from confluent_kafka import Message
from pairs import SIDES, Conn, Start
from relays import until

from pipeline.codec import unframe
from pipeline.local import Endpoints
from pipeline.registry.client import RegistrySchemas

AVRO = "io.apicurio.registry.utils.converter.AvroConverter"
_COLUMNS = "id text PRIMARY KEY, topic text, at timestamp DEFAULT '2026-01-02 03:04:05.678'"
TABLES = {
    "plain": "aggregateid text NOT NULL, payload text",
    "bytes": "aggregateid bigint NOT NULL DEFAULT 7, payload bytea",
    "numbers": "aggregateid smallint, payload numeric(9, 2) NOT NULL",
    "dates": "aggregateid uuid, payload date",
    "flags": "aggregateid boolean, payload double precision",
    "document": "aggregateid text, payload jsonb",
}
ENVELOPED = {
    "enveloped": "aggregateid text, payload jsonb, kind text NOT NULL DEFAULT 'it''s', number integer, small smallint "
    "NOT NULL DEFAULT 3, raw bytea, amount numeric(5, 1), seen timestamptz, born date, exact numeric, flag boolean "
    "DEFAULT false, version integer, \"odd-name\" text DEFAULT 'odd'"
}
DOCUMENTS = (
    '{"name": "Ada", "gone": null, "total": 7, "big": 9000000000, "rate": 1.5, "flag": true, "list": []}',
    '{"lines": [{"sku": "a", "n": 1}, {"sku": "b", "at": {"x": 1}}, {"n": null}], "tags": ["x", null, "ü"]}',
    '{"deep": {"deeper": {"deepest": [[1, 2], [3]]}}, "numbers": [1.5, 2.25]}',
    '"text"', "7", "{}",
)  # fmt: skip


def converters(endpoints: Endpoints) -> dict[str, str | None]:
    own = {
        "": AVRO, ".apicurio.registry.url": endpoints.registry.replace("/ccompat/v7", "/registry/v2"),
        ".apicurio.auth.username": endpoints.registry_username,
        ".apicurio.auth.password": endpoints.registry_password,
        ".apicurio.registry.auto-register": "true", ".apicurio.registry.find-latest": "true",
        ".apicurio.registry.as-confluent": "true", ".apicurio.registry.use-id": "contentId",
        ".apicurio.registry.headers.enabled": "false",
    }  # fmt: skip
    return {f"{part}.converter{key}": value for part in ("key", "value") for key, value in own.items()}


@pytest.fixture
def registry(endpoints: Endpoints) -> Iterator[RegistrySchemas]:
    found = RegistrySchemas(endpoints.registry, endpoints.registry_username, endpoints.registry_password)
    yield found
    found.close()


def decoded(registry: RegistrySchemas, framed: bytes | None) -> tuple[object, object]:
    """Return a schema's text and what it reads."""
    if framed is None:
        return None, None
    schema_id, body = unframe(framed)
    text = registry.text(schema_id)
    stream = io.BytesIO(body)
    read = fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(text)), None)
    assert not stream.read()
    return text, read


def test_both_write_the_same_avro(
    start: Start, conn: Conn, bootstrap_servers: str, registry: RegistrySchemas, endpoints: Endpoints, prefix: str
) -> None:
    for table, columns in (TABLES | ENVELOPED).items():
        conn.execute(f"CREATE TABLE public.{table} ({_COLUMNS}, {columns})")
    options: dict[str, str | None] = {
        **converters(endpoints), "publication.autocreate.mode": "filtered",
        "transforms.outbox.table.field.event.timestamp": "at",
        "transforms.outbox.table.expand.json.payload": "true",
        "transforms.outbox.table.fields.additional.placement": None,
    }  # fmt: skip
    inside = ["kind", "number", "small", "raw", "amount", "seen", "born:envelope:day", "exact", "flag", "odd_name"]
    placed = ",".join(one if ":" in one else f"{one}:envelope" for one in inside)
    tables = ",".join(f"public.{table}" for table in TABLES)
    pairs = [
        start("-a", **{**options, "topic.prefix": f"{prefix}a", "table.include.list": tables}),
        *(start(
            f"-{mode}", **{
                **options, "topic.prefix": f"{prefix}-{mode}", "table.include.list": "public.enveloped",
                "time.precision.mode": "connect", "schema.name.adjustment.mode": mode,
                "transforms.outbox.table.fields.additional.placement": placed,
                "transforms.outbox.table.field.event.schema.version": "version",
                "transforms.outbox.table.json.payload.null.behavior": "optional_bytes",
                "transforms.outbox.table.json.payload.empty.array.behavior": "optional_string",
                "transforms.outbox.table.field.event.timestamp": None,
            },
        ) for mode in ("none", "avro")),
    ]  # fmt: skip
    plain, enveloped = write_plain(conn), write_enveloped(conn)
    for pair, count in zip(pairs, (plain, enveloped, enveloped), strict=True):
        found: dict[str, list[Message]] = {}
        for side in SIDES:
            one = pair[side]
            until(lambda one=one, count=count: one.lives() and len(one.records(bootstrap_servers)) >= count, side, 60)
            found[side] = one.records(bootstrap_servers)
        for theirs, ours in zip(*map(found.get, SIDES), strict=True):
            for one, other in ((ours.key(), theirs.key()), (ours.value(), theirs.value())):
                assert repr(decoded(registry, one)) == repr(decoded(registry, other))  # NaN is not itself
            assert (ours.key(), ours.value(), ours.partition()) == (theirs.key(), theirs.value(), theirs.partition())


def write_plain(conn: psycopg.Connection[tuple[object, ...]]) -> int:
    rows = [
        ("plain", "k", "text"), ("plain", "ü" * 40, None), ("plain", "", ""), ("bytes", "7", b"\0\xff"),
        ("bytes", "-9000000000", None), ("numbers", "-7", "-1234567.89"), ("numbers", None, "0"),
        ("dates", "00000000-0000-4000-8000-000000000001", "1969-12-31"), ("dates", None, None),
        ("flags", "true", "1.5"), ("flags", "false", "NaN"), ("flags", None, "-Infinity"), ("flags", "true", "3"),
        *(("document", "k", text) for text in DOCUMENTS), ("document", "k", None),
    ]  # fmt: skip
    for number, (table, key, payload) in enumerate(rows):
        conn.execute(
            f"INSERT INTO public.{table} (id, topic, aggregateid, payload) VALUES (%s, 'events', %s, %s)",
            (str(number), key, payload),
        )
    return len(rows)


def write_enveloped(conn: psycopg.Connection[tuple[object, ...]]) -> int:
    full = (7, b"\1", "-1.5", "2026-01-02 03:04:05.678Z", "1900-01-01", "12.345")
    for number, text in enumerate((*DOCUMENTS, None)):
        beside = full if number % 2 == 0 else [None] * len(full)
        conn.execute(
            "INSERT INTO public.enveloped (id, topic, aggregateid, payload, number, raw, amount, seen, born, exact,"
            " flag, version) VALUES (%s, 'events', 'k', %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (f"e{number}", text, *beside, number % 2 == 0, number),  # a schema for each: Debezium has one a version
        )
    return len(DOCUMENTS) + 1
