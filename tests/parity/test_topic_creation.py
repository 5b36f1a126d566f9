"""``topic.creation.…``: topics that are missing, as Kafka Connect and the native relay create them."""

from __future__ import annotations

from pairs import SIDES, Conn, Start
from relays import ids, insert, until
from servers import Topics

CREATION = "topic.creation."
NAMES = ("plain", "wide-a", "wide-b", "wide-not", "kept.long", "both")
FILE: dict[str, str | None] = {
    CREATION + "default.partitions": "3", CREATION + "default.replication.factor": "1",
    CREATION + "default.retention.ms": "12345678", CREATION + "default.include": "nothing",
    CREATION + "groups": "wide, kept",
    CREATION + "wide.include": r".*\.wide-.*,.*\.both", CREATION + "wide.exclude": r".*-not",
    CREATION + "wide.partitions": "7", CREATION + "wide.cleanup.policy": "compact",
    CREATION + "kept.include": r"[^.]+\.kept\..*,.*\.both", CREATION + "kept.replication.factor": "-1",
    CREATION + "kept.retention.ms": "-1", CREATION + "kept.max.message.bytes": "2000000",
}  # fmt: skip


def test_both_create_the_same_topics(start: Start, conn: Conn, bootstrap_servers: str, topics: Topics) -> None:
    pair = start(**FILE)
    made = [insert(conn, name, "k") for name in NAMES for _ in range(3)]
    found: dict[str, dict[str, tuple[int, list[str | None]]]] = {}
    for side in SIDES:
        named = {name: f"{pair[side].name}.{name}" for name in NAMES}
        until(
            lambda side=side, named=named: pair[side].lives() and set(named.values()) <= set(topics.names()),
            f"{side}: topics",
            60,
        )
        until(
            lambda side=side, named=named: (
                made == [row for topic in named.values() for row in ids(pair[side].records(bootstrap_servers, topic))]
            ),
            f"{side}: rows",
            60,
        )
        found[side] = {
            name: (
                len(topics.admin.list_topics(topic, timeout=60).topics[topic].partitions),
                [topics.config(topic, key) for key in ("cleanup.policy", "retention.ms", "max.message.bytes")],
            )
            for name, topic in named.items()
        }
    assert found["native"] == found["debezium"]
    topics.delete(f"{one.name}.{name}" for one in pair.values() for name in NAMES)
    assert [partitions for partitions, _ in found["native"].values()] == [3, 7, 7, 3, 3, 7]
