"""What is read, and from where on: cases that have connectors of their own, beside those on one layout in ``cases``."""

from __future__ import annotations

SNAPSHOTS = "rows that are there already, in each snapshot.mode"
LISTS = "lists of schemas, tables and columns"
MESSAGES = "logical messages, decoded: transactional or not, prefixes, fields, null fields"
DURABLE = "a transaction open over a restart, one that the server spills, a table that joins the publication"
HEARTBEATS = "heartbeat records, also where nothing is written"
PREDICATED = "several routers under predicates: TopicNameMatches, HasHeaderKey, RecordIsTombstone, negated"
UPDATED = "updates: warn, error, fatal, and where skipped.operations has them"
TRACED = "headers of the connector's run, and of the trace that a row was written in"
CREATED = "topics that are missing, created by topic.creation.…: default, groups, what they include and exclude"
AVRO = "Avro converters: keys, payloads, expanded payloads and envelopes, byte for byte, by one registry"
SOURCES = (SNAPSHOTS, LISTS, MESSAGES, DURABLE, HEARTBEATS, PREDICATED, UPDATED, TRACED, CREATED, AVRO)

# mode → what else the file says, whether its slot is dropped while it is stopped, which rows come
MODES: dict[str, tuple[dict[str, str | None], bool, str]] = {
    "no_data": ({"snapshot.mode": "no_data"}, False, "bcd"),
    "initial": ({"snapshot.mode": None}, False, "abcd"),  # the default
    "initial_only": ({"snapshot.mode": "initial_only"}, False, "a"),
    "when_needed": (  # with trust_slot Debezium does not see that its slot is gone
        {"snapshot.mode": "when_needed", "offset.mismatch.strategy": "no_validation"},
        True,
        "abcd",
    ),
    "always": ({"snapshot.mode": "always"}, False, "abcd"),
}
