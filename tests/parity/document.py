"""What the suite knows in, docs/debezium-parity.md out: ``python tests/parity/document.py``."""

from __future__ import annotations

from cases import CASES, COLUMN_MODES, RESTART
from durability import DURABILITY
from idle import IDLE
from keys import KEYS
from outcomes import Differs, Fails, Outcome, Refused, Same, Uncompared
from sources import (
    AVRO,
    CREATED,
    HEARTBEATS,
    LISTS,
    MESSAGES,
    MODES,
    NAMES,
    OFFSETS,
    PREDICATED,
    SETTINGS,
    SNAPSHOTS,
    SOURCES,
    TRACED,
    UPDATED,
)

from pipeline.connect.options import WITHOUT_MEANING

_ROUTER = "transforms.outbox."
_ENVELOPE = Same("placements: the envelope, with aliases, of each type, NULL, a missing column ignored")
_ENVELOPE_EXPANDED = Same("placements: the envelope around an expanded payload")
_VERSION = Same("table.field.event.schema.version: the envelope with its schema")
_EXPAND = Same("table.expand.json.payload: objects, arrays, what is left out, what stays a string")
_KEPT = Same("table.json.payload.null.behavior, table.json.payload.empty.array.behavior")
_MESSAGES = Same(MESSAGES)
_BYTES_KEY = Same("keys of type bytea with ByteArrayConverter, headers of type bytea with SimpleHeaderConverter")
_ROWS_ONLY = Differs(
    "what is no row passes Debezium's router; the native relay reads rows only, and writes heartbeats itself"
)

_PAYLOAD = Same("payload: NULL, empty, any bytes")
_KEYS = Same("keys: empty, unicode, long")
_HEADERS = Same("headers: NULL, unicode, as PostgreSQL writes jsonb")
_TIMES = Same("times: microseconds, 1970, a missing hour")
_CHANGES = Same("UPDATE, DELETE and TRUNCATE publish nothing")
_DELETED = Same("a DELETE and its tombstone publish nothing")
_LEFT_OUT = Same("logical messages are left out")
_TYPES = Same("keys of type smallint, integer, bigint, uuid, boolean, varchar, char")
_PLACED = Same("placements: headers with aliases, of each type, NULL, a missing column ignored")
_PARTITION = Same("placements: the partition")
_ROUTED = Same("route.by.field, route.topic.regex, route.topic.replacement")
_OWN_NAMES = Same("every column under another name")
_DEFAULTS = Same("the router's defaults")
_EMPTY_BYTES = Same("route.tombstone.on.empty.payload: bytes")
_EMPTY_TEXT = Same("route.tombstone.on.empty.payload: text")
_TEXT = Same("payloads of type text, varchar, json, jsonb, uuid, bigint with StringConverter")

OPTIONS: dict[str, Outcome] = {
    "table.field.event.id": _OWN_NAMES,
    "table.field.event.key": _OWN_NAMES,
    "table.field.event.type": _OWN_NAMES,
    "table.field.event.payload": _OWN_NAMES,
    "table.field.event.timestamp": _OWN_NAMES,
    "table.field.event.schema.version": _VERSION,
    "table.fields.additional.placement": _PLACED,
    "table.fields.additional.placement: partition": _PARTITION,
    "table.fields.additional.placement: envelope": _ENVELOPE,
    "table.field.additional.missing": _PLACED,
    "predicate": Same(PREDICATED),
    "negate": Same(PREDICATED),
    "table.op.invalid.behavior": Same(UPDATED),
    "table.expand.json.payload": _EXPAND,
    "field.name.adjustment.mode": Differs(
        "of an expanded payload's fields: the same names, and their values; Debezium looks for a value under its new "
        "name, so that each field whose name changes is NULL",
        NAMES,
    ),
    "table.json.payload.null.behavior": _KEPT,
    "table.json.payload.empty.array.behavior": _KEPT,
    "route.by.field": _ROUTED,
    "route.topic.regex": _ROUTED,
    "route.topic.replacement": _ROUTED,
    "route.tombstone.on.empty.payload": _EMPTY_TEXT,
    "tracing.span.context.field": Same(TRACED),
    "tracing.operation.name": Same(TRACED),
    "tracing.with.context.field.only": Same(TRACED),
}

_FORMS = (
    (f"{option}={mode}", Same(case))
    for time, (decimal, binary) in COLUMN_MODES.items()
    for option, mode, case in (
        ("time.precision.mode", time, f"time.precision.mode={time}, decimal.handling.mode={decimal}"),
        ("decimal.handling.mode", decimal, f"time.precision.mode={time}, decimal.handling.mode={decimal}"),
        ("binary.handling.mode", binary, f"binary.handling.mode={binary}" if binary != "bytes" else _PAYLOAD.case),
    )
)
COLUMNS: dict[str, Outcome] = dict(sorted(_FORMS, key=lambda row: row[0]))

