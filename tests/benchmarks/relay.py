"""Outbox rows in a real PostgreSQL in, figures of the relay on a real Kafka out.

    python -m tests.benchmarks.relay [--rows 300000] [--seconds 10] [--stack DIR]

Servers come from PIPELINE_POSTGRES__DSN and PIPELINE_KAFKA__BOOTSTRAP_SERVERS, or from the local stack in DIR. Only
ratios within one run carry over to other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import psutil
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pipeline.capture import Batch
from pipeline.config import Settings
from pipeline.endpoints import libpq_environment
from pipeline.postgres import migrations
from pipeline.postgres.changes import Changes
from pipeline.postgres.slot import ReplicationConnection
from pipeline.postgres.wal import _STREAM, WalSource
from pipeline.runtime.capture import binding, wal_settings
from pipeline.runtime.relay import read_connector
from tests.benchmarks.table import told

PAYLOAD = b"\0\0\0\0\1" + os.urandom(225)
PARTITIONS = 6
_FILL = """
DO $fill$
DECLARE payload bytea := {payload}; topics text[] := {topics};
BEGIN
  FOR part IN {first} / 1000 .. ({first} + {rows}) / 1000 - 1 LOOP
    INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)
    SELECT CAST(lpad(to_hex(number), 32, '0') AS uuid), 'order', 'order-' || (number % 5000), 'shop.OrderPlaced',
           payload, topics[1 + number % cardinality(topics)]
    FROM generate_series(part * 1000, part * 1000 + 999) AS number;
    COMMIT;
  END LOOP;
END $fill$"""
_COMING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
}
CONNECTOR = Path(__file__).parents[2] / "connectors" / "outbox.json"


class Bench:
    """One database, topic and slot of their own."""

    def __init__(self, dsn: str, kafka: str, folder: Path, options: tuple[str, ...] = (), topics: int = 1) -> None:
        self.options = options
        self.name = f"bench{secrets.token_hex(3)}"
        self.admin_dsn, self.kafka = dsn, kafka
        self.dsn = make_conninfo(dsn, dbname=self.name)
        self.topic = f"{self.name}.events"
        more = {f"{self.topic}.{number}": 1 for number in range(topics)}
        self.topics = more if topics > 1 else {self.topic: PARTITIONS}
        self.rows = 0
        self.file = folder / f"{self.name}.json"
        loaded = json.loads(CONNECTOR.read_text())
        loaded["name"] = self.name
        loaded["config"] |= {"slot.name": self.name}
        self.file.write_text(json.dumps(loaded))
        self.admin = AdminClient({"bootstrap.servers": kafka})

    def __enter__(self) -> Self:
        with psycopg.connect(self.admin_dsn, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {self.name}")
        with psycopg.connect(self.dsn) as conn:
            migrations.migrate(conn)
        new = [NewTopic(name, partitions, 1) for name, partitions in self.topics.items()]
        for done in self.admin.create_topics([*new, NewTopic(f"{self.name}.dlq", 1, 1)]).values():
            done.result(60)
        self._wait_for_leaders()
        settings = Settings(postgres={"dsn": self.dsn}, kafka={"bootstrap_servers": self.kafka})
        self.connector = read_connector(self.file, settings, env=libpq_environment(self.dsn))
        return self

    def __exit__(self, *_: object) -> None:
        wait_free(self)  # a walsender that was in the midst of a backlog takes a moment to see that its reader went
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (self.name,),
            )
        with psycopg.connect(self.admin_dsn, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        ours = [name for name in self.admin.list_topics(timeout=10).topics if name.startswith(f"{self.name}.")]
        for done in self.admin.delete_topics(ours).values():
            done.result(30)

    def _wait_for_leaders(self) -> None:
        """Wait until the broker answers for all partitions: it lists them before it has made them."""
        while True:
            try:
                self.published()
            except KafkaException as error:
                if not error.args[0].retriable() and error.args[0].code() not in _COMING:
                    raise
                time.sleep(0.1)
            else:
                return

    def fill(self, rows: int) -> None:
        """Commit rows in transactions of 1,000, on the server: ours would take longer than the relay.

        Ids grow, as UUIDv7 do; rows are dealt out to the topics.
        """
        topics = sql.Literal(list(self.topics))
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("SET synchronous_commit = off")
            conn.execute(sql.SQL(_FILL).format(payload=PAYLOAD, topics=topics, first=self.rows, rows=rows))
        self.rows += rows

    def environment(self) -> dict[str, str]:
        """The relay's environment."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        return ours | {"PIPELINE_POSTGRES__DSN": self.dsn, "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": self.kafka}

    @contextmanager
    def relay(self) -> Iterator[psutil.Process]:
        """The relay as it is run in production."""
        code = "from pipeline.cli.connector import connector; connector()"
        command = [sys.executable, "-c", code, "run", str(self.file), "--log-level", "warning"]
        command += [part for option in self.options for part in ("-X", option)]
        with subprocess.Popen(command, env=self.environment()) as process:
            try:
                yield psutil.Process(process.pid)
            finally:
                process.terminate()
                process.wait(60)  # it drains for 25 s at most

    def published(self) -> int:
        """Return how many records the topics have, by one request."""
        latest = {
            TopicPartition(topic, partition): OffsetSpec.latest()
            for topic, partitions in self.topics.items()
            for partition in range(partitions)
        }
        return sum(found.result(15).offset for found in self.admin.list_offsets(latest).values())


