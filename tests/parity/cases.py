"""A connection in, rows out: what both captures have to make the same records of.

A case writes its rows and returns the ids of those that must be published, in any order. All cases of a group share
one table layout and one set of router options.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

Conn = psycopg.Connection[tuple[object, ...]]
Write = Callable[["Writer"], list[str]]

_COLUMNS = {
    "id": "uuid PRIMARY KEY",
    "aggregatetype": "text",
    "aggregateid": "text",
    "type": "text",
    "payload": "bytea",
    "topic": "text",
    "headers": "jsonb",
    "traceparent": "text",
    "created_at": "timestamp DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Tables that one router serves. ``options`` change our file's router; None removes one of its keys.

    ``tables``: name → columns that differ from an outbox's; empty columns are left out. ``value``: bytes, text or
    json, by ByteArrayConverter, StringConverter or JsonConverter without schemas.
    """

    name: str
    tables: dict[str, dict[str, str]]
    options: dict[str, str | None] = field(default_factory=dict)
    value: str = "bytes"

    def create(self, conn: Conn) -> None:
        for table, changes in self.tables.items():
            if table.startswith("public."):
                columns = {name: kind for name, kind in (_COLUMNS | changes).items() if kind and name != "/"}
                body = ", ".join(f"{name} {kind}" for name, kind in columns.items())
                conn.execute(f"CREATE TABLE {table} ({body}) {changes.get('/', '')}")


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes rows of one group. ``other()`` opens a second connection, ``dsn`` is this database's."""

    conn: Conn
    dsn: str
    group: Group

    def row(self, table: str = "", conn: Conn | None = None, **values: object) -> str:
        """Insert one row and return its id as the header has it."""
        given: dict[str, object] = {
            "id": str(uuid.uuid4()),
            "aggregatetype": "shop.order",
            "aggregateid": "k",
            "type": "shop.OrderPlaced",
            "payload": b"\0\0\0\0\1x" if self.group.value == "bytes" else "{}",
            "topic": self.group.name,
        } | values
        table = table or next(iter(self.group.tables))
        given = {name: value for name, value in given.items() if self.group.tables[table].get(name) != ""}
        names = ", ".join(given)
        places = ", ".join("%s" for _ in given)
        (conn or self.conn).execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(given.values()))
        return str(given["id"])

    def other(self) -> Conn:
        return psycopg.connect(self.dsn)


RESTART = "rows written while both captures restart"
REKEYED = "00000000-0000-4000-8000-000000000000"
"""The new id of a row whose primary key is changed: a delete and an insert to Debezium, an update to us."""

CASES: dict[str, tuple[Group, Write]] = {}


def case(group: Group, name: str) -> Callable[[Write], Write]:
    """Register a case under the name that docs/debezium-parity.md has."""

    def register(write: Write) -> Write:
        assert name not in CASES
        CASES[name] = (group, write)
        return write

    return register