SOURCE: dict[str, Outcome] = {
    **{f"snapshot.mode={mode}": Same(SNAPSHOTS) for mode in MODES},
    "snapshot.mode=custom": Refused("snapshot.mode", "custom"),
    **dict.fromkeys(
        (
            "table.include.list, table.exclude.list",
            "schema.include.list, schema.exclude.list",
            "column.include.list, column.exclude.list",
        ),
        Same(LISTS),
    ),
    "topic.creation.…": Same(CREATED),
    "key.converter, value.converter: Apicurio's AvroConverter": Same(AVRO),
    "key.converter, value.converter: Confluent's AvroConverter": Uncompared(
        "the native relay takes its class name, and writes what it writes for Apicurio's"
    ),
    "schema.name.adjustment.mode": Same(AVRO),
    "schema.name.adjustment.mode=avro_unicode": Same(NAMES),
    "field.name.adjustment.mode": Same(NAMES),
    "field.name.adjustment.mode, where an Avro converter is": Same(AVRO),
    "topic.delimiter": Same(NAMES),
    "header.converter: an AvroConverter": Refused("header.converter", "io.confluent.connect.avro.AvroConverter", True),
    "skipped.operations": Same(UPDATED),
    "extended.headers.enabled": Same(TRACED),
    "slot.drop.on.stop=true": Differs(
        "the position is forgotten with the slot, so `snapshot.mode=initial` takes a snapshot at the next start"
    ),
    "slot.max.retries, slot.retry.delay.ms": Differs(
        "the native relay stands by until the slot is free, Debezium for so many tries; what is then published is the "
        "same",
        OFFSETS,
    ),
    "slot.stream.params": Differs("pgoutput's `origin` only: the relay sets the others itself"),
    "offset.mismatch.strategy": Differs(
        "a slot that is ahead of the stored position is an error, but with `trust_slot` and `trust_greater_lsn`; "
        "Debezium goes on from the slot in silence only while `restart_lsn`, which is behind what is confirmed, has "
        "not passed its own offset, with `trust_offset` too, of which its documentation says that it fails; else its "
        "task ends, or it takes a snapshot, as `snapshot.mode` says",
        OFFSETS,
    ),
    "lsn.flush.mode=connector": Differs(
        "keepalives move the slot in each mode; Debezium's in `connector_and_driver` alone", SETTINGS
    ),
    "lsn.flush.mode=manual": Refused("lsn.flush.mode", "manual"),
    "flush.lsn.source=false": Refused("flush.lsn.source", "false"),
    "read.only=true": Same(SETTINGS),
    "errors.tolerance": Differs(
        "a row that cannot be routed goes to `<connector>.dlq`, and the rest goes on; Debezium drops it with `all`, "
        "and with `none` its task ends",
        SETTINGS,
    ),
    "provide.transaction.metadata": Differs(
        "Debezium publishes records of transactions on `<topic.prefix>.transaction`; the events are the same",
        HEARTBEATS,
    ),
    "exactly.once.support=required": Refused("exactly.once.support", "required", True),
    "snapshot.query.mode=custom": Refused("snapshot.query.mode", "custom"),
    "snapshot.locking.mode=custom": Refused("snapshot.locking.mode", "custom"),
    "signal.data.collection, incremental snapshots": Refused("signal.data.collection", "public.signal"),
    "column.mask.…, column.truncate.…": Refused("column.mask.with.4.chars", "public.outbox.payload"),
    "converters, post.processors": Refused("converters", "isbn"),
}


def _is_idle(key: str) -> bool:
    return any(name == key or (key[-1] == "." and name.startswith(key)) for name in IDLE)


_NOT_IDLE: dict[str, Outcome] = {
    key: SOURCE[row]
    for row in ("slot.max.retries, slot.retry.delay.ms", "provide.transaction.metadata")
    for key in row.split(", ")
}
IDLE_KEYS: dict[str, Outcome] = {
    f"{key}…" if key[-1] == "." else key: _NOT_IDLE.get(key, Same(SETTINGS) if _is_idle(key) else Uncompared(why))
    for key, why in WITHOUT_MEANING.items()
}

