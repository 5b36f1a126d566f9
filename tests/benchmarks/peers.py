"""The worker against other Python consumers, on one topic, in one run on one machine.

    python -m tests.benchmarks.peers [--records 200000] [--rounds 3] [--only NAME …]

Servers as PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_POSTGRES__DSN say. Peers are installed into ``.venv-peers`` by
the first run, never beside the project. Each figure comes from a process of its own: one process, no-op handlers, JSON
of some 230 bytes decoded, at least once, from the first record handled to the last. Slow peers get fewer records.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline import Event, Pipeline
from pipeline.codec import Decoder
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import PrometheusMeter
from pipeline.probes import Readiness
from pipeline.worker import Limits, Worker
from tests.benchmarks.worker import KEYS, PARTITIONS, Schemas, figure, settled

VENV = Path(__file__).parents[2] / ".venv-peers"
PACKAGES = ("quixstreams==3.28.1", "faststream[confluent]==0.7.8", "pgqueuer[asyncpg]==1.6.0")
_MEASURE = """
import json, os, resource, sys, time
BOOTSTRAP, TOPIC, RECORDS, DSN = (os.environ[name] for name in ("BOOTSTRAP", "TOPIC", "RECORDS", "DSN"))
RECORDS = int(RECORDS)
seen, begun = 0, 0.0

def handled(value):
    global seen, begun
    if isinstance(value, (bytes, str)):
        json.loads(value)
    if not seen:
        begun = time.perf_counter()
    seen += 1
    if seen == RECORDS:
        took, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        cpu_us = (used.ru_utime + used.ru_stime) / RECORDS * 1e6
        print(json.dumps({"per_s": round(RECORDS / took), "cpu_us": round(cpu_us, 1)}), flush=True)
        os._exit(0)
"""
PEERS: dict[str, tuple[int, str]] = {
    "quixstreams": (
        1,
        """
from quixstreams import Application
app = Application(
    broker_address=BOOTSTRAP, consumer_group=TOPIC + "-quix", auto_offset_reset="earliest", loglevel="ERROR"
)
stream = app.dataframe(app.topic(TOPIC, value_deserializer="json", key_deserializer="bytes"))
stream.update(handled)
app.run()
""",
    ),
    "faststream": (
        10,
        """
import asyncio, logging
from faststream import FastStream
from faststream.confluent import KafkaBroker
broker = KafkaBroker(BOOTSTRAP, logger=None)

@broker.subscriber(TOPIC, group_id=TOPIC + "-fast", auto_offset_reset="earliest")
async def handle(body: dict) -> None:
    handled(body)

asyncio.run(FastStream(broker, logger=None).run(log_level=logging.ERROR))
""",
    ),
    "pgqueuer": (
        5,
        """
import asyncio, asyncpg, subprocess
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

async def main():
    connection = await asyncpg.connect(DSN)
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    await queries.install()
    body = json.dumps({"order_id": "order-000001", "note": "x" * 190}).encode()
    for first in range(0, RECORDS, 5000):
        many = min(5000, RECORDS - first)
        await queries.enqueue(["job"] * many, [body] * many, [0] * many)
    queue = PgQueuer(driver)

    @queue.entrypoint("job")
    async def job(job):
        handled(job.payload)

    await queue.run(batch_size=100)

asyncio.run(main())
""",
    ),
}


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    customer: str
    note: str
    quantity: int


def fill(bootstrap: str, topic: str, records: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)], operation_timeout=10)[topic].result(15)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "partitioner": "murmur2_random"})
    for number in range(records):
        key = f"order-{number % KEYS:06d}"
        value = json.dumps({"order_id": key, "customer": f"customer {number % 977}", "note": "n" * 140, "quantity": 3})
        headers: list[tuple[str, str | bytes | None]] = [("id", f"e{number}"), ("type", "Placed")]
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def bare(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    decoder = Decoder(Schemas())
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bare", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    seen, begun = 0, 0.0
    while seen < records:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        begun = begun or time.perf_counter()
        decoder.decode(message.value(), Placed)
        seen += 1
    took = time.perf_counter() - begun
    consumer.close()
    return figure(records, took)


def ours(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    moments: list[float] = []

    def handle(event: Placed, ctx: object) -> None:
        if not moments:
            moments.append(time.perf_counter())

    app = Pipeline(f"b{secrets.token_hex(4)}", topic_prefix=topic.removesuffix("outbox.event.order"))
    app.consumer(Placed, group="bench")(handle)
    [group] = app.groups.values()
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = [NewTopic(name, 1, 1) for name in (*group.retry_topics, group.dlq)]
    for future in admin.create_topics(new, operation_timeout=10).values():
        future.result(15)
    from prometheus_client import CollectorRegistry

    consumer = GroupConsumer({"bootstrap.servers": bootstrap}, group.name)
    running = Worker(
        group,
        consumer,
        consumer,
        AckProducer({"bootstrap.servers": bootstrap}),
        Decoder(Schemas()),
        meter=PrometheusMeter(CollectorRegistry()),
        health=Readiness("worker"),
        limits=Limits(concurrency=16),
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not moments or settled(running) < records:
        time.sleep(0.005)
    took = time.perf_counter() - moments[0]
    running.stop()
    thread.join()
    return figure(records, took)


def installed() -> Path:
    python = VENV / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(PACKAGES)} into {VENV.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def run(name: str, topic: str, records: int, database: str) -> dict[str, Any]:
    env = os.environ | {
        "BOOTSTRAP": os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"],
        "TOPIC": topic,
        "RECORDS": str(records),
        "DSN": database,
    }
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.peers",
        "--part",
        name,
        "--topic",
        topic,
        "--records",
        str(records),
    ]
    if name in PEERS:
        command = [str(installed()), "-c", _MEASURE + PEERS[name][1]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{name} ended with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def compare(names: list[str], records: int, rounds: int) -> None:
    import psycopg

    bootstrap = os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]
    topic = f"bench{secrets.token_hex(3)}.outbox.event.order"
    fill(bootstrap, topic, records)
    print(f"{records} records, {PARTITIONS} partitions, {KEYS} keys, {os.cpu_count()} cores")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("bare", "ours", *names)}
    dsn = os.environ["PIPELINE_POSTGRES__DSN"]
    for _ in range(rounds):
        for name, figures in found.items():
            database = f"peers_{secrets.token_hex(3)}"
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(f"CREATE DATABASE {database}".encode())
                own = psycopg.conninfo.make_conninfo(dsn, dbname=database)
                host = psycopg.conninfo.conninfo_to_dict(own)
                url = f"postgresql://{host['user']}:{host.get('password', '')}@{host['host']}:{host['port']}/{database}"
                share = PEERS[name][0] if name in PEERS else 1
                figures.append(run(name, topic, records // share, url))
                conn.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())
            print(f"  {name:12} {figures[-1]['per_s']:>9,}/s  {figures[-1]['cpu_us']} µs CPU a record", flush=True)
    middle = {name: statistics.median(one["per_s"] for one in figures) for name, figures in found.items()}
    for name in ("bare", *names):
        print(f"ours against {name}: {middle['ours'] / middle[name]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(PEERS), default=sorted(PEERS))
    parser.add_argument("--part", choices=["bare", "ours"])
    parser.add_argument("--topic")
    given = parser.parse_args()
    if given.part:
        part = {"bare": bare, "ours": ours}[given.part]
        print(json.dumps(part(os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"], given.topic, given.records)))
    else:
        compare(given.only, given.records, given.rounds)


if __name__ == "__main__":
    main()
