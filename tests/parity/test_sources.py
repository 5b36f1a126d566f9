"""What is read, and from where on: the native relay beside Debezium 3.7, with a connector of each for each case."""

from __future__ import annotations

import json
import uuid

import psycopg
import pytest
from pairs import SIDES, Conn, Start, content, go_on, normal, published
from relays import ids, insert, until
from servers import Database, Topics


def test_lists_of_schemas_tables_and_columns(start: Start, conn: Conn, bootstrap_servers: str) -> None:
    tables = ("shop.orders", "shop.aside", "crm.outbox", "other.outbox")
    for schema in ("shop", "crm", "other"):
        conn.execute(f"CREATE SCHEMA {schema}")
    for table in tables:
        conn.execute(f"CREATE TABLE {table} (LIKE pipeline.outbox INCLUDING ALL)")
    pair = start(
        **{
            "table.include.list": None, "schema.include.list": "SHOP,crm", "table.exclude.list": "shop\\.a.*",
            "column.exclude.list": ".*\\.headers,shop.orders.traceparent",
            "publication.autocreate.mode": "filtered", "offset.mismatch.strategy": "trust_greater_lsn",
            "transforms.outbox.table.field.additional.missing": "ignore",
        }
    )  # fmt: skip
    made = []
    for table in tables:
        made.append(insert(conn, "events", "k"))
        conn.execute(
            f"INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent) SELECT"
            " id, aggregatetype, aggregateid, type, payload, topic, '{}', 't' FROM pipeline.outbox WHERE id = %s",
            (made[-1],),
        )
    found = published(bootstrap_servers, pair, made[2])
    assert ids(found["native"]) == ids(found["debezium"]) == [made[0], made[2]]
    assert content(found["native"]) == content(found["debezium"])
    assert [sorted(dict(one.headers() or [])) for one in found["native"]] == [
        ["id", "type"],
        ["id", "traceparent", "type"],
    ]


def test_transactions_and_tables_that_come_and_go(
    start: Start, conn: Conn, database: Database, bootstrap_servers: str
) -> None:
    pair = start(**{"table.include.list": "pipeline.outbox,public.late"})
    with psycopg.connect(database.dsn) as slow:
        made = [insert(conn, "events", "k", b"before")]
        held = [insert(slow, "events", "k", b"in an open transaction")]
        published(bootstrap_servers, pair, made[0])
        for one in pair.values():
            one.stop()
        made.append(insert(conn, "events", "k", b"while both are stopped"))
        go_on(conn, pair)
        made.append(insert(conn, "events", "k", b"while it is still open"))
        published(bootstrap_servers, pair, made[-1])
        held.append(insert(slow, "events", "k", b"at its end"))
        slow.commit()
    for one in pair.values():
        one.stop()
    conn.execute("ALTER TABLE pipeline.outbox ADD COLUMN more text")
    wider = "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, topic, more)"
    wider += " VALUES (%s, %s, %s, %s, %s, %s)"
    held.append(str(uuid.uuid4()))
    conn.execute(wider, (held[-1], "events", "k", "T", "events", "x"))
    go_on(conn, pair)
    with conn.transaction():
        conn.execute("SET LOCAL logical_decoding_work_mem = '64kB'")
        spilled = [insert(conn, "events", f"k{number % 7}", b"x" * 1000) for number in range(1000)]
    conn.execute("CREATE TABLE public.late (LIKE pipeline.outbox INCLUDING ALL)")
    last = insert(conn, "events", "k")
    move = "INSERT INTO public.late OVERRIDING SYSTEM VALUE SELECT * FROM pipeline.outbox WHERE id = %s"
    late = "UPDATE public.late SET payload = 'unseen'"
    with conn.transaction():
        conn.execute(move, (last,))
        conn.execute(late)
        conn.execute("DELETE FROM public.late")
    conn.execute("ALTER PUBLICATION pipeline_outbox ADD TABLE public.late")
    conn.execute(move, (last,))
    conn.execute(late)
    until(
        lambda: all(ids(one.records(bootstrap_servers)).count(last) == 2 for one in pair.values()), "the row twice", 60
    )
    found = {side: one.records(bootstrap_servers) for side, one in pair.items()}
    assert content(found["native"]) == content(found["debezium"])
    assert ids(found["native"]) == [*made, *held, *spilled, last, last]