TESTS: dict[str, dict[str, Outcome]] = {
    "EventRouterTest": {
        "canSkipTombstone": _DELETED,
        "canSkipDeletion": _CHANGES,
        "canSkipMessagesWithoutDebeziumCdcEnvelopeDueToMissingSchemaName": _ROWS_ONLY,
        "shouldFailWhenTheSchemaLooksValidButDoesNotHaveTheCorrectFields": _ROWS_ONLY,
        "canSkipMessagesWithoutDebeziumCdcEnvelopeDueToMissingSchemaNameSuffix": _ROWS_ONLY,
        "canSkipMessagesWithoutDebeziumCdcEnvelopeDueToMissingValueSchema": _ROWS_ONLY,
        "canSkipUpdates": _CHANGES,
        "canFailOnUpdates": Same(UPDATED),
        "canExtractTableFields": _PAYLOAD,
        "canSetDefaultMessageKey": _DEFAULTS,
        "canSetMessageKey": _OWN_NAMES,
        "failsOnInvalidSetMessageKey": Fails("table.field.event.key"),
        "canSetTimestampFromDebeziumEnvelopeByDefault": Differs("each stamps with the time of its own processing"),
        "canSetTimestampByUserDefinedConfiguration": _TIMES,
        "canRouteBasedOnField": _ROUTED,
        "canConfigureEveryTableField": _OWN_NAMES,
        "canInfluenceTableColumnTypes": _TYPES,
        "canSetSchemaVersionWhenMoreThanPayloadIsInEnvelope": _VERSION,
        "shouldNotSetSchemaVersionByDefault": _DEFAULTS,
        "canSetPayloadTypeIntoTheEnvelope": _ENVELOPE,
        "canSetPayloadTypeIntoTheEnvelopeWithAlias": _ENVELOPE,
        "canSetMultipleFieldsIntoTheEnvelope": _ENVELOPE,
        "canSetPartitionWithAdditionalFields": _PARTITION,
        "shouldFailOnInvalidConfigurationForTopicRegex": Refused(f"{_ROUTER}route.topic.regex", "[[a-z]", True),
        "shouldFailOnInvalidConfigurationForAdditionalFields": Refused(
            f"{_ROUTER}table.fields.additional.placement", "type:heaer", True
        ),
        "shouldFailOnInvalidConfigurationForAdditionalFieldsEmpty": Refused(
            f"{_ROUTER}table.fields.additional.placement", "", True
        ),
        "shouldFailOnInvalidConfigurationForOperationBehavior": Refused(
            f"{_ROUTER}table.op.invalid.behavior", "invalidOption", True
        ),
        "canPassStringKey": _KEYS,
        "canSetBinaryMessageKey": _BYTES_KEY,
        "canPassBinaryKey": _BYTES_KEY,
        "canPassIntKey": _TYPES,
        "canPassBinaryMessage": _PAYLOAD,
        "canMarkAnEventAsDeleted": _EMPTY_BYTES,
        "noTombstoneIfNotConfigured": _PAYLOAD,
        "canExpandJsonPayloadIfConfigured": _EXPAND,
        "shouldNotWarnOnNullPayloadWhenExpandJsonPayloadEnabled": _EXPAND,
        "canExpandJsonWithNestedArraysWhereFirstArrayIsEmpty": _EXPAND,
        "shouldExpandJSONPayloadWithEmptyArrayAndRemoveThatArray": _EXPAND,
        "shouldNotExpandJSONPayloadIfNotConfigured": _TEXT,
        "canExpandJsonPayloadWithAdditionalFieldInEnvelope": _ENVELOPE_EXPANDED,
        "canExpandJsonArrayWithFirstElementNull": _EXPAND,
        "canExpandJsonArrayWithComplexElements": _EXPAND,
        "canSetFieldIntoTheEnvelopeWithMissingField": _ENVELOPE,
        "shouldFailOnMissingField": Fails("table.fields.additional.placement"),
    },
    "AbstractEventRouterTest": {
        "shouldConsumeRecordsFromInsert": _PAYLOAD,
        "shouldSendEventTypeAsHeader": _HEADERS,
        "shouldSendEventTypeAsValue": _ENVELOPE,
        "shouldRespectJsonFormatAsString": _TEXT,
        "shouldSupportAllFeatures": _ENVELOPE,
        "shouldConvertMicrosecondsTimestampToMilliseconds": _TIMES,
        "shouldNotProduceTombstoneEventForNullPayload": _PAYLOAD,
        "shouldProduceTombstoneEventForNullPayload": _EMPTY_BYTES,
        "shouldProduceTombstoneEventForEmptyPayload": _EMPTY_TEXT,
    },
    "JsonSchemaDataTest": {
        "shouldCreateCorrectSchemaFromArrayJson": _EXPAND,
        "failSchemaCheckForArrayWithDifferentNumberTypes": _EXPAND,
        "shouldCreateCorrectSchemaFromInsertJson": _EXPAND,
        "shouldConvertNullNodeToOptionalBytes": _KEPT,
        "shouldDropEmptyArrayFieldByDefault": _EXPAND,
        "shouldKeepEmptyArrayFieldAsOptionalStringArray": _KEPT,
        "shouldKeepNestedEmptyArrayFieldAsOptionalStringArray": _KEPT,
        "shouldConvertEmptyArrayFieldToEmptyList": _KEPT,
    },
    "LogicalDecodingMessageIT": {
        "shouldNotConsumeLogicalDecodingMessagesWhenAllPrefixesAreInTheExcludedList": _LEFT_OUT,
        "shouldConsumeNonTransactionalLogicalDecodingMessages": _MESSAGES,
        "shouldConsumeTransactionalLogicalDecodingMessages": _MESSAGES,
        "shouldConsumeTransactionalLogicalDecodingMessagesThatContainTransactionData": _MESSAGES,
        "shouldApplyBinaryHandlingMode": Differs(
            "DecodeLogicalDecodingMessageContent reads bytes only: Debezium's task ends at the first message, the "
            "native relay refuses the file (tested)"
        ),
        "shouldNotConsumeLogicalDecodingMessagesWithExcludedPrefixes": _MESSAGES,
        "shouldOnlyConsumeLogicalDecodingMessagesWithIncludedPrefixes": _MESSAGES,
    },
    "DecodeLogicalDecodingMessageContentTest": {
        "shouldFailWhenLogicalDecodingMessageContentIsEmptyString": Differs(
            "Debezium's task ends; the native relay sends the message to `<connector>.dlq` and goes on (both tested)"
        ),
        "shouldConvertRecordWithNonTransactionalLogicalDecodingMessageWithEmptyContent": Differs(
            "`{}` has no field to route by: Debezium's task ends; a dead letter of the native relay (tested)"
        ),
        "shouldConvertRecordWithTransactionalLogicalDecodingMessageWithContentNotIncludingNullField": _MESSAGES,
        "shouldConvertRecordWithTransactionalLogicalDecodingMessageWithContentIncludingNullField": _MESSAGES,
    },
}

