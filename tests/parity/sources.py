"""What is read, and from where on: cases that have connectors of their own, beside those on one layout in ``cases``."""

from __future__ import annotations

from outcomes import Ours

SNAPSHOTS = "rows that are there already, in each snapshot.mode"
LISTS = "lists of schemas, tables and columns"
MESSAGES = "logical messages, decoded: transactional or not, prefixes, fields, null fields"
DURABLE = (
    "a transaction open over a restart, one that the server spills, a table that joins the publication, a column added "
    "while both are stopped"
)
HEARTBEATS = "heartbeat records, also where nothing is written"
PREDICATED = "several routers under predicates: TopicNameMatches, HasHeaderKey, RecordIsTombstone, negated"
UPDATED = "updates: warn, error, fatal, and where skipped.operations has them"
TRACED = "headers of the connector's run, and of the trace that a row was written in"
CREATED = "topics that are missing, created by topic.creation.…: default, groups, what they include and exclude"
PUBLICATIONS = "publication.autocreate.mode, publish.via.partition.root: the publication that is made"
SETTINGS = "keys that change no record, all of them set at once"
READ = "what a snapshot reads: after a delay, with a lock, its tables, an own SELECT, statements before it"
OFFSETS = "a slot that is behind what was published, ahead of it, made anew, dropped, in use"
NAMES = "names of columns, fields, schemas and topics, adjusted"
REFUSED = "what both refuse or end at"
AVRO = "Avro converters: keys, payloads, expanded payloads and envelopes, byte for byte, by one registry"

_SOURCES = "tests/parity/test_sources.py"
_TRANSFORMS = "tests/parity/test_transforms.py"
# case → the tests that are it
SOURCES: dict[str, tuple[Ours, ...]] = {
    SNAPSHOTS: (Ours("tests/parity/test_snapshots.py", "test_both_publish_the_same_rows_in_each_mode"),),
    LISTS: (Ours(_SOURCES, "test_lists_of_schemas_tables_and_columns"),),
    MESSAGES: (Ours(_SOURCES, "test_logical_messages_that_are_decoded"),),
    DURABLE: (Ours(_SOURCES, "test_transactions_and_tables_that_come_and_go"),),
    HEARTBEATS: (Ours(_SOURCES, "test_heartbeat_records"),),
    PREDICATED: (Ours(_TRANSFORMS, "test_each_row_goes_through_the_routers_that_its_predicates_let_it_to"),),
    UPDATED: (
        Ours(_TRANSFORMS, "test_each_row_goes_through_the_routers_that_its_predicates_let_it_to"),
        Ours(_TRANSFORMS, "test_fatal_ends_both_at_an_update_and_not_where_updates_are_skipped"),
    ),
    TRACED: (Ours("tests/parity/test_run_headers.py", "test_both_give_the_headers_of_run_and_trace"),),
    PUBLICATIONS: (Ours("tests/parity/test_publication.py", "test_both_make_the_same_publication"),),
    CREATED: (Ours("tests/parity/test_topic_creation.py", "test_both_create_the_same_topics"),),
    SETTINGS: (
        Ours("tests/parity/test_settings.py", "test_records_are_the_same_with_every_key_set_that_changes_none"),
    ),
    READ: (Ours("tests/parity/test_snapshots.py", "test_both_read_what_a_snapshot_is_told_to"),),
    OFFSETS: (Ours("tests/parity/test_offsets.py", "test_a_slot_is_compared_with_what_was_published"),),
    NAMES: (Ours("tests/parity/test_names.py", "test_both_adjust_names_in_the_same_way"),),
    REFUSED: (Ours("tests/parity/test_refusals.py", "test_debezium_refuses_or_ends_at_it_too"),),
    AVRO: (Ours("tests/parity/test_avro_converter.py", "test_both_write_the_same_avro"),),
}

_BASED = "snapshot.mode.configuration.based"
# mode → what else the file says, whether its slot is dropped while it is stopped, which rows come until then and behind
MODES: dict[str, tuple[dict[str, str | None], bool, str, str]] = {
    "no_data": ({"snapshot.mode": "no_data"}, False, "b", "cd"),
    "initial": ({"snapshot.mode": None}, False, "ab", "cd"),  # the default
    "initial_only": ({"snapshot.mode": "initial_only"}, False, "a", ""),
    "when_needed": (  # with trust_slot Debezium does not see that its slot is gone
        {"snapshot.mode": "when_needed", "offset.mismatch.strategy": "no_validation"},
        True,
        "ab",
        "cd",
    ),
    "always": ({"snapshot.mode": "always"}, False, "ab", "cd"),
    "configuration_based": (  # where its slot is gone, too
        {
            "snapshot.mode": "configuration_based", "offset.mismatch.strategy": "trust_offset",
            f"{_BASED}.snapshot.data": "true", f"{_BASED}.start.stream": "true",
            f"{_BASED}.snapshot.on.data.error": "true",
        },
        True,
        "ab",
        "cd",
    ),
    "configuration_based without data": (
        {"snapshot.mode": "configuration_based", f"{_BASED}.start.stream": "true"},
        False,
        "b",
        "cd",
    ),
    "configuration_based without a stream": (
        {"snapshot.mode": "configuration_based", f"{_BASED}.snapshot.data": "true"},
        False,
        "a",
        "bc",
    ),
}  # fmt: skip