BINARY_JSON: dict[str, str | None] = {
    "value.converter": "io.debezium.converters.BinaryDataConverter",
    "value.converter.delegate.converter.type": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
}


def test_heartbeat_records(start: Start, conn: Conn, bootstrap_servers: str, topics: Topics, prefix: str) -> None:
    named = {side: f"beat-{prefix}_{prefix}-{side}" for side in SIDES}
    whole = {side: f"{prefix}-named-{side}.beats" for side in SIDES}
    transactions = {side: f"{prefix}-{side}_aside" for side in SIDES}
    topics.create(*named.values(), *whole.values(), *transactions.values())
    conn.execute("CREATE TABLE public.beats (by text)")
    every = {**BINARY_JSON, "heartbeat.interval.ms": "200", "heartbeat.topics.prefix": "elsewhere"}
    pair = start(
        **every, **{
            "topic.heartbeat.prefix": f"beat-{prefix}", "topic.delimiter": "_", "extended.headers.enabled": "true",
            "heartbeat.action.query": "INSERT INTO public.beats VALUES ('{name}')",
            "provide.transaction.metadata": "true", "topic.transaction": "aside",
        }
    )  # fmt: skip
    other = start("-named", **every, **{"topic.heartbeat.name": "{name}.beats", "topic.heartbeat.prefix": "elsewhere"})
    for captures, beats in ((pair, named), (other, whole)):
        made = {}
        for side, one in captures.items():
            until(
                lambda one=one, side=side, beats=beats: len(one.records(bootstrap_servers, beats[side])) > 3, side, 60
            )
            found = one.records(bootstrap_servers, beats[side])
            values = {json.dumps(json.loads(beat.value() or b"") | {"payload": ["ts_ms"]}) for beat in found}
            keys = {(beat.key() or b"").replace(f"-{side}".encode(), b"") for beat in found}
            made[side] = (keys, values, {str(beat.headers()) for beat in found})
            times = [json.loads(beat.value() or b"")["payload"]["ts_ms"] for beat in found]
            assert times == sorted(set(times))
        assert made["native"] == made["debezium"]
    assert [name for name in topics.names() if name.startswith("elsewhere")] == []
    asked = "SELECT count(DISTINCT by) FROM (SELECT by FROM public.beats GROUP BY by HAVING count(*) > 2) AS often"
    until(lambda: conn.execute(asked).fetchone() == (2,), "the query of both, again and again")
    found = published(bootstrap_servers, pair, insert(conn, "events", "k"))
    theirs, ours = ((one.key(), one.value(), normal(side, one)) for side, (one,) in found.items())
    assert ours == theirs
    topic = transactions["debezium"]
    until(lambda: len(pair["debezium"].records(bootstrap_servers, topic)) >= 2, "Debezium's records of a transaction")
    assert pair["native"].records(bootstrap_servers, transactions["native"]) == []


def document(name: object, payload: object, key: object = "k", kind: object = "T") -> str:
    return json.dumps({"id": name, "aggregatetype": "events", "aggregateid": key, "type": kind, "payload": payload})


