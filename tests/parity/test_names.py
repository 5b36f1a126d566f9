"""Names of columns, fields, schemas and topics, as both adjust them: ``…adjustment.mode``, ``topic.delimiter``."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Message
from pairs import SIDES, Conn, Start
from relays import until

JSON = "org.apache.kafka.connect.json.JsonConverter"
MATCHES = "org.apache.kafka.connect.transforms.predicates.TopicNameMatches"
ROUTER = "transforms.outbox."
COLUMNS = ("1st id", "aggregate-id", "route", "pay_load", "kind.of", "größe", "at")
TABLE = 'public."odd-table"'
DOCUMENT = '{"order-id": 1, "1st": {"a b": "x", "a_b": "y"}, "lines": [{"sku#": "s"}, {"sku_": null}], "ok": true}'
KEPT = {
    "none": {"ok": True, "1st": {"a b": "x", "a_b": "y"}, "lines": [{"sku#": "s"}, {"sku#": None}], "order-id": 1},
    "avro": {"ok": True, "_1st": {"a_b": "x"}, "lines": [{"sku_": "s"}, {"sku_": None}], "order_id": 1},
    "avro_unicode": {
        "ok": True, "_u0031st": {"a_u0020b": "x", "a_u005fb": "y"}, "lines": [{"sku_u0023": "s"}, {"sku_u0023": None}],
        "order_u002did": 1,
    },
}  # fmt: skip
# Debezium looks for a field's value under its new name
LOST = {
    "none": KEPT["none"],
    "avro": {"ok": True, "_1st": None, "lines": [{"sku_": None}, {"sku_": None}], "order_id": None},
    "avro_unicode": {
        "ok": True, "_u0031st": None, "lines": [{"sku_u0023": None}, {"sku_u0023": None}], "order_u002did": None,
    },
}  # fmt: skip
# adjustment → as which the router's options name the columns
NAMES = {
    "none": COLUMNS,
    "avro": ("_1st_id", "aggregate_id", "route", "pay_load", "kind_of", "gr__e", "at"),
    "avro_unicode": (
        "_u0031st_u0020id", "aggregate_u002did", "route", "pay_u005fload", "kind_u002eof", "gr_u00f6_u00dfe", "at",
    ),
}  # fmt: skip


def options(mode: str, prefix: str) -> dict[str, str | None]:
    """Return a file's changes for one mode of all adjustments."""
    event, key, route, payload, kind, size, at = NAMES[mode]
    return {
        "topic.prefix": f"1-{prefix}_{mode}", "table.include.list": "public.odd-table",
        "publication.autocreate.mode": "filtered", "topic.delimiter": {"none": ".", "avro": "-"}.get(mode, "_"),
        "field.name.adjustment.mode": mode, "schema.name.adjustment.mode": mode,
        "key.converter": JSON, "value.converter": JSON,
        "predicates": "odd", "predicates.odd.type": MATCHES, ROUTER + "predicate": "odd",
        "predicates.odd.pattern": f".*{mode}({'-public-' if mode == 'avro' else '.public.'})odd-table",
        ROUTER + "table.field.event.id": event, ROUTER + "table.field.event.key": key,
        ROUTER + "table.field.event.payload": payload, ROUTER + "table.field.event.timestamp": at,
        ROUTER + "route.by.field": route, ROUTER + "table.expand.json.payload": "true",
        ROUTER + "table.fields.additional.placement": f"{kind}:envelope,{size}:header,{size}:envelope:size",
        ROUTER + "field.name.adjustment.mode": mode,
    }  # fmt: skip


def test_both_adjust_names_in_the_same_way(start: Start, conn: Conn, bootstrap_servers: str, prefix: str) -> None:
    kinds = ("uuid PRIMARY KEY", "text", "text", "jsonb", "text", "integer", "timestamp")
    described = ", ".join(f'"{name}" {kind}' for name, kind in zip(COLUMNS, kinds, strict=True))
    conn.execute(f"CREATE TABLE {TABLE} ({described})")
    with ThreadPoolExecutor() as pool:
        begun = pool.map(lambda mode: start(f"-{mode.replace('_', '-')}", **options(mode, prefix)), NAMES)
        pairs = dict(zip(NAMES, begun, strict=True))
    for payload, kind, size in ((DOCUMENT, "a", 1), ("{}", None, None), (None, "b", 2)):
        conn.execute(
            f"INSERT INTO {TABLE} VALUES (gen_random_uuid(), 'k', 'events', %s, %s, %s, '2026-01-02')",
            (payload, kind, size),
        )
    for mode, pair in pairs.items():
        found: dict[str, list[Message]] = {}
        for side in SIDES:
            one = pair[side]
            until(lambda one=one: one.lives() and len(one.records(bootstrap_servers)) == 3, f"{mode}, {side}", 60)
            found[side] = one.records(bootstrap_servers)
        read = {
            side: [(one.key(), one.headers(), one.timestamp(), json.loads(one.value() or b"")) for one in messages]
            for side, messages in found.items()
        }
        payloads = [read[side][0][3]["payload"].pop("payload") for side in SIDES]
        assert read["native"] == read["debezium"], mode
        assert [one.value() for one in found["native"][1:]] == [one.value() for one in found["debezium"][1:]], mode
        assert payloads == [LOST[mode], KEPT[mode]]