SHIPPED = Group("shipped", {"pipeline.outbox": {}})
TYPES = Group(
    "types",
    {f"public.key_{kind}": {"aggregateid": kind} for kind in ("smallint", "integer", "bigint", "uuid", "boolean")}
    | {
        "public.key_varchar": {"aggregateid": "varchar(80)"},
        "public.key_char": {"aggregateid": "char(8)"},
        "public.id_bigint": {"id": "bigint PRIMARY KEY"},
        "public.id_text": {"id": "text PRIMARY KEY"},
        "public.time_millis": {"created_at": "timestamp(3) DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')"},
        "public.topic_varchar": {"topic": "varchar(80)", "headers": "json", "type": "varchar(80)"},
    },
)
PARTITIONED = Group(
    "partitioned", {"public.parted": {"id": "uuid", "part": "integer", "/": "PARTITION BY RANGE (part)"}}
)
PLACED = Group(
    "placed",
    {
        "public.placed": {
            "part": "integer",
            "number": "bigint",
            "small": "smallint",
            "flag": "boolean",
            "seen_at": "timestamp",
            "seen_ms": "timestamp(3)",
            "ref": "uuid",
            "doc": "json",
        }
    },
    {
        "table.fields.additional.placement": "type:header:eventType,number:header,small:header:s,flag:header,"
        "seen_at:header,seen_ms:header,ref:header,doc:header,gone:header,part:partition",
        "table.field.additional.missing": "ignore",
    },
)
ROUTED = Group(
    "routed",
    {"public.routed": {"topic": ""}},
    {
        "route.by.field": "aggregatetype",
        "route.topic.regex": r"(?<context>[a-z]+)\.(\w+)",
        "route.topic.replacement": "${context}-$2-events",
    },
)
OWN_NAMES = Group(
    "own-names",
    {
        "public.own": {
            **dict.fromkeys(_COLUMNS, ""),
            "event": "uuid PRIMARY KEY",
            "k": "text",
            "kind": "text",
            "body": "bytea",
            "place": "text",
            "at": "timestamp",
        }
    },
    {
        "table.field.event.id": "event",
        "table.field.event.key": "k",
        "table.field.event.type": "kind",
        "table.field.event.payload": "body",
        "table.field.event.timestamp": "at",
        "table.fields.additional.placement": None,
        "route.by.field": "place",
    },
)
DEFAULTS = Group(
    "defaults",
    {"public.defaults": {"topic": "", "headers": "", "traceparent": "", "created_at": ""}},
    {
        "route.by.field": None,
        "route.topic.replacement": "outbox.event.${routedByValue}",
        "table.field.event.timestamp": None,
        "table.fields.additional.placement": None,
    },
)
TOMBSTONES = Group("tombstones", {"public.tombstones": {}}, {"route.tombstone.on.empty.payload": "true"})
TEXT = Group(
    "text",
    {f"public.payload_{kind}": {"payload": kind} for kind in ("text", "varchar", "json", "jsonb", "uuid", "bigint")},
    value="text",
)
TEXT_TOMBSTONES = Group(
    "text-tombstones",
    {"public.empties": {"payload": "text"}},
    {"route.tombstone.on.empty.payload": "true"},
    value="text",
)
EXPANDED = Group(
    "expanded",
    {f"public.expanded_{kind}": {"payload": kind} for kind in ("text", "json", "jsonb")},
    {"table.expand.json.payload": "true"},
    value="json",
)
EXPANDED_KEPT = Group(
    "expanded-kept",
    {"public.kept": {"payload": "json"}},
    {
        "table.expand.json.payload": "true",
        "table.json.payload.null.behavior": "optional_bytes",
        "table.json.payload.empty.array.behavior": "optional_string",
        "route.tombstone.on.empty.payload": "true",
    },
    value="json",
)
QUOTED = Group("quoted", {"public.quoted": {"payload": "text"}}, value="json")
GROUPS = [
    SHIPPED,
    TYPES,
    PARTITIONED,
    PLACED,
    ROUTED,
    OWN_NAMES,
    DEFAULTS,
    TOMBSTONES,
    TEXT,
    TEXT_TOMBSTONES,
    EXPANDED,
    EXPANDED_KEPT,
    QUOTED,
]


@case(SHIPPED, "payload: NULL, empty, any bytes")
def _(write: Writer) -> list[str]:
    return [write.row(payload=payload) for payload in (None, b"", b"\0", b"\xff\xfe\0", bytes(range(256)), b" ")]


@case(SHIPPED, "keys: empty, unicode, long")
def _(write: Writer) -> list[str]:
    return [write.row(aggregateid=key) for key in ("", "ключ-é-🔑", "a" * 5000, " spaces ", "tab\tnewline\n")]