DOCUMENTS = (
    document("1", {"a": 1, "b": "ü🔑\n", "c": 1e10, "z": 0.1}),
    document(2, "text", key=12345678901, kind=True),
    document("3", {"x": [1, 2], "e": [], "n": None, "f": {"g": {"h": "i"}}, "big": 123456789012}, key=""),
    document("4", [{"a": 1}, {"a": 2}], kind=""),
    '{"id": "5", "aggregatetype": "events", "aggregateid": "k", "more": "left out", "payload": "{\\"inner\\": 1}"}',
    '{"aggregateid": "k", "payload": {}, "aggregatetype": "events", "id": "6", "type": "T"} what is behind it',
)
NULLS = (
    document("7", {"n": None, "a": [{"n": None}]}, key=None, kind=None),
    document("8", None),
)
DECODED: dict[str, str | None] = {
    "transforms": "decode,outbox",
    "transforms.decode.type": "io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent",
    "transforms.outbox.route.by.field": "aggregatetype",
    "transforms.outbox.table.field.event.timestamp": None,
    "transforms.outbox.table.fields.additional.placement": "type:header:type",
    "transforms.outbox.table.field.additional.missing": "ignore",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "table.include.list": None,
    "publication.autocreate.mode": "no_tables",
    "message.prefix.exclude.list": None,
}


def emit(conn: Conn, prefix: str, content: str, *, transactional: bool = True) -> None:
    conn.execute("SELECT pg_logical_emit_message(%s, %s, %s::text)", (transactional, prefix, content))


@pytest.mark.parametrize("schemas", ["false", "true"])
def test_logical_messages_that_are_decoded(
    schemas: str, start: Start, conn: Conn, database: Database, bootstrap_servers: str
) -> None:
    prefixes = (
        {"message.prefix.include.list": "out.*,OTHER"}
        if schemas == "true"
        else {"message.prefix.exclude.list": "not.*"}
    )
    nulls = {"transforms.decode.fields.null.include": "true"} if schemas == "true" else {}
    pair = start(
        **{**DECODED, **prefixes, **nulls, "value.converter.schemas.enable": schemas},
        **{"extended.headers.enabled": schemas},
    )
    documents = (*DOCUMENTS, *NULLS) if nulls else DOCUMENTS
    for text in documents:
        emit(conn, "outbox", text)
        emit(conn, "outbox", text, transactional=False)
        emit(conn, "not wanted", text)
        emit(conn, "not wanted", "no JSON", transactional=False)
    with psycopg.connect(database.dsn) as other:
        emit(other, "outbox", document("inside", {"a": 1}))
        emit(other, "outbox", document("at once", {"a": 1}), transactional=False)
        with other.transaction() as savepoint:
            emit(other, "outbox", document("never", {"a": 1}))
            raise psycopg.Rollback(savepoint)
        other.commit()
        emit(other, "outbox", document("never", {"a": 1}))
        emit(other, "outbox", document("not undone", {"a": 1}), transactional=False)
        other.rollback()
    emit(conn, "other", document("last", {"a": 1}))
    found = published(bootstrap_servers, pair, "last")
    read = {side: [(one.key(), one.value(), normal(side, one)) for one in messages] for side, messages in found.items()}
    assert read["native"] == read["debezium"]
    twice = [str(number) for number in range(1, len(documents) + 1) for _ in (0, 1)]
    assert ids(found["native"]) == [*twice, "at once", "inside", "not undone", "last"]
    for one in pair.values():
        one.stop()
    emit(conn, "outbox", document("next", {"a": 1}), transactional=False)
    go_on(conn, pair)
    again = published(bootstrap_servers, pair, "next")
    assert ids(again["native"]) == [*ids(found["native"]), "next"], "its position is behind what is not transactional"
    for text in ("", "[]", "{}"):
        emit(conn, "outbox", text)
    emit(conn, "outbox", document("after", {"a": 1}))
    until(lambda: pair["native"].has(bootstrap_servers, "after"), "the native relay goes on")
    assert len(pair["native"].records(bootstrap_servers, f"{pair['native'].name}.dlq")) == 3

    until(
        lambda: "Unable to parse logical decoding message content" in pair["debezium"].failure(), "Debezium's task ends"
    )
