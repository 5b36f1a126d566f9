"""The relay and its servers killed under load; then every event id is audited."""

from __future__ import annotations

import signal
import struct
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psycopg
import pytest
from confluent_kafka import Message
from figures import Figure
from relays import RelayProcess, connector_file, headers, ids, read_topic, until
from servers import Database, Topics

from pipeline.local import Endpoints, LocalStack
from tests.faults.tail import TopicTail

WRITERS = 4
KEYS_PER_WRITER = 5
PAUSE_S = 0.02
ROWS = 300  # so many between two kills, and so many while a server is away
AHEAD = 3000  # so many that are not published, and writers wait: a slow start must not make a long backlog


class Load:
    """Writers that commit, and roll back, rows of keys of their own until told to stop."""

    def __init__(self, dsn: str, topic: str, published: Callable[[], int]) -> None:
        self._dsn = dsn
        self._topic = topic
        self._published = published
        self._stop = threading.Event()
        self.rolled_back: set[str] = set()
        self._committed = [0] * WRITERS
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def committed(self) -> int:
        """How many rows its writers know to be committed."""
        return sum(self._committed)

    def _write(self, writer: int) -> None:
        number = 0
        while not self._stop.is_set():
            with suppress(psycopg.OperationalError), psycopg.connect(self._dsn, connect_timeout=3) as conn:
                while not self._stop.wait(PAUSE_S):
                    if self.committed() - self._published() > AHEAD:
                        continue
                    number += 1
                    names = []
                    for row in range(number % 7 + 1):
                        key = f"{writer}-{number % KEYS_PER_WRITER}"
                        names.append(str(uuid.uuid4()))
                        conn.execute(
                            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)"
                            " VALUES (%s, 'order', %s, 'shop.OrderPlaced', %s, %s)",
                            (names[-1], key, struct.pack(">QI", number, row) + b"x" * 200, self._topic),
                        )
                    if number % 10 == 0:
                        self.rolled_back.update(names)
                        conn.rollback()
                    else:
                        conn.commit()
                        self._committed[writer] += len(names)
            self._stop.wait(PAUSE_S)


def audit(messages: list[Message], database: Database, rolled_back: set[str]) -> dict[str, int]:
    """Compare the topic with the table, which is the truth about what committed, and return the counts."""
    with psycopg.connect(database.dsn) as conn:
        committed = {
            str(name): (key, payload[:12])
            for name, key, payload in conn.execute("SELECT id, aggregateid, payload FROM pipeline.outbox").fetchall()
        }
    published = ids(messages)
    orders: dict[bytes, list[bytes]] = defaultdict(list)
    seen: set[str] = set()
    for message in messages:  # partition after partition, each in order
        name = headers(message)["id"].decode()
        if name not in seen:
            seen.add(name)
            orders[message.key() or b""].append((message.value() or b"")[:12])
    return {
        "committed": len(committed),
        "lost": len(committed.keys() - seen),
        "invented": len(seen - committed.keys()) + len(seen & rolled_back),
        "overtaken": sum(order != sorted(order) for order in orders.values()),
        "duplicates": len(published) - len(seen),
        "rolled_back": len(rolled_back),
    }


def grows(count: Callable[[], int], what: str) -> None:
    """Wait until there are ROWS more."""
    before = count()
    until(lambda: count() >= before + ROWS, what)