@case(SHIPPED, "headers: NULL, unicode, as PostgreSQL writes jsonb")
def _(write: Writer) -> list[str]:
    documents = ["{}", '{"b":[1,  2.50],"a":"ü🔑"}', "null", '"text"', "[]", "1e3"]
    rows = [write.row(headers=text, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            for text in documents]  # fmt: skip
    return [*rows, write.row(type="", traceparent=""), write.row(type="Größe")]


@case(SHIPPED, "the partition is Java's for any key")
def _(write: Writer) -> list[str]:
    return [write.row(aggregateid=f"customer-{number}") for number in range(60)]


@case(SHIPPED, "times: microseconds, 1970, a missing hour")
def _(write: Writer) -> list[str]:
    times = ("1970-01-01 00:00:00.001", "1970-01-01 00:00:00.002999", "2026-03-29 02:30:00.123456")
    return [write.row(created_at=time) for time in times]


@case(SHIPPED, "a row of 1 MB")
def _(write: Writer) -> list[str]:
    return [write.row(payload=random.Random(1).randbytes(1_000_000)), write.row(payload=b"a" * 1_000_000)]


@case(SHIPPED, "a transaction of many rows")
def _(write: Writer) -> list[str]:
    with write.conn.transaction():
        return [write.row(aggregateid=f"k{number % 5}", payload=str(number).encode()) for number in range(100)]


@case(SHIPPED, "interleaved transactions: in the order of their commits")
def _(write: Writer) -> list[str]:
    with write.other() as one, write.other() as two:
        made = [write.row(conn=conn, payload=str(n).encode()) for n, conn in enumerate((one, two, one, two, one))]
        two.commit()
        made += [write.row(), write.row(conn=one)]
        one.commit()
    return made


@case(SHIPPED, "rolled back: transactions and savepoints")
def _(write: Writer) -> list[str]:
    with write.other() as conn:
        made = [write.row(conn=conn, payload=b"before")]
        for number in range(3):
            conn.execute("SAVEPOINT s")
            write.row(conn=conn, payload=b"never")
            if number:
                conn.execute("ROLLBACK TO SAVEPOINT s")
            else:
                conn.execute("SAVEPOINT inner_one")
                write.row(conn=conn, payload=b"never")
                conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.execute("SAVEPOINT kept")
        made.append(write.row(conn=conn, payload=b"kept"))
        conn.execute("RELEASE SAVEPOINT kept")
        conn.commit()
        write.row(conn=conn, payload=b"never")
        conn.rollback()
    return made


@case(SHIPPED, "COPY")
def _(write: Writer) -> list[str]:
    made = [str(uuid.uuid4()) for _ in range(20)]
    columns = "(id, aggregatetype, aggregateid, type, payload, topic)"
    with write.conn.cursor().copy(f"COPY pipeline.outbox {columns} FROM STDIN") as copy:
        for number, name in enumerate(made):
            copy.write_row((name, "order", f"c{number}", "T", b"copied", write.group.name))
    return made


@case(SHIPPED, "UPDATE, DELETE and TRUNCATE publish nothing")
def _(write: Writer) -> list[str]:
    changed, removed = write.row(payload=b"first"), write.row(payload=b"removed")
    write.conn.execute("UPDATE pipeline.outbox SET payload = 'second', aggregateid = 'other' WHERE id = %s", (changed,))
    write.conn.execute("UPDATE pipeline.outbox SET id = %s WHERE id = %s", (REKEYED, changed))
    write.conn.execute("DELETE FROM pipeline.outbox WHERE id = %s", (removed,))
    with write.conn.transaction():
        both = write.row(payload=b"inserted and deleted")
        write.conn.execute("DELETE FROM pipeline.outbox WHERE id = %s", (both,))
    write.conn.execute("TRUNCATE pipeline.outbox")
    return [changed, removed, both, write.row(payload=b"after")]


@case(SHIPPED, "columns that are added, and dropped again, while it runs")
def _(write: Writer) -> list[str]:
    made = [write.row()]
    write.conn.execute("ALTER TABLE pipeline.outbox ADD COLUMN more text DEFAULT 'x'")
    made.append(write.row(more="y"))
    write.conn.execute("ALTER TABLE pipeline.outbox DROP COLUMN more")
    made.append(write.row())
    return made


@case(SHIPPED, "logical messages are left out")
def _(write: Writer) -> list[str]:
    write.conn.execute("SELECT pg_logical_emit_message(true, 'p', 'inside'), pg_logical_emit_message(false, 'p', 'x')")
    return [write.row()]


@case(TYPES, "keys of type smallint, integer, bigint, uuid, boolean, varchar, char")
def _(write: Writer) -> list[str]:
    numbers: dict[str, tuple[object, ...]] = {
        "smallint": (-32768, 0, 32767),
        "integer": (-1, 2**31 - 1),
        "bigint": (-(2**63), 7),
        "uuid": ("00000000-0000-0000-0000-000000000000", str(uuid.uuid4())),
        "boolean": (True, False),
        "varchar": ("v", "é" * 40),
        "char": ("c", "12345678"),
    }
    return [write.row(f"public.key_{kind}", aggregateid=key) for kind, keys in numbers.items() for key in keys]


@case(TYPES, "a key that is NULL")
def _(write: Writer) -> list[str]:
    return [write.row("public.key_varchar", aggregateid=None), write.row("public.key_bigint", aggregateid=None)]


@case(TYPES, "ids of type bigint, text")
def _(write: Writer) -> list[str]:
    return [write.row("public.id_bigint", id=-17), write.row("public.id_text", id="id é")]


@case(TYPES, "columns of type varchar, json, timestamp(3)")
def _(write: Writer) -> list[str]:
    return [
        write.row("public.topic_varchar", headers='{"b":  1, "a": [ ]}'),
        write.row("public.time_millis", created_at="2026-02-03 04:05:06.789999"),
    ]


@case(PARTITIONED, "a partitioned outbox")
def _(write: Writer) -> list[str]:
    return [write.row(part=number % 2, aggregateid=f"k{number}") for number in range(6)]


@case(PLACED, "placements: headers with aliases, of each type, NULL, a missing column ignored")
def _(write: Writer) -> list[str]:
    full = {
        "number": 2**40, "small": -3, "flag": True, "seen_at": "2026-01-02 03:04:05.678901",
        "seen_ms": "2026-01-02 03:04:05.678", "ref": str(uuid.uuid4()), "doc": json.dumps({"a": [1, None]}),
    }  # fmt: skip
    return [write.row(**full), write.row(**full | {"flag": False}), write.row()]


@case(PLACED, "placements: the partition")
def _(write: Writer) -> list[str]:
    return [write.row(part=part, aggregateid=f"k{number}") for number, part in enumerate((0, 1, 2, 3, None))]


@case(ROUTED, "route.by.field, route.topic.regex, route.topic.replacement")
def _(write: Writer) -> list[str]:
    return [write.row(aggregatetype=value) for value in ("shop.order", "crm.customer_1")]


@case(OWN_NAMES, "every column under another name")
def _(write: Writer) -> list[str]:
    name = uuid.uuid4()
    write.conn.execute(
        "INSERT INTO public.own VALUES (%s, 'key', 'Kind', 'body', 'own-names', '2026-05-06 07:08:09.123456')", (name,)
    )
    return [str(name)]


@case(DEFAULTS, "the router's defaults")
def _(write: Writer) -> list[str]:
    return [write.row(aggregatetype="order"), write.row(aggregatetype="order", payload=None)]


@case(TOMBSTONES, "route.tombstone.on.empty.payload: bytes")
def _(write: Writer) -> list[str]:
    return [write.row(payload=payload) for payload in (None, b"", b"  ", b"x")]


@case(TEXT, "payloads of type text, varchar, json, jsonb, uuid, bigint with StringConverter")
def _(write: Writer) -> list[str]:
    values: dict[str, tuple[object, ...]] = {
        "text": ("", "ü🔑", "x" * 10_000, None),
        "varchar": ("v", None),
        "json": ('{"b":  1, "a": "ü"}', "[]", "null", None),
        "jsonb": ('{"b":  1, "a": [1.50, null]}', '"x"', None),
        "uuid": (str(uuid.uuid4()), None),
        "bigint": (-5, None),
    }
    return [write.row(f"public.payload_{kind}", payload=one) for kind, given in values.items() for one in given]


@case(TEXT, "a DELETE and its tombstone publish nothing")
def _(write: Writer) -> list[str]:
    made = write.row()
    write.conn.execute("DELETE FROM public.payload_text WHERE id = %s", (made,))
    return [made, write.row()]


@case(TEXT_TOMBSTONES, "route.tombstone.on.empty.payload: text")
def _(write: Writer) -> list[str]:
    return [write.row(payload=payload) for payload in (None, "", " \t\n", "\x01", "\u00a0", "x")]


_FIRST_EMPTY = '{"firstEmpty": [[], [1]]}'
_DOCUMENTS = (
    '{"a": 1, "b": "ü🔑\\n", "c": true, "d": 1.5, "e": 12345678901, "f": {"g": {"h": "i"}}}',
    '{"z": 1, "y": 2, "a": {"c": 1, "b": 2}}',
    '{"none": null, "empty": [], "nested": {"none": null, "empty": []}, "x": {}}',
    "{}",
    '{"ints": [1, 2], "texts": ["a", null], "objects": [{"a": 1}, {"a": 2}], "lists": [[1], [2, 3]]}',
    '{"lines": [{"sku": "a"}, {"sku": "b", "n": 2}]}',
    '{"mixed": [1, "a"]}',
    '{"numbers": [1, 2.5]}',
    '{"long": [1, 12345678901]}',
    _FIRST_EMPTY,
    '{"nulls": [null, {"a": 1}]}',
)


@case(EXPANDED, "table.expand.json.payload: objects, arrays, what is left out, what stays a string")
def _(write: Writer) -> list[str]:
    texts = (*_DOCUMENTS, '{"onlyNull": [null]}', "not JSON", "", "7", '"text"', "{broken", None)
    made = [write.row("public.expanded_text", payload=text) for text in texts]
    for kind in ("json", "jsonb"):
        made += [write.row(f"public.expanded_{kind}", payload=text) for text in (*_DOCUMENTS, "true", None)]
    return made


@case(EXPANDED_KEPT, "table.json.payload.null.behavior, table.json.payload.empty.array.behavior")
def _(write: Writer) -> list[str]:
    # an empty array before others ends Debezium's task here
    return [write.row(payload=text) for text in (*_DOCUMENTS, None) if text != _FIRST_EMPTY]


@case(QUOTED, "JsonConverter without expansion: a JSON string")
def _(write: Writer) -> list[str]:
    return [write.row(payload=text) for text in ('{"a": 1}', 'ü🔑"\\/\t\x7f', "", None)]
