"""The other keys of a connector file, and what a file may have beside them: which test holds each to Debezium's."""

from __future__ import annotations

from outcomes import Ours, Outcome, Refused, Same, Uncompared
from sources import CREATED, HEARTBEATS, MESSAGES, PREDICATED, PUBLICATIONS

__all__ = ["KEYS"]

_FILE = "tests/unit/test_connector_file.py"
_SLOT = "tests/integration/test_slot.py"
_SNAPSHOT = "tests/integration/test_snapshot.py"
_RELAY = "tests/integration/test_relay_integration.py"
_POLLING = "tests/integration/test_polling.py"
_MODES = Ours(_FILE, "test_snapshot_modes")
_SAID = Ours(_SNAPSHOT, "test_what_is_read_and_how_it_is_stamped_can_be_said")
_ONE_VALUE = Uncompared("it may say its default only")
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
    "database.initial.statements": _SAID,
    "plugin.name, slot.name, publication.name, topic.prefix, transforms": _SETTINGS,
    "predicates": Same(PREDICATED),
    "slot.failover": Ours(
        "tests/integration/test_failover.py",
        "test_a_failover_with_a_failover_slot_loses_nothing_and_without_one_says_what_may_be_missing",
    ),
    "slot.drop.on.stop": Ours(_SLOT, "test_a_slot_that_is_dropped_on_stop_is_made_anew"),
    "slot.stream.params": Ours(_FILE, "test_lists_of_columns_and_what_else_is_read"),
    "message.prefix.include.list, message.prefix.exclude.list": Same(MESSAGES),
    "status.update.interval.ms": Ours(_SLOT, "test_the_server_is_told_in_its_time_that_the_relay_lives"),
    "publication.autocreate.mode, publish.via.partition.root": Same(PUBLICATIONS),
    "snapshot.mode.configuration.based.snapshot.data": _MODES,
    "snapshot.mode.configuration.based.snapshot.on.data.error": _MODES,
    "snapshot.mode.configuration.based.start.stream": _MODES,
    "snapshot.include.collection.list, snapshot.select.statement.overrides": _SAID,
    "snapshot.query.mode": _ONE_VALUE,
    "snapshot.locking.mode, snapshot.lock.timeout.ms, snapshot.delay.ms": Uncompared("they change no record"),
    "pipeline.snapshot.timestamp": _SAID,
    "offset.mismatch.strategy": Ours(_SLOT, "test_a_stored_position_is_compared_with_slot_and_server"),
    "lsn.flush.mode": Uncompared(
        "the native relay confirms what the broker has, and moves an idle slot, in both modes"
    ),
    "flush.lsn.source, read.only, topic.delimiter": _ONE_VALUE,
    "exactly.once.support": Uncompared("both are at least once with the one value that it may have"),
    "heartbeat.interval.ms, topic.heartbeat.prefix": Same(HEARTBEATS),
    "heartbeat.action.query": Ours(
        _RELAY, "test_the_active_relay_alone_runs_the_heartbeats_query_and_survives_its_failure"
    ),
    "heartbeat.topics.prefix": Uncompared("Debezium 3 reads topic.heartbeat.prefix instead"),
    "topic.creation.groups": Same(CREATED),
    "poll.interval.ms": Ours(_POLLING, "test_a_notification_ends_the_wait"),
    "max.batch.size, max.queue.size, max.queue.size.in.bytes": Ours(
        _FILE, "test_what_has_no_meaning_here_is_noted_with_the_reason"
    ),
    "tombstones.on.delete": Same("a DELETE and its tombstone publish nothing"),
    "key.converter, value.converter: StringConverter": _STRING,
    "key.converter, value.converter: ByteArrayConverter": _BYTES,
    "value.converter: BinaryDataConverter": _DELEGATE,
    "key.converter, value.converter: JsonConverter": _JSON,
    "key.converter, value.converter: JsonConverter with decimal.format=NUMERIC": Refused(
        "value.converter.decimal.format", "NUMERIC"
    ),
    "header.converter": _DELEGATE,
    "producer.override.…": Ours(
        "tests/integration/test_producer_override.py", "test_the_relay_gets_in_by_javas_settings"
    ),
    "${env:…}, ${file:…}, ${directory:…}": Ours("tests/unit/test_references.py", "test_references_are_replaced"),
    "pipeline.capture, pipeline.polling.seq": Ours(
        _POLLING, "test_a_table_of_your_own_is_polled_once_it_has_what_is_needed"
    ),
    "pipeline.polling.xid": Ours(_FILE, "test_polling_is_asked_for_by_keys_of_ours_and_takes_no_snapshot"),
    "pipeline.payload.encode=avro": Ours(
        _RELAY, "test_json_payloads_are_encoded_by_their_subjects_schema_and_wait_for_it"
    ),
}