_HEAD = """# Parity with Debezium

The same rows through Debezium 3.7 on Kafka Connect and through the native relay, compared record by record: topic,
partition, key, value, headers, timestamp. `pytest tests/parity` does it; this page is written by
`python tests/parity/document.py`, and a test holds it to what the suite knows.

*pass*: the case that is named claims it, and is red where it does not hold. *refused*: the native relay does not honour
it, refuses the file and names the key; run it on Kafka Connect. *both refuse*, *both end*: Debezium too, in the same
suite. *differs*: on purpose; *measured* where a case has both sides of it. *by our own test*: of the native relay
alone. *not compared*: no test says it.
"""
_DIFFERENCES = """
## Differences

- **No key**: the partition is any, in both.
- **No timestamp column**: each stamps with the time of its own processing.
- **1970-01-01 00:00:00.000**: the native relay stamps 1 ms later, as librdkafka takes 0 for the present time.
- **A primary key that is changed**: to Debezium a delete and an insert; its router publishes the row again, under its
  new id and with a header `__debezium.oldkey`. To the native relay it is an update, of which
  `table.op.invalid.behavior` says what becomes. A publication of inserts only, as ours, hides it from both.
- **A row that the broker refuses**, such as one with a time more than an hour ahead
  (`message.timestamp.after.max.ms`): Debezium's task fails; the native relay sends the row to `<connector>.dlq`.
- **A publication without any wanted table**, as `publication.autocreate.mode=no_tables` makes: Debezium runs and
  publishes nothing; the native relay ends with an error. In each mode both make the same publication (tested).
- **Expanded JSON**: a document that ends Debezium's task, such as an array at the top, a field of two types in the
  objects of an array, an integer beyond 64 bits, or `[[], [1]]` with `empty.array.behavior=optional_string`, is
  published as it stands; with schemas as a string, where no schema holds all of it. Objects in an array that have
  objects within them keep all their fields; Debezium keeps those of one. The order of fields that only some objects of
  an array have is the documents' own; Debezium's is any.
- **NULL in a column with a DEFAULT** is NULL; Debezium publishes the default.
- **A timestamp before 1677 or after 2262** with `time.precision.mode=nanoseconds` is the last that 64 bits hold;
  Debezium publishes the column's default, or NULL.
- **Types of columns** that the router knows here: `bytea`, `text`, `varchar`, `char`, `name`, `uuid`, `json`, `jsonb`,
  `boolean`, integers, `oid`, `real`, `double precision`, `numeric`, `date`, `time`, `timestamp` with and without time
  zone. A column of any other that the router is told to use ends the relay with an error that names it.
- **The name of an envelope's schema** is that of its own topic. Debezium takes the name of the first topic that had
  such a payload, or such a schema version, and fails on a version that comes with two types of payload.
- **A column that its converter does not write**, such as a key of type `text` with ByteArrayConverter, or of type
  `bytea` with StringConverter: the native relay ends with an error that names it. Debezium's task fails at the first
  row, or publishes `java.nio.HeapByteBuffer[pos=0 lim=2 cap=2]`. Payloads of type `text` and `json` pass through
  ByteArrayConverter and BinaryDataConverter here.
- **A struct with StringConverter**, from an envelope or an expanded payload, is refused; Debezium publishes Java's
  `Struct{payload=…}`, which nothing reads.
- **Avro**: compared with Apicurio's converter 2.6. Confluent's is not measured beside it: its schemas are the same, but
  that a struct that can be NULL is a union at the top, too. A schema that the registry refuses ends Connect's task; the
  native relay waits, not ready, with the registry's answer. A field that Avro has no name for, such as `"to tal"` in
  expanded JSON, ends it too; that row is a dead letter here. An Avro converter as BinaryDataConverter's delegate,
  options that change what is written (`scrub.invalid.names`, `use.latest.version`, other subject names, ids in headers
  or of eight bytes), and a registry that wants certificates or tokens, are refused by their key.
- **JsonConverter with `decimal.format=NUMERIC`** is refused by its key: a decimal is BASE64, as by default.
- **`pipeline.payload.encode=avro`** is ours: JSON payloads that the relay itself makes Avro, by a schema of their
  subject. Kafka Connect passes over the key, so there is nothing of Debezium's to compare; it is outside this page's
  parity.
- **A table that no router takes**, by its predicate: Debezium publishes its change events, or its task ends where
  converters are for bytes; the native relay ends with an error that names table, topic and router.
- **Snapshots**: rows come in the order of `seq`, or of an identity column, where the table has one; in Debezium as they
  lie in the table. `always` publishes what is there at each start in both; what came while it was stopped comes by
  the stream too, which Debezium passes over: rows that were deleted meanwhile are lost to it.
- **`configuration_based`** with `snapshot.on.data.error` and without `snapshot.data` is refused: the position would be
  forgotten, and nothing take its place.
- **`when_needed`** with `offset.mismatch.strategy=trust_slot`: Debezium does not look whether its slot is there, and
  what was written before the new one is lost; the native relay takes its snapshot.
- **Logical messages** are events here where `DecodeLogicalDecodingMessageContent` stands before the router. Without it
  Debezium publishes its own change event of each on `<topic.prefix>.message`, or its task ends where converters are
  for bytes; the native relay publishes nothing and says so once.
- **Traces** are compared with OpenTelemetry on both sides: two spans a row, the first in the header `traceparent`.
  Without it Debezium gives no such header; the native relay gives the row's own context on as it came. Its spans have
  no attributes of the server.
- **A restart** repeats rows in both; which ones is not compared, only the first copies.
"""


