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


_STRING = "org.apache.kafka.connect.storage.StringConverter"
_JSON = "org.apache.kafka.connect.json.JsonConverter"
_BYTES = "org.apache.kafka.connect.converters.ByteArrayConverter"
_SIMPLE = "org.apache.kafka.connect.storage.SimpleHeaderConverter"
_BINARY = "io.debezium.converters.BinaryDataConverter"
CONVERTERS: dict[str, dict[str, str]] = {
    "bytes": {},
    "text": {"tombstones.on.delete": "true", "value.converter": _STRING, "header.converter": _SIMPLE},
    "json": {"value.converter": _JSON, "value.converter.schemas.enable": "false"},
    "all-json": {
        f"{part}.converter{option}": value
        for part in ("key", "value", "header")
        for option, value in (("", _JSON), (".schemas.enable", "false"))
    },
    "schemas": {f"{part}.converter": _JSON for part in ("key", "value", "header")},
    "raw": {"key.converter": _BYTES, "header.converter": _SIMPLE},
    "binary": {
        "key.converter": _BINARY,
        "value.converter": _BINARY,
        "value.converter.delegate.converter.type": _JSON,
        "value.converter.delegate.converter.type.schemas.enable": "false",
        "header.converter": _BYTES,
    },
}
"""What one of Debezium's connectors here has, and the files of the native relay for its groups."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tables that one router serves. ``options`` change our file's router; None removes one of its keys.

    ``tables``: name → columns that differ from an outbox's; empty columns are left out. ``value``: one of CONVERTERS.
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
                if "/" in changes:
                    for part in (0, 1):
                        conn.execute(
                            f"CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES FROM ({part}) TO ({part + 1})"
                        )
                    conn.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id, part)")


_OF_BYTES = {"bytes", "raw", "binary"}


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
            "payload": b"\0\0\0\0\1x" if self.group.value in _OF_BYTES else "{}",
            "topic": self.group.name,
        } | values
        table = table or next(iter(self.group.tables))
        given = {name: value for name, value in given.items() if self.group.tables[table].get(name) != ""}
        names = ", ".join(given)
        places = ", ".join("%s" for _ in given)
        (conn or self.conn).execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(given.values()))
        name = given["id"]
        return name.decode() if isinstance(name, bytes) else str(name)

    def other(self) -> Conn:
        return psycopg.connect(self.dsn)


RESTART = "rows written while both captures restart"
REKEYED = "00000000-0000-4000-8000-000000000000"
"""The new id of a row whose primary key is changed: a delete and an insert to Debezium, an update to us."""
DEFAULTED = "00000000-0000-4000-8000-000000000001"
"""A row with NULL in a column that has a DEFAULT."""
SECOND_TOPIC = "00000000-0000-4000-8000-000000000002"
"""A row in an envelope, of a payload type and version that went to another topic before."""
DIFFERENT = {REKEYED, DEFAULTED, SECOND_TOPIC}

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
_INSIDE = (
    "type:envelope:kind,number:envelope,small:envelope,flag:envelope,seen_at:envelope:at,ref:envelope,doc:envelope,"
)
_INSIDE_OPTIONS: dict[str, str | None] = {
    "table.fields.additional.placement": f"{_INSIDE}raw:envelope,gone:envelope,version:header",
    "table.field.additional.missing": "ignore",
    "table.field.event.schema.version": "version",
}
_INSIDE_COLUMNS = {
    "number": "bigint", "small": "smallint NOT NULL DEFAULT 3", "flag": "boolean DEFAULT false", "seen_at": "timestamp",
    "ref": "uuid", "doc": "jsonb", "raw": "bytea", "version": "integer",
}  # fmt: skip
ENVELOPED = Group(
    "enveloped",
    {
        f"public.enveloped_{kind}": {"payload": kind, **_INSIDE_COLUMNS}
        for kind in ("text", "jsonb", "bytea", "integer")
    },
    {**_INSIDE_OPTIONS, "table.field.event.schema.version": None},
    value="all-json",
)
ENVELOPED_EXPANDED = Group(
    "enveloped-expanded",
    {"public.enveloped_expanded": {"payload": "jsonb"}},
    {
        "table.expand.json.payload": "true",
        "table.fields.additional.placement": "type:envelope,aggregatetype:envelope:of",
        "route.tombstone.on.empty.payload": "true",
    },
    value="all-json",
)
ENVELOPED_SCHEMAS = Group(
    "enveloped-schemas",
    {f"public.enveloped_schemas_{kind}": {"payload": kind, **_INSIDE_COLUMNS} for kind in ("text", "jsonb", "bytea")},
    _INSIDE_OPTIONS,
    value="schemas",
)
EXPANDED_SCHEMAS = Group(
    "expanded-schemas",
    {f"public.expanded_schemas_{kind}": {"payload": kind} for kind in ("text", "jsonb")},
    {"table.expand.json.payload": "true"},
    value="schemas",
)
EXPANDED_ENVELOPE_SCHEMAS = Group(
    "expanded-envelope-schemas",
    {"public.expanded_envelope_schemas": {"payload": "json"}},
    {
        "table.expand.json.payload": "true",
        "table.json.payload.null.behavior": "optional_bytes",
        "table.json.payload.empty.array.behavior": "optional_string",
        "table.fields.additional.placement": "type:envelope",
    },
    value="schemas",
)
SCHEMAS = Group(
    "schemas",
    {
        f"public.schemas_{kind}": {"aggregateid": kind, "payload": kind}
        for kind in ("bytea", "uuid", "integer", "jsonb", "boolean")
    }
    | {
        "public.schemas_defaults": {
            "aggregateid": "text NOT NULL DEFAULT 'it''s'", "payload": "bigint NOT NULL DEFAULT 7",
            "type": "varchar(20) DEFAULT 'none'::varchar", "headers": "jsonb NOT NULL DEFAULT '{}'",
            "traceparent": "text DEFAULT upper('x')",
        }
    },
    value="schemas",
)  # fmt: skip
RAW = Group(
    "raw",
    {"public.raw": {"aggregateid": "bytea", "traceparent": "bytea"}},
    {"table.fields.additional.placement": "traceparent:header:raw,type:header"},
    value="raw",
)
BINARY = Group(
    "binary",
    {
        f"public.binary_{kind}": {
            "id": "bytea PRIMARY KEY",
            "aggregateid": "bytea",
            "payload": kind,
            "headers": "bytea",
        }
        for kind in ("bytea", "text", "jsonb", "bigint")
    },
    {"table.fields.additional.placement": "headers:header"},
    value="binary",
)
_TYPED = {
    "on_day": "date DEFAULT now()", "at_time": "time DEFAULT localtime", "at_millis": "time(3)",
    "at_moment": "timestamp NOT NULL DEFAULT now()", "at_second": "timestamp(0)", "zoned": "timestamptz DEFAULT now()",
    "zoned_millis": "timestamptz(3)", "amount": "numeric(12,3)", "ratio": "double precision", "share": "real",
    "number_of": "oid", "loose": "numeric",
}  # fmt: skip
COLUMN_MODES = {  # time.precision.mode → decimal.handling.mode, binary.handling.mode
    "adaptive": ("precise", "base64"),
    "adaptive_time_microseconds": ("string", "hex"),
    "microseconds": ("double", "base64-url-safe"),
    "nanoseconds": ("string", "bytes"),
    "connect": ("precise", "bytes"),
    "isostring": ("double", "bytes"),
}
CONVERTERS |= {
    f"mode-{time}": {
        "time.precision.mode": time, "decimal.handling.mode": decimal, "binary.handling.mode": binary,
        "key.converter": _JSON, "value.converter": _JSON,
    }
    for time, (decimal, binary) in COLUMN_MODES.items()
}  # fmt: skip


def _typed(time: str, decimal: str) -> Group:
    """Return a group whose columns stand in the envelope, and in headers as far as they have a text."""
    words = {"on_day", "at_time", "at_millis", "at_moment", "at_second"} if time == "connect" else set()
    headers = [name for name in _TYPED if name not in words and (decimal != "precise" or name != "loose")]
    placed = [*(f"{name}:envelope" for name in _TYPED), *(f"{name}:header" for name in headers)]
    return Group(
        f"typed-{time.replace('_', '-')}",
        {f"public.typed_{time}": {"payload": "bytea", **_TYPED}},
        {
            "table.fields.additional.placement": ",".join(placed),
            "table.field.event.timestamp": None if time in {"connect", "isostring"} else "created_at",
        },
        value=f"mode-{time}",
    )


TYPED = [_typed(time, decimal) for time, (decimal, _) in COLUMN_MODES.items()]
ENCODED = [
    Group(
        f"encoded-{binary}",
        {f"public.encoded_{binary.replace('-', '_')}": {"aggregateid": "bytea"}},
        {"route.tombstone.on.empty.payload": "true"},
        value=f"mode-{time}",
    )
    for time, (_, binary) in COLUMN_MODES.items()
    if binary != "bytes"
]
ROUNDS: dict[str, list[Group]] = {
    "router": [
        SHIPPED, TYPES, PARTITIONED, PLACED, ROUTED, OWN_NAMES, DEFAULTS, TOMBSTONES, TEXT, TEXT_TOMBSTONES, EXPANDED,
        EXPANDED_KEPT, QUOTED,
    ],
    "converters": [
        ENVELOPED, ENVELOPED_EXPANDED, ENVELOPED_SCHEMAS, EXPANDED_SCHEMAS, EXPANDED_ENVELOPE_SCHEMAS, SCHEMAS, RAW,
        BINARY, *TYPED, *ENCODED,
    ],
}  # fmt: skip
"""Groups whose slots are there at the same time."""


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
    '{"floats": [1e10, 1.5e-7, 0.001, 12345678.9, -0.0, 1e400, 100.0]}',
    '{"deep": [[{"a": 1}], [{"a": 2}]], "in": {"l": [{"x": {"y": [1.5]}}]}}',
    '{"some": [{"a": null, "b": true}, {"a": "t", "b": false}]}',
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


_BESIDE = {
    "number": -(2**40), "small": 2, "flag": True, "seen_at": "2026-01-02 03:04:05.678901", "ref": str(uuid.uuid4()),
    "doc": '{"a": [1, null]}', "raw": b"\0\xff", "version": 1, "type": 'Größe "🔑"',
}  # fmt: skip
_PAYLOADS: dict[str, tuple[object, ...]] = {
    "text": ("ü🔑\n", "", None), "jsonb": ('{"b": 1}', None), "bytea": (b"\0\xff", b"", None), "integer": (-5, None),
}  # fmt: skip


@case(ENVELOPED, "placements: the envelope, with aliases, of each type, NULL, a missing column ignored")
def _(write: Writer) -> list[str]:
    return [
        write.row(f"public.enveloped_{kind}", payload=payload, **beside)
        for kind, payloads in _PAYLOADS.items()
        for payload in payloads
        for beside in (_BESIDE, {"flag": False, "version": None})
    ]


@case(ENVELOPED_EXPANDED, "placements: the envelope around an expanded payload")
def _(write: Writer) -> list[str]:
    return [write.row(payload=text) for text in (*_DOCUMENTS, "7", None)]


@case(ENVELOPED_SCHEMAS, "table.field.event.schema.version: the envelope with its schema")
def _(write: Writer) -> list[str]:
    # Debezium remembers one schema for each version, whatever table it is of
    versions = {"text": (1, 2), "jsonb": (3,), "bytea": (4,)}
    made = [
        write.row(f"public.enveloped_schemas_{kind}", payload=payload, **_BESIDE | {"version": version})
        for kind, numbers in versions.items()
        for version in numbers
        for payload in _PAYLOADS[kind]
    ]
    table = "public.enveloped_schemas_text"
    write.row(table, id=SECOND_TOPIC, topic=ENVELOPED.name, version=1, payload="p")
    return made


@case(EXPANDED_SCHEMAS, "table.expand.json.payload: with its schema")
def _(write: Writer) -> list[str]:
    texts = (*_DOCUMENTS, "not JSON", "", "7", None)
    made = [write.row("public.expanded_schemas_text", payload=text) for text in texts]
    return [*made, *(write.row("public.expanded_schemas_jsonb", payload=text) for text in (*_DOCUMENTS, "true", None))]


@case(EXPANDED_ENVELOPE_SCHEMAS, "table.expand.json.payload: within an envelope, with its schema, what is empty kept")
def _(write: Writer) -> list[str]:
    return [write.row(payload=text) for text in (*_DOCUMENTS, None) if text != _FIRST_EMPTY]


@case(SCHEMAS, "JsonConverter with schemas: keys, payloads and headers of each type")
def _(write: Writer) -> list[str]:
    values: dict[str, tuple[object, ...]] = {
        "bytea": (b"\0\xff",), "uuid": (str(uuid.uuid4()),), "integer": (-1,), "jsonb": ('{"a": 1}',),
        "boolean": (True, False),
    }  # fmt: skip
    made = [
        write.row(f"public.schemas_{kind}", aggregateid=one, payload=one, headers='{"a": 1}', traceparent="t")
        for kind, given in values.items()
        for one in given
    ]
    return [*made, *(write.row(f"public.schemas_{kind}", aggregateid=None, payload=None) for kind in values)]


@case(SCHEMAS, "JsonConverter with schemas: defaults of columns, columns that cannot be NULL")
def _(write: Writer) -> list[str]:
    write.row("public.schemas_defaults", id=DEFAULTED, payload=1, traceparent="t", type=None)
    return [write.row("public.schemas_defaults", payload=1, traceparent="t")]


@case(RAW, "keys of type bytea with ByteArrayConverter, headers of type bytea with SimpleHeaderConverter")
def _(write: Writer) -> list[str]:
    keys = (b"\0\xff", b"", "ключ".encode(), None)
    return [write.row(aggregateid=key, traceparent=key) for key in keys]


@case(BINARY, "BinaryDataConverter with a delegate, headers of type bytea with ByteArrayConverter")
def _(write: Writer) -> list[str]:
    values: dict[str, tuple[object, ...]] = {
        "bytea": (b"\0\xff", b"", None), "text": ("t", None), "jsonb": ('{"a": 1}', None), "bigint": (-5, None)
    }  # fmt: skip
    return [
        write.row(
            f"public.binary_{kind}", id=uuid.uuid4().hex.encode(), aggregateid=b"k\0", payload=one, headers=one_header
        )
        for kind, given in values.items()
        for one, one_header in zip(given, (b"\xff", None, b""), strict=False)
    ]


_MOMENTS = ("1999-12-31 23:59:59.999999", "2026-01-02 03:04:05.678", "2026-07-01 12:00:00", "1969-07-20 20:17:40.5")
_FAR = ("0999-01-01 00:00:00", "12345-06-07 08:09:10.5", "0044-03-15 01:02:03.5 BC")  # not to nanoseconds in 64 bits
_NUMBERS = ("0", "-12.345", "1200", "0.001", "123456789.125", "-0.25", "NaN")
_LOOSE = ("1e-7", "12345678.9", "123000e20", "1e38", "Infinity", "-Infinity")


def _write_typed(write: Writer) -> list[str]:
    """Write times and numbers: each within a row of its own, and NULL."""
    far = () if write.group.value == "mode-nanoseconds" else _FAR
    made = [write.row(payload=b"\0\xff")]
    for number, moment in enumerate((*_MOMENTS, *far)):
        made.append(write.row(
            payload=b"", on_day=moment, at_time=moment, at_millis=moment, at_moment=moment, at_second=moment,
            zoned=f"{moment} +02", zoned_millis=f"{moment} Z", number_of=4_000_000_000 + number,
        ))  # fmt: skip
    for moment in ("infinity", "-infinity"):
        columns = ("on_day", "at_moment", "at_second", "zoned", "zoned_millis")
        made.append(write.row(**dict.fromkeys(columns, moment)))
    made += [write.row(at_time=text, at_millis=text) for text in ("00:00:00", "24:00:00")]
    made += [write.row(on_day=text) for text in _FAR]
    made += [write.row(payload=None, amount=text, ratio=text, share=text, loose=text) for text in _NUMBERS]
    return [*made, *(write.row(payload=None, ratio=text, share=text, loose=text) for text in _LOOSE)]


def _write_encoded(write: Writer) -> list[str]:
    payloads = (b"\0\xff\xfe", b"", b" ", None)
    return [write.row(aggregateid=payload, payload=payload) for payload in payloads]


for _group, (_time, (_decimal, _binary)) in zip(TYPED, COLUMN_MODES.items(), strict=True):
    case(_group, f"time.precision.mode={_time}, decimal.handling.mode={_decimal}")(_write_typed)
for _group in ENCODED:
    case(_group, f"binary.handling.mode={_group.name.removeprefix('encoded-')}")(_write_encoded)
