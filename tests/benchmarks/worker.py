"""The worker against a bare ``poll()`` loop that decodes the same payload, in one run on one machine.

    python -m tests.benchmarks.worker [--records 300000] [--rounds 3]

Servers as PIPELINE_KAFKA__BOOTSTRAP_SERVERS says. Each figure comes from a process of its own; the parts take turns,
and medians are printed. The worker: no-op plain handlers, at least once, key order, concurrency 16. Latency: from
just before ``produce()`` to the handler, at 200 records a second.
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
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline import Event, Pipeline
from pipeline.avro import schema_of
from pipeline.codec import Decoder, encode
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import PrometheusMeter
from pipeline.probes import Readiness
from pipeline.worker import Limits, Worker
from tests.benchmarks.table import told

KEYS = 5_000
PARTITIONS = 6
RATE = 200
LATENCY_S = 10


class Clock:
    """Time and CPU time of this process since the first record."""

    begun = 0.0
    _cpu_s = 0.0

    def begin(self) -> None:
        """Begin, the first time."""
        if not self.begun:
            self.begun, self._cpu_s = time.perf_counter(), time.process_time()

    def figure(self, records: int) -> dict[str, float]:
        """Return records a second, and CPU of each in µs."""
        took, cpu_s = time.perf_counter() - self.begun, time.process_time() - self._cpu_s
        return {"per_s": round(records / took), "cpu_us": round(cpu_s / records * 1e6, 1)}


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str
    customer: str
    address: str
    note: str
    quantity: int
    sent_ns: int


class Schemas:
    def text(self, schema_id: int) -> str:
        return schema_of(Placed).text


def payload(number: int) -> bytes:
    message = Placed(
        order_id=f"order-{number % KEYS:06d}",
        customer=f"customer {number % 977}",
        address="12 Long Street, 34567 Somewhere, in the third house on the left",
        note="please leave it with the neighbours if nobody is at home " * 2,
        quantity=number % 7,
        sent_ns=time.time_ns(),
    )
    return encode(message, 1)


def send(producer: Producer, topic: str, number: int) -> None:
    headers: list[tuple[str, str | bytes | None]] = [
        ("id", f"0190a1b2-0000-7000-8000-{number:012d}"),
        ("type", "Placed"),
    ]
    producer.produce(topic, payload(number), f"order-{number % KEYS:06d}", headers=headers)


def fill(bootstrap: str, topic: str, records: int, send: Callable[[Producer, str, int], None] = send) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)], operation_timeout=10)[topic].result(15)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "partitioner": "murmur2_random"})
    for number in range(records):
        while True:
            try:
                send(producer, topic, number)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def bare(bootstrap: str, topic: str, records: int, model: type[Event] = Placed) -> dict[str, Any]:
    decoder = Decoder(Schemas())
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bare", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    seen, clock = 0, Clock()
    while seen < records:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        clock.begin()
        decoder.decode(message.value(), model)
        seen += 1
    found = clock.figure(records)
    consumer.close()
    return found


def bare_latency(bootstrap: str, topic: str) -> dict[str, Any]:
    decoder = Decoder(Schemas())
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bare"})
    consumer.assign([TopicPartition(topic, number, OFFSET_END) for number in range(PARTITIONS)])
    consumer.poll(2.0)
    feeder = feed(bootstrap, topic)
    latencies: list[float] = []
    while len(latencies) < RATE * LATENCY_S:
        message = consumer.poll(1.0)
        if message is not None and not message.error():
            latencies.append(age_ms(decoder.decode(message.value(), Placed)))
    feeder.wait()
    consumer.close()
    return percentiles(latencies)


def worker(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    clock = Clock()

    def handle(event: Placed, ctx: object) -> None:
        clock.begin()

    running, group = make(bootstrap, topic, handle)
    watcher = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    # a second look would cost what is measured: ask the worker's own watermarks
    while not clock.begun or settled(running) < records:
        time.sleep(0.005)
    found = clock.figure(records)
    running.stop()
    thread.join()
    parts = watcher.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=10)
    assert sum(part.offset for part in parts) == records
    watcher.close()
    return found


def worker_latency(bootstrap: str, topic: str) -> dict[str, Any]:
    latencies: list[float] = []
    running, _ = make(bootstrap, topic, lambda event, ctx: latencies.append(age_ms(event)), start="latest")
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.assigned_now:
        time.sleep(0.05)
    time.sleep(2)
    feeder = feed(bootstrap, topic)
    while len(latencies) < RATE * LATENCY_S:
        time.sleep(0.1)
    feeder.wait()
    running.stop()
    thread.join()
    return percentiles(latencies)


def make(bootstrap: str, topic: str, handle: Any, start: Any = "earliest") -> tuple[Worker, str]:
    app = Pipeline(f"b{secrets.token_hex(4)}", topic_prefix=topic.removesuffix("outbox.event.order"))
    app.consumer(Placed, group="bench", start=start)(handle)
    group = next(iter(app.groups.values()))
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = [NewTopic(name, 1, 1) for name in (*group.retry_topics, group.dlq)]
    for future in admin.create_topics(new, operation_timeout=10).values():
        future.result(15)
    from prometheus_client import CollectorRegistry

    consumer = GroupConsumer({"bootstrap.servers": bootstrap}, group.name)
    producer = AckProducer({"bootstrap.servers": bootstrap})
    meter = PrometheusMeter(CollectorRegistry())
    made = Worker(
        group,
        consumer,
        consumer,
        producer,
        Decoder(Schemas()),
        meter=meter,
        health=Readiness("worker"),
        limits=Limits(concurrency=16),
    )
    return made, group.name


def settled(running: Worker) -> int:
    return sum(a.watermark.position for a in list(running.assigned_now.values()) if a.tier_s is None)


def feed(bootstrap: str, topic: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.benchmarks.worker", "--part", "feed", "--topic", topic])


def feeding(bootstrap: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "partitioner": "murmur2_random"})
    producer.list_topics(topic, timeout=10)
    begun = time.perf_counter()
    for number in range(RATE * LATENCY_S):
        time.sleep(max(0.0, begun + number / RATE - time.perf_counter()))
        send(producer, topic, number)
        producer.poll(0)
    assert producer.flush(20) == 0


def age_ms(event: Any) -> float:
    return (time.time_ns() - event.sent_ns) / 1e6


def percentiles(latencies: Sequence[float]) -> dict[str, Any]:
    cut = statistics.quantiles(latencies[RATE:], n=100)
    return {"p50_ms": round(cut[49], 2), "p99_ms": round(cut[98], 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["bare", "worker", "bare_latency", "worker_latency", "feed"])
    parser.add_argument("--topic")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.records, given.rounds = 20_000, 1
    bootstrap = os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]
    if given.part == "feed":
        feeding(bootstrap, given.topic)
    elif given.part in {"bare", "worker"}:
        print(json.dumps({"bare": bare, "worker": worker}[given.part](bootstrap, given.topic, given.records)))
    elif given.part:
        part = {"bare_latency": bare_latency, "worker_latency": worker_latency}[given.part]
        print(json.dumps(part(bootstrap, given.topic)))
    else:
        compare(bootstrap, given.records, given.rounds)


def compare(bootstrap: str, records: int, rounds: int) -> None:
    topic = f"bench{secrets.token_hex(3)}.outbox.event.order"
    fill(bootstrap, topic, records)
    print(f"{records} records of {len(payload(1))} bytes, {PARTITIONS} partitions, {KEYS} keys")
    rates: dict[str, list[dict[str, Any]]] = {"bare": [], "worker": []}
    for _ in range(rounds):
        for part, figures in rates.items():
            figures.append(run(part, topic, records))
            print(f"  {part:8} {figures[-1]['per_s']:>9,}/s  {figures[-1]['cpu_us']} µs CPU a record")
    ours, theirs = middle(rates["worker"], "per_s"), middle(rates["bare"], "per_s")
    told("worker against a bare poll() loop: Avro", f"{ours:,.0f} / {theirs:,.0f} records/s", ours / theirs, least=0.5)
    slow = f"bench{secrets.token_hex(3)}.outbox.event.order"
    fill(bootstrap, slow, 0)
    late: dict[str, list[dict[str, Any]]] = {"bare_latency": [], "worker_latency": []}
    for _ in range(rounds):
        for part, figures in late.items():
            figures.append(run(part, slow, 0))
            print(f"  {part:15} p50 {figures[-1]['p50_ms']} ms  p99 {figures[-1]['p99_ms']} ms")
    for name in ("p50_ms", "p99_ms"):
        ours, theirs = middle(late["worker_latency"], name), middle(late["bare_latency"], name)
        what = f"produce() → handler at {RATE}/s against a bare poll() loop, {name[:3]}"
        told(what, f"{ours:.2f} / {theirs:.2f} ms", ours / theirs, most=1.5)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in admin.delete_topics([topic, slow]).values():
        deleted.result(15)


def run(part: str, topic: str, records: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.worker", "--part", part, "--topic", topic]
    done = subprocess.run([*command, "--records", str(records)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def middle(figures: Sequence[dict[str, Any]], name: str) -> float:
    return float(statistics.median(figure[name] for figure in figures))


if __name__ == "__main__":
    main()
