"""The other keys of a connector file, and what a file may have beside them: which test holds each to Debezium's."""

from __future__ import annotations

from outcomes import Ours, Outcome, Refused, Same
from sources import CREATED, HEARTBEATS, MESSAGES, NAMES, OFFSETS, PREDICATED, PUBLICATIONS, READ, SETTINGS, SNAPSHOTS

__all__ = ["KEYS"]

_FILE = "tests/unit/test_connector_file.py"
_SNAPSHOT = "tests/integration/test_snapshot.py"
_RELAY = "tests/integration/test_relay_integration.py"
_POLLING = "tests/integration/test_polling.py"
_MODES = Same(SNAPSHOTS)
_SAID = Ours(_SNAPSHOT, "test_what_is_read_and_how_it_is_stamped_can_be_said")
_UNCHANGED = Same(SETTINGS)
_SETTINGS = Same("payload: NULL, empty, any bytes")
_STRING = Same("payloads of type text, varchar, json, jsonb, uuid, bigint with StringConverter")
_BYTES = Same("keys of type bytea with ByteArrayConverter, headers of type bytea with SimpleHeaderConverter")
_DELEGATE = Same("BinaryDataConverter with a delegate, headers of type bytea with ByteArrayConverter")
_JSON = Same("JsonConverter with schemas: keys, payloads and headers of each type")
_TLS = Ours(
    "tests/integration/test_database_tls.py", "test_the_relay_and_the_doctor_get_in_by_a_certificate_and_by_no_less"
)

KEYS: dict[str, Outcome] = {
    "name, connector.class": _SETTINGS,
    "database.hostname, database.port, database.user, database.password, database.dbname": _SETTINGS,
    "database.sslmode, database.sslcert, database.sslkey, database.sslpassword, database.sslrootcert": _TLS,
    "database.initial.statements": Same(READ),
    "plugin.name, slot.name, publication.name, topic.prefix, transforms": _SETTINGS,
    "predicates": Same(PREDICATED),
    "slot.failover": _UNCHANGED,
    "slot.failover: a failover": Ours(
        "tests/integration/test_failover.py",
        "test_a_failover_with_a_failover_slot_loses_nothing_and_without_one_says_what_may_be_missing",
    ),
    "slot.drop.on.stop": Same(OFFSETS),
    "slot.stream.params": _UNCHANGED,
    "message.prefix.include.list, message.prefix.exclude.list": Same(MESSAGES),
    "status.update.interval.ms": _UNCHANGED,
    "publication.autocreate.mode, publish.via.partition.root": Same(PUBLICATIONS),
    "snapshot.mode.configuration.based.snapshot.data": _MODES,
    "snapshot.mode.configuration.based.snapshot.on.data.error": _MODES,
    "snapshot.mode.configuration.based.start.stream": _MODES,
    "snapshot.include.collection.list, snapshot.select.statement.overrides, snapshot.query.mode": Same(READ),
    "snapshot.locking.mode, snapshot.lock.timeout.ms, snapshot.delay.ms": Same(READ),
    "pipeline.snapshot.timestamp": _SAID,
    "offset.mismatch.strategy": Same(OFFSETS),
    "lsn.flush.mode, flush.lsn.source, read.only, exactly.once.support": _UNCHANGED,
    "topic.delimiter, field.name.adjustment.mode, schema.name.adjustment.mode": Same(NAMES),
    "heartbeat.interval.ms, topic.heartbeat.prefix, topic.heartbeat.name": Same(HEARTBEATS),
    "heartbeat.action.query, heartbeat.topics.prefix": Same(HEARTBEATS),
    "topic.creation.groups": Same(CREATED),
    "poll.interval.ms": _UNCHANGED,
    "poll.interval.ms: with pipeline.capture=polling": Ours(_POLLING, "test_a_notification_ends_the_wait"),
    "max.batch.size, max.queue.size, max.queue.size.in.bytes": _UNCHANGED,
    "tombstones.on.delete": Same("a DELETE and its tombstone publish nothing"),
    "key.converter, value.converter: StringConverter": _STRING,
    "key.converter, value.converter: ByteArrayConverter": _BYTES,
    "value.converter: BinaryDataConverter": _DELEGATE,
    "key.converter, value.converter: JsonConverter": _JSON,
    "key.converter, value.converter: JsonConverter with decimal.format=NUMERIC": Refused(
        "value.converter.decimal.format", "NUMERIC"
    ),
    "header.converter": _DELEGATE,
    "producer.override.max.request.size": Same("a row of 1 MB"),
    "producer.override.…": Ours(
        "tests/integration/test_producer_override.py", "test_the_relay_gets_in_by_javas_settings"
    ),
    "${env:…}": _SETTINGS,
    "${file:…}, ${directory:…}": _UNCHANGED,
    "pipeline.capture, pipeline.polling.seq": Ours(
        _POLLING, "test_a_table_of_your_own_is_polled_once_it_has_what_is_needed"
    ),
    "pipeline.polling.xid": Ours(_FILE, "test_polling_is_asked_for_by_keys_of_ours_and_takes_no_snapshot"),
    "pipeline.retain": Ours(
        "tests/integration/test_unretained.py",
        "test_what_was_never_in_the_table_for_others_arrives_on_the_topics",
    ),
    "pipeline.payload.encode=avro": Ours(
        _RELAY, "test_json_payloads_are_encoded_by_their_subjects_schema_and_wait_for_it"
    ),
}