def receive_only(bench: Bench, rows: int) -> tuple[float, float]:
    """Read the slot and count frames: what the server's decoder can send. Seconds, and CPU seconds of ours."""
    conn = ReplicationConnection(bench.dsn)
    conn.start(bench.name, "pipeline_outbox", 0, _STREAM)
    began, cpu, seen = time.perf_counter(), time.process_time(), 0
    while seen < rows:
        frames = conn.frames(1000, 1_000_000)
        if not frames:
            conn.receive(1)
        seen += sum(frame[25:26] == b"I" for frame in frames)
    found = time.perf_counter() - began, time.process_time() - cpu
    conn.close()
    return found


def receive_and_route(bench: Bench, rows: int) -> tuple[float, float]:
    """The same with parsing and routing, nothing produced."""
    conn = ReplicationConnection(bench.dsn)
    wait_free(bench)
    conn.start(bench.name, "pipeline_outbox", 0, _STREAM)
    changes, seen, batch = Changes(binding(bench.connector)), 0, Batch()
    began, cpu = time.perf_counter(), time.process_time()
    while seen < rows:
        frames = conn.frames(1000, 1_000_000)
        if not frames:
            conn.receive(1)
        for frame in frames:
            if frame[0] == 119:
                changes.feed(frame, batch)
        seen += len(batch.records)
        batch = Batch()
    found = time.perf_counter() - began, time.process_time() - cpu
    conn.close()
    return found


def wait_free(bench: Bench) -> None:
    """Wait until nobody reads the slot."""
    with psycopg.connect(bench.dsn, autocommit=True) as conn:
        while conn.execute(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", (bench.name,)
        ).fetchone():
            time.sleep(0.02)


def throughput(bench: Bench, rows: int) -> dict[str, float]:
    """Drain a backlog with the relay."""
    make_slot(bench)
    bench.fill(rows)
    wait_free(bench)
    alone_s, alone_cpu_s = receive_only(bench, rows)
    routed_s, routed_cpu_s = receive_and_route(bench, rows)
    wait_free(bench)
    drained = drain(bench, rows)
    return {
        "receive_only_per_s": rows / alone_s,
        "receive_only_cpu_us": alone_cpu_s / rows * 1e6,
        "routed_per_s": rows / routed_s,
        "routed_cpu_us": routed_cpu_s / rows * 1e6,
        **drained,
    }


def make_slot(bench: Bench) -> None:
    """Make the slot, so that the rows come after it."""
    source = WalSource(bench.dsn, wal_settings(bench.connector), binding(bench.connector))
    source.start()
    source.close()
    wait_free(bench)