OUTCOMES: list[Outcome] = [
    *OPTIONS.values(),
    *COLUMNS.values(),
    *SOURCE.values(),
    *KEYS.values(),
    *IDLE_KEYS.values(),
    *(one for tests in (*TESTS.values(), *DURABILITY.values()) for one in tests.values()),
]


def document() -> str:
    """Return the page."""
    parts = [_HEAD, "\n## Cases\n\n", *(f"- {name}\n" for name in [*CASES, RESTART, *SOURCES]), _DIFFERENCES]
    tables = {"Event Router options": OPTIONS, "Forms of columns": COLUMNS, "What is read": SOURCE, "Other keys": KEYS}
    tables["Keys without a meaning in the native relay"] = IDLE_KEYS
    tables |= {f"Debezium's {name}": tests for name, tests in TESTS.items()}
    tables |= {f"Debezium's {name}, as far as it concerns an outbox": tests for name, tests in DURABILITY.items()}
    for title, rows in tables.items():
        passed = sum(str(outcome).startswith("pass") for outcome in rows.values())
        parts.append(f"\n## {title}\n\n{passed} of {len(rows)} pass.\n\n| | |\n|---|---|\n")
        parts += [f"| `{name}` | {outcome} |\n" for name, outcome in rows.items()]
    return "".join(parts)


if __name__ == "__main__":
    print(document(), end="")