def until_sent(dsn: str, slot: str) -> None:
    """Wait until all that is written by now was sent to the reader of a slot."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        (end,) = conn.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
        reader = (
            "SELECT FROM pg_stat_replication AS r JOIN pg_replication_slots AS s ON s.active_pid = r.pid"
            " WHERE s.slot_name = %s AND r.sent_lsn >= %s"
        )
        until(lambda: conn.execute(reader, (slot, end)).fetchone() is not None, "the relay gets what is written")


@pytest.mark.parametrize("victim", ["relay", "kafka", "postgres", "kafka and relay"])
def test_a_kill_under_load_loses_nothing_invents_nothing_and_keeps_order(
    private_stack: LocalStack, private_endpoints: Endpoints, private_database: Database,
    private_cli_environment: Mapping[str, str], tmp_path: Path, prefix: str, victim: str,
    figure: Figure,
) -> None:  # fmt: skip
    topics = Topics(private_endpoints.kafka)
    topic = f"{prefix}.events"
    topics.create(topic, partitions=4)
    topics.create(f"{prefix}.dlq")
    file = connector_file(tmp_path, prefix)
    relays = [RelayProcess(file, private_cli_environment).reading()]
    tail = TopicTail(private_endpoints.kafka, [topic])
    published = lambda: len(tail.ids)  # noqa: E731
    try:
        with Load(private_database.dsn, topic, published) as load:
            for _ in range(4 if victim == "relay" else 2):
                grows(published, "rows are published")  # so that there is something under way to be lost
                if victim == "kafka and relay":
                    # what is read while the broker is away stays unacknowledged: confirmed now, it would be lost
                    private_stack.kill("kafka")
                    grows(load.committed, "rows are written while the broker is away")
                    until_sent(private_database.dsn, prefix)
                    grows(load.committed, "more rows are written")
                    relays[-1].kill()
                    private_stack.start("kafka")
                    relays.append(RelayProcess(file, private_cli_environment).reading())
                elif victim == "relay":
                    relays[-1].kill()
                    relays.append(RelayProcess(file, private_cli_environment).reading())
                elif victim == "kafka":
                    private_stack.kill("kafka")
                    grows(load.committed, "rows are written while the broker is away")
                    private_stack.start("kafka")
                else:
                    lost = relays[-1].actions().count("relay.source_lost")
                    private_stack.kill("postgres")
                    until(lambda: relays[-1].actions().count("relay.source_lost") > lost, "the relay misses it")  # noqa: B023
                    private_stack.start("postgres")
            grows(published, "rows are published again")
        with psycopg.connect(private_database.dsn) as conn:
            rows = conn.execute("SELECT count(*) FROM pipeline.outbox").fetchone()
        assert rows is not None
        assert rows[0] > 500
        until(lambda: published() >= rows[0], "all rows are published")
        assert relays[-1].stop() == 0
        found = audit(read_topic(private_endpoints.kafka, topic), private_database, load.rolled_back)
        figure(f"{victim} killed: {found}")
        assert (found["lost"], found["invented"], found["overtaken"]) == (0, 0, 0)
        assert found["rolled_back"] > 0
        assert read_topic(private_endpoints.kafka, f"{prefix}.dlq") == []
    finally:
        tail.close()
        for process in relays:
            process.__exit__(None, None, None)


def test_a_stopped_relay_gives_way_and_does_not_disturb_its_successor(
    private_stack: LocalStack, private_endpoints: Endpoints, private_database: Database,
    private_cli_environment: Mapping[str, str], tmp_path: Path, prefix: str, figure: Figure,
) -> None:  # fmt: skip
    topics = Topics(private_endpoints.kafka)
    topic = f"{prefix}.events"
    topics.create(topic, partitions=4)
    file = connector_file(tmp_path, prefix)
    with RelayProcess(file, private_cli_environment) as first, ExitStack() as stack:
        first.reading()
        tail = TopicTail(private_endpoints.kafka, [topic])
        stack.callback(tail.close)
        published = lambda: len(tail.ids)  # noqa: E731
        with Load(private_database.dsn, topic, published) as load:
            grows(published, "rows by the first one")
            first.process.send_signal(signal.SIGSTOP)
            with psycopg.connect(private_endpoints.postgres_dsn, autocommit=True) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (prefix,)
                )  # as wal_sender_timeout does after a minute
            with RelayProcess(file, private_cli_environment) as second:
                second.reading()
                grows(published, "rows by the second one")
                first.process.send_signal(signal.SIGCONT)
                until(lambda: first.readiness()["role"] == "standby", "the first one stands by")
                grows(published, "more rows by the second one")
                load.__exit__()
                with psycopg.connect(private_database.dsn) as conn:
                    rows = conn.execute("SELECT count(*) FROM pipeline.outbox").fetchone()
                assert rows is not None
                until(lambda: published() >= rows[0], "all rows")
                assert second.stop() == 0
        found = audit(read_topic(private_endpoints.kafka, topic), private_database, load.rolled_back)
        figure(f"stopped: {found}")
        assert (found["lost"], found["invented"]) == (0, 0)