def drain(bench: Bench, rows: int, *, at_most_s: float = 600) -> dict[str, float]:
    """Run the relay on a backlog until ``rows`` are there, or for so long: rate, CPU and peak memory of the process."""
    before = bench.published()
    with bench.relay() as process:
        while not (first := bench.published() - before):
            time.sleep(0.005)
        began, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        while (done := bench.published() - before) < rows and time.perf_counter() - began < at_most_s:
            time.sleep(0.02)
        took, cpu = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
        peak = peak_mb(process.pid)
        time.sleep(1)  # the position is stored
    return {"per_s": (done - first) / took, "cpu_us": cpu / (done - first) * 1e6, "peak_mb": peak}


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def latency(
    bench: Bench, seconds: float, rate: int, publisher: Callable[[], AbstractContextManager[object]]
) -> dict[str, float]:
    """Commit single rows at a steady rate and measure commit → consumer."""
    consumer = Consumer(
        {"bootstrap.servers": bench.kafka, "group.id": f"{bench.name}.latency", "auto.offset.reset": "latest"}
    )
    ends = [consumer.get_watermark_offsets(TopicPartition(bench.topic, p), timeout=5)[1] for p in range(PARTITIONS)]
    consumer.assign([TopicPartition(bench.topic, p, end) for p, end in enumerate(ends)])
    committed: dict[bytes, float] = {}
    took: list[float] = []
    total = int(seconds * rate)

    def write() -> None:
        with psycopg.connect(bench.dsn, autocommit=True) as conn:
            began = time.perf_counter()
            for number in range(total):
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                name = uuid.uuid4()
                conn.execute(
                    "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)"
                    " VALUES (%s, 'order', %s, 'shop.OrderPlaced', %s, %s)",
                    (name, f"order-{number}", PAYLOAD, bench.topic),
                )
                committed[str(name).encode()] = time.perf_counter()

    with publisher():
        wait_started(bench)
        writer = threading.Thread(target=write)
        writer.start()
        deadline = time.monotonic() + seconds + 30
        arrived: dict[bytes, float] = {}
        while len(arrived) < total and time.monotonic() < deadline:
            message = consumer.poll(0.1)
            if message is not None and not message.error():
                arrived[dict(message.headers() or [])["id"]] = time.perf_counter()
        writer.join()
    consumer.close()
    settled = list(arrived.items())[rate // 2 :]  # the first rows also wait for metadata
    took = sorted(max(0.0, (at - committed[name]) * 1000) for name, at in settled)
    return {
        "rate_per_s": rate,
        "events": len(arrived),
        "p50_ms": statistics.median(took),
        "p99_ms": took[int(len(took) * 0.99)],
    }


def wait_started(bench: Bench) -> None:
    """Wait until the relay reads the slot."""
    with psycopg.connect(bench.dsn, autocommit=True) as conn:
        while not conn.execute(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", (bench.name,)
        ).fetchone():
            time.sleep(0.05)
    time.sleep(1)


def servers(stack: Path | None) -> tuple[str, str]:
    """Return DSN and bootstrap servers."""
    if stack is not None:
        from pipeline.local import LocalStack

        found = LocalStack(stack).up()
        return found.postgres_dsn, found.kafka
    settings = Settings.load()
    if settings.postgres.dsn is None or settings.kafka.bootstrap_servers is None:
        raise SystemExit("set PIPELINE_POSTGRES__DSN and PIPELINE_KAFKA__BOOTSTRAP_SERVERS, or give --stack DIR")
    return settings.postgres.dsn.get_secret_value(), settings.kafka.bootstrap_servers


def tell(found: dict[str, float], rows: int) -> None:
    """Tell the relay's own figures."""
    told(
        f"relay against receive-only from the same slot, backlog of {rows:,} rows",
        f"{found['per_s']:,.0f} / {found['receive_only_per_s']:,.0f} events/s",
        found["per_s"] / found["receive_only_per_s"],
        least=0.7,
    )
    told(
        "CPU an event: relay, all threads; parsed and routed only; received only",
        f"{found['cpu_us']:.1f}, {found['routed_cpu_us']:.1f}, {found['receive_only_cpu_us']:.1f} µs",
    )


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--stack", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-X", dest="options", action="append", default=[], help="a librdkafka setting, to try it")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds = 50_000, 3
    dsn, kafka = servers(arguments.stack)
    with tempfile.TemporaryDirectory() as folder, Bench(dsn, kafka, Path(folder), tuple(arguments.options)) as bench:
        if arguments.rows:
            tell(throughput(bench, arguments.rows), arguments.rows)
        if arguments.seconds:
            if not arguments.rows:
                make_slot(bench)
            found = latency(bench, arguments.seconds, arguments.rate, bench.relay)
            shown = f"{found['p50_ms']:.2f} / {found['p99_ms']:.2f} ms"
            told(f"relay: commit → consumer at {arguments.rate}/s, p50 / p99", shown)


if __name__ == "__main__":
    main()
