"""Several transforms under predicates, and what becomes of updates: the native relay beside Debezium 3.7."""

from __future__ import annotations

import json

from pairs import SIDES, Conn, Start, content, published
from relays import CONNECTOR, ids, until
from servers import Topics

ROUTER = "io.debezium.transforms.outbox.EventRouter"
PREDICATE = "org.apache.kafka.connect.transforms.predicates."
DECODER = "io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent"
COLUMNS = "id text PRIMARY KEY, kind text, aggregatetype text, aggregateid text, payload text, at timestamp"
WRITE = "INSERT INTO {} VALUES (%s, %s, 'events', 'k', %s, '2026-01-02 03:04:05.678')"
PREDICATES = {
    "orders": ("TopicNameMatches", "pattern", r".*\.public\.Orders_v2"),
    "others": ("TopicNameMatches", "pattern", r"[^.]+\.(public\.(?!Orders).*|shop\..*)"),
    "messages": ("TopicNameMatches", "pattern", r".*\.message"),
    "marked": ("HasHeaderKey", "name", "marked"),
    "tombstone": ("RecordIsTombstone", "", ""),
}
# name → predicate, whether it is negated, its options
TRANSFORMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "decode": ("messages", "false", {"type": DECODER}),
    "emitted": ("messages", "false", {"route.topic.replacement": "emitted-${routedByValue}"}),
    "marked": ("marked", "false", {"route.topic.replacement": "marked-${routedByValue}"}),
    "buried": ("tombstone", "false", {"route.topic.replacement": "buried-${routedByValue}"}),
    "orders": (
        "orders", "false", {
            "table.field.event.timestamp": "at", "table.fields.additional.placement": "kind:header",
            "table.op.invalid.behavior": "error",
        },
    ),
    "unmarked": ("others", "false", {"table.field.event.timestamp": "at", "route.tombstone.on.empty.payload": "true"}),
    "rest": (
        "tombstone", "true", {
            "table.field.event.timestamp": "at", "table.field.event.key": "kind",
            "table.fields.additional.placement": "aggregateid:header:of",
        },
    ),
}  # fmt: skip


def options() -> dict[str, str | None]:
    """Return the part of a file on transforms."""
    ours = json.loads(CONNECTOR.read_text())["config"]
    made: dict[str, str | None] = dict.fromkeys(key for key in ours if key.startswith("transforms.outbox."))
    made["transforms.outbox.route.topic.replacement"] = None
    made |= {"transforms": ",".join(TRANSFORMS), "predicates": ",".join(PREDICATES)}
    for name, (kind, option, value) in PREDICATES.items():
        made[f"predicates.{name}.type"] = PREDICATE + kind
        if option:
            made[f"predicates.{name}.{option}"] = value
    for name, (predicate, negated, more) in TRANSFORMS.items():
        own = {"type": ROUTER, "predicate": predicate, "negate": negated, **more}
        if own["type"] == ROUTER:
            own["route.topic.replacement"] = "{name}." + own.get("route.topic.replacement", "${routedByValue}")
        made |= {f"transforms.{name}.{key}": text for key, text in own.items()}
    return made


def test_each_row_goes_through_the_routers_that_its_predicates_let_it_to(
    start: Start, conn: Conn, bootstrap_servers: str, topics: Topics, prefix: str
) -> None:
    tables = ('public."Orders_v2"', "public.others", "shop.orders", 'public."Orders_v3"')
    conn.execute("CREATE SCHEMA shop")
    for table in tables:
        conn.execute(f"CREATE TABLE {table} ({COLUMNS})")
    emitted = {side: f"{prefix}-{side}.emitted-events" for side in SIDES}
    topics.create(*emitted.values())
    pair = start(
        **{
            "table.include.list": "public.*,shop.*", "publication.autocreate.mode": "filtered",
            "message.prefix.exclude.list": None, "tombstones.on.delete": "true", "skipped.operations": "t",
            "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        },
        **options(),
    )  # fmt: skip
    made = []
    for number, table in enumerate(tables):
        for payload in ("text", ""):
            made.append(f"{number}{payload}")
            conn.execute(WRITE.format(table), (made[-1], f"kind-{number}", payload))
        conn.execute(f"UPDATE {table} SET payload = 'unseen'")
        conn.execute(f"DELETE FROM {table}")
    message = '{"id": "m", "aggregatetype": "events", "aggregateid": "k", "payload": "p"}'
    conn.execute("SELECT pg_logical_emit_message(true, 'x', %s::text)", (message,))
    conn.execute(WRITE.format(tables[-1]), ("last", "kind-3", "text"))
    found = published(bootstrap_servers, pair, "last")
    assert content(found["native"]) == content(found["debezium"])
    assert ids(found["native"]) == [*made, "last"]
    assert [dict(one.headers() or []).keys() - {"id"} for one in found["native"][::2]] == [
        {"kind"}, set(), set(), {"of"}, {"of"},
    ]  # fmt: skip
    for side, one in pair.items():
        until(lambda one=one, side=side: one.records(bootstrap_servers, emitted[side]), f"{side}: the message")
    one, other = (pair[side].records(bootstrap_servers, emitted[side]) for side in SIDES)
    assert [(a.key(), a.value(), a.headers()) for a in one] == [(a.key(), a.value(), a.headers()) for a in other]


def test_fatal_ends_both_at_an_update_and_not_where_updates_are_skipped(
    start: Start, conn: Conn, bootstrap_servers: str
) -> None:
    conn.execute(f"CREATE TABLE public.strict ({COLUMNS})")
    pair = start(
        **{
            "table.include.list": "public.strict", "publication.autocreate.mode": "filtered",
            "transforms.outbox.table.op.invalid.behavior": "fatal",
            "transforms.outbox.route.by.field": "aggregatetype",
            "transforms.outbox.table.field.event.timestamp": "at",
            "transforms.outbox.table.fields.additional.placement": None,
            "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        }
    )  # fmt: skip
    conn.execute(WRITE.format("public.strict"), ("before", "x", "text"))
    published(bootstrap_servers, pair, "before")
    conn.execute("UPDATE public.strict SET payload = 'unseen'")
    conn.execute(WRITE.format("public.strict"), ("after", "x", "text"))
    until(lambda: "Unexpected update message received" in pair["debezium"].failure(), "Debezium's task ends", 60)
    until(lambda: "a row of the outbox was updated" in pair["native"].failure(), "the native relay ends")
    for one in pair.values():
        assert ids(one.records(bootstrap_servers)) == ["before"]
        one.change(**{"skipped.operations": "u,d"})
    pair["native"].start()
    found = published(bootstrap_servers, pair, "after")
    assert content(found["native"]) == content(found["debezium"])
