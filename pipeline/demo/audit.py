"""Event ids that were committed or rolled back in, what became of each of them out.

Reads topics and tables with plain clients and shares no code with relay and worker: it is their judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psycopg
from confluent_kafka import Consumer, TopicPartition

from pipeline.errors import BrokerError

__all__ = ["Verdict", "judge", "record_ids"]

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of event ids. ``duplicates`` counts handlings beyond the first, ``invented`` ids that were rolled back."""

    published: int
    handled: int
    dead: int
    lost: int
    invented: int
    duplicates: int
    p50_ms: float
    p99_ms: float


def judge(
    conn: psycopg.Connection[tuple[object, ...]],
    kafka: Mapping[str, str],
    *,
    committed: set[str],
    rolled_back: set[str],
    topics: Iterable[str],
    dlqs: Iterable[str],
) -> Verdict:
    """Follow every id. Lost is what was committed and neither handled nor kept as a dead letter."""
    published = record_ids(kafka, topics)
    dead = set(record_ids(kafka, dlqs))
    handlings: Counter[str] = Counter()
    for table in ("payments", "receipts"):
        handlings.update(str(row[0]) for row in conn.execute(f"SELECT event_id FROM {table}".encode()))  # noqa: S608
    handled = set(handlings)
    still_dead = {event_id for event_id in dead if event_id not in handled}
    p50_ms, p99_ms = conn.execute(_LATENCY).fetchone() or (0.0, 0.0)
    return Verdict(
        published=len(committed & set(published)),
        handled=len(committed & handled),
        dead=len(dead),
        lost=len(committed - handled - still_dead),
        invented=len(rolled_back & (handled | set(published))),
        duplicates=sum(handlings.values()) - len(handled),
        p50_ms=round(float(str(p50_ms or 0)), 1),
        p99_ms=round(float(str(p99_ms or 0)), 1),
    )


def record_ids(kafka: Mapping[str, str], topics: Iterable[str]) -> Counter[str]:
    """Read topics from beginning to present end; return how often each ``id`` header stands there.

    A record without an id counts as its topic, partition and offset. Raises BrokerError when the end is not reached.
    """
    consumer = Consumer({**kafka, "group.id": "audit", "enable.auto.commit": False, "enable.partition.eof": True})
    ids: Counter[str] = Counter()
    try:
        found = consumer.list_topics(timeout=_TIMEOUT_S).topics
        parts = [TopicPartition(t, p, 0) for t in topics if t in found for p in found[t].partitions]
        consumer.assign(parts)
        open_ends = len(parts)
        while open_ends:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise BrokerError("audit: the broker is silent", remedy="is it still running? pipeline status")
            if message.error():
                open_ends -= 1  # the end of a partition
                continue
            name = f"{message.topic()}[{message.partition()}]@{message.offset()}"
            ids[dict(message.headers() or []).get("id", name.encode()).decode()] += 1  # type: ignore[union-attr]
    finally:
        consumer.close()
    return ids


# from the outbox insert to the start of a first attempt; redriven ones waited for a person, and do not count
_LATENCY = b"""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
FROM (SELECT extract(epoch FROM h.started_at AT TIME ZONE 'UTC' - o.created_at) * 1000 AS ms
      FROM (TABLE payments UNION ALL TABLE receipts) h
      JOIN pipeline.outbox o ON o.id = h.event_id::uuid JOIN orders ON orders.id = h.order_id
      WHERE h.attempt = 1 AND orders.customer <> 'closed-bank') AS first_attempts
"""
