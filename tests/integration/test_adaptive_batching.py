"""Low latency when little flows, full batches when much does: counted in requests to the real broker, not timed.

``linger.ms`` is a minute here: in its time nothing leaves, so every request is one that the relay decided on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry
from servers import Database, Topics
from waiting import wait_until

from pipeline.capture import Routed
from pipeline.connect.router import Router
from pipeline.connect.routing import RouterOptions
from pipeline.kafka.producer import Mark, RecordProducer
from pipeline.metrics import PrometheusMeter
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.wal import WalSettings, WalSource
from pipeline.probes import Readiness
from pipeline.relay import Relay

LINGER_S = 60
WITHIN_S = 40  # less: who waits for linger.ms fails
SINGLE = 10
BURST = 20_000
SLICE = 500


class Requests:
    """A producer's own statistics: how many records it has sent, in how many requests."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.records = self.requests = 0
        self.options: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": LINGER_S * 1000,
            "statistics.interval.ms": 20,
            "stats_cb": self._take,
        }

    def _take(self, text: str) -> None:
        found = json.loads(text)
        self.requests = sum(broker["req"].get("Produce", 0) for broker in found["brokers"].values())
        self.records = found["txmsgs"]


class Clock:
    """Stands unless told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def topic(topics: Topics, prefix: str) -> str:
    topics.create(f"{prefix}.burst")
    return f"{prefix}.burst"


def records(topic: str, count: int) -> list[Routed]:
    return [(topic, b"key", b"value %d" % n, [], 1_700_000_000_000, -1) for n in range(count)]


def acknowledged(producer: RecordProducer, clock: Clock | None = None, *marks: Mark) -> None:
    """Wait until all that was sent since the last mark is, and what the marks stand for; as when nothing more comes."""
    waiting = [*marks, producer.mark()]

    def done() -> bool:
        producer.poll(0.002, hurry=True)
        if clock:
            clock.now += 0.004  # more than what lies between two flushes
        return all(mark.acknowledged() for mark in waiting)

    wait_until(done, WITHIN_S, "acknowledgements")


def counted(producer: RecordProducer, requests: Requests, records: int) -> int:
    """Return how many requests there were, once the statistics have all records."""

    def told() -> bool:
        producer.poll(0.02, hurry=False)
        return requests.records >= records

    wait_until(told, WITHIN_S, f"statistics of {records} records")
    return requests.requests


def test_a_single_record_leaves_at_once_and_a_burst_in_full_batches(bootstrap_servers: str, topic: str) -> None:
    requests = Requests(bootstrap_servers)
    producer = RecordProducer(requests.options)
    for one in records(topic, SINGLE):
        producer.send([one], 0)
        acknowledged(producer)
    singly = counted(producer, requests, SINGLE)
    assert singly >= SINGLE

    burst = records(topic, BURST)
    for start in range(0, BURST, SLICE):
        assert producer.send(burst[: start + SLICE], start) == start + SLICE
        producer.poll(0, hurry=False)  # more is coming: the source says so
    acknowledged(producer)
    in_bulk = counted(producer, requests, SINGLE + BURST) - singly
    assert in_bulk <= BURST / 2000

    producer.send(records(topic, 1), 0)  # and the next single one does not wait for the burst's sake
    acknowledged(producer)
    producer.close()


def test_a_steady_flow_leaves_together_each_few_milliseconds(bootstrap_servers: str, topic: str) -> None:
    requests, clock = Requests(bootstrap_servers), Clock()
    producer = RecordProducer(requests.options, clock=clock)
    producer.send(records(topic, 400), 0)
    acknowledged(producer, clock)
    before = counted(producer, requests, 400)
    producer.send(records(topic, 400), 0)
    producer.mark()
    producer.poll(0, hurry=True)  # now it knows that much flows, and has just sent what there was; the clock stands
    singles = []
    for one in records(topic, 100):
        producer.send([one], 0)
        singles.append(producer.mark())
        producer.poll(0, hurry=True)  # nothing more just now, but soon
    for _ in range(50):
        producer.poll(0.002, hurry=True)
    assert not any(mark.acknowledged() for mark in singles)
    acknowledged(producer, clock, *singles)
    assert counted(producer, requests, 900) - before <= 10
    producer.close()


def bind(relation: Relation) -> Any:
    options = RouterOptions(route_by="topic", route_replacement="${routedByValue}")
    names, route = Router(options).bind("pipeline.outbox", relation.columns)
    return insert_parser(relation, names, route), lambda: None


@pytest.fixture
def relay(database: Database, prefix: str, bootstrap_servers: str) -> Iterator[Requests]:
    """A relay of the WAL, running."""
    requests, health, stop = Requests(bootstrap_servers), Readiness("relay"), threading.Event()
    settings = WalSettings(prefix, "pipeline_outbox", lambda _schema, table: table == "outbox", "pipeline.outbox")
    made = Relay(
        prefix,
        WalSource(database.dsn, settings, bind),
        lambda: RecordProducer(requests.options),
        keep=lambda _record, _topic: None,
        meter=PrometheusMeter(CollectorRegistry()),
        health=health,
    )
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: health.state()["role"] == "active", why="the relay reads")
        yield requests
    finally:
        stop.set()
        thread.join()


def test_the_relay_sends_single_rows_at_once_and_a_large_transaction_in_full_batches(
    relay: Requests, database: Database, bootstrap_servers: str, topic: str
) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    seen = pokes = 0

    def there(count: int) -> bool:
        nonlocal seen
        for message in consumer.consume(BURST, 0.05):
            assert message.error() is None
            seen += 1
        return seen >= count

    def told() -> bool:  # the client tells its statistics while it has something to do
        nonlocal pokes
        pokes += 1
        conn.execute(_INSERT, (topic, 1))
        return relay.records >= SINGLE + BURST

    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for n in range(1, SINGLE + 1):
            conn.execute(_INSERT, (topic, 1))
            wait_until(lambda n=n: there(n), WITHIN_S, "the row on its topic")  # type: ignore[misc]
        conn.execute(_INSERT, (topic, BURST))
        wait_until(lambda: there(SINGLE + BURST), WITHIN_S, "the rows on their topic")
        wait_until(told, WITHIN_S, "statistics")
    consumer.close()
    assert relay.requests - SINGLE - pokes <= BURST / 100


_INSERT = """
INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)
SELECT gen_random_uuid(), 'order', 'key', 'T', 'x', %s FROM generate_series(1, %s)
"""
