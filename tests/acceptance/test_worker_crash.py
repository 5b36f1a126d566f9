"""Workers killed, the broker killed, one worker drained, all under load; then every event id is audited."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, ConsumerGroupState, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from figures import Figure
from relays import until

from pipeline.kafka.extent import extent
from pipeline.local import Endpoints, LocalStack
from pipeline.progress import Mark, Progress

SEED = 20_240_506
KEYS = 40
RATE = 300
APP = """
import asyncio, os, time
from pipeline import Context, Event, Job, Pipeline, Reject, RetryPolicy

app = Pipeline("crash", topic_prefix=os.environ["PREFIX"] + ".", partitions=6)
log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int

class Mail(Job, queue="email", format="json"):
    n: int

def note(what, key, n, ctx):
    os.write(log, f"{what} {ctx.event_id} {key} {n} {ctx.attempt}\\n".encode())

@app.consumer(Placed, group="billing", retry=RetryPolicy(attempts=3, first_s=0.2, cap_s=0.5))
def bill(event: Placed, ctx: Context) -> None:
    if event.n % 97 == 0:
        raise Reject("never")
    if event.n % 41 == 0 and ctx.attempt == 1:
        raise ValueError("once")
    time.sleep(0.003)
    note("billed", event.order_id, event.n, ctx)

@app.job(Mail, retry=RetryPolicy(attempts=4, first_s=0.5, factor=1))
async def send(job: Mail, ctx: Context) -> None:
    if job.n % 89 == 0 or (job.n % 13 == 0 and ctx.attempt == 1):
        raise ValueError("not now")
    await asyncio.sleep(0.003)
    note("mailed", "-", job.n, ctx)
"""


class Workers:
    """``pipeline consumer run`` as processes."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = dict(env)
        self._errors = (folder / "workers.log").open("ab")
        self.alive: list[subprocess.Popen[bytes]] = []

    def cli(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        command = ["consumer", "run", "crashing:app", "--concurrency", "8", "--drain-timeout", "10"]
        # a killed member must be noticed within the test's time
        command += ["-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=1000"]
        self.alive.append(
            subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command], cwd=self._folder, env=self._env, stderr=self._errors
            )
        )

    def kill(self, which: int) -> None:
        process = self.alive.pop(which)
        assert process.poll() is None, "a worker ended by itself"
        process.kill()
        process.wait()

    def drain(self, which: int) -> int:
        process = self.alive.pop(which)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def end(self) -> None:
        for process in self.alive:
            process.kill()
            process.wait()
        self._errors.close()


class Load:
    """Events and jobs at a steady rate; ``stored`` are the ids that the broker acknowledged."""

    def __init__(self, bootstrap: str, topics: tuple[str, str]) -> None:
        self.stored: set[str] = set()
        self._topics = topics
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "message.timeout.ms": 0,
                "partitioner": "murmur2_random",
                "linger.ms": 2,
            }
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0

    def waiting(self) -> int:
        """How many the broker has not acknowledged."""
        return len(self._producer)

    def _run(self) -> None:
        n = 0
        while not self._stop.wait(10 / RATE):
            for _ in range(10):
                n += 1
                key = f"k{n % KEYS}"
                self._put(self._topics[0], "Placed", f"b{n}", key, {"order_id": key, "n": n})
                if n % 3 == 0:
                    self._put(self._topics[1], "Mail", f"m{n}", f"m{n}", {"n": n})
            self._producer.poll(0)

    def _put(self, topic: str, kind: str, event_id: str, key: str, data: object) -> None:
        headers: list[tuple[str, str | bytes | None]] = [("id", event_id), ("type", kind)]
        self._producer.produce(topic, json.dumps(data), key, headers=headers, on_delivery=partial(self._note, event_id))

    def _note(self, event_id: str, error: object, _message: object) -> None:
        assert error is None
        self.stored.add(event_id)


@pytest.mark.timeout(280)
def test_kills_of_workers_and_broker_lose_nothing_and_keep_the_order_of_keys(
    private_stack: LocalStack,
    private_endpoints: Endpoints,
    private_cli_environment: dict[str, str],
    prefix: str,
    tmp_path: Path,
    figure: Figure,
) -> None:
    chance = random.Random(SEED)
    (tmp_path / "crashing.py").write_text(APP)
    journal = tmp_path / "handled.log"
    journal.touch()
    workers = Workers(tmp_path, {**private_cli_environment, "PREFIX": prefix, "LOG": str(journal)})
    workers.cli("topics", "apply", "crashing:app")
    events, jobs = f"{prefix}.outbox.event.order", f"{prefix}.crash.jobs.email"
    billing = f"{prefix}.crash.billing"
    kafka = private_endpoints.kafka
    watched = {billing: [events], jobs: [jobs, f"{jobs}.retry.0s", f"{jobs}.retry.500ms"]}
    load = Load(kafka, (events, jobs))
    kills = 0
    try:
        for _ in range(3):
            workers.start()
        until(lambda: lines(journal) > 500, "workers handle", 120)
        for step in range(5):
            before = lines(journal)
            workers.kill(chance.randrange(len(workers.alive)))
            workers.start()
            kills += 1
            until(lambda before=before: lines(journal) > before + 500, "workers go on")  # type: ignore[misc]
            if step == 2:
                # a record is condemned by five ends: no three kills and no two can, with nothing suspect in between
                until(lambda: whole(kafka, billing) and calm(kafka, watched), "all have joined, nothing is suspect")
                before = lines(journal)
                private_stack.kill("kafka")
                until(lambda: load.waiting() > 100, "records wait for the broker")
                private_stack.start("kafka")
                until(lambda before=before: lines(journal) > before + 500, "workers go on")  # type: ignore[misc]
                until(lambda: calm(kafka, watched), "nothing is suspect")
        assert workers.drain(0) == 0
        workers.start()
        load.end()
        until(lambda: all(lag(kafka, *pair) == 0 for pair in ((billing, events), (jobs, jobs))), "all is committed")
        until(lambda: all(lag(kafka, jobs, f"{jobs}.retry.{t}") == 0 for t in ("0s", "500ms")), "no retries left")
        codes = [workers.drain(0) for _ in list(workers.alive)]
    finally:
        load.end()
        workers.end()
    assert codes == [0, 0, 0]

    handled = [line.split() for line in journal.read_text().splitlines()]
    counts = Counter(event_id for _, event_id, *_ in handled)
    dead = Counter(letters(kafka, f"{billing}.dlq") + letters(kafka, f"{jobs}.dlq"))
    lost = load.stored - set(counts) - set(dead)
    firsts: defaultdict[str, list[int]] = defaultdict(list)
    seen: set[str] = set()
    for what, event_id, key, n, _ in handled:
        if what == "billed" and event_id not in seen:
            firsts[key].append(int(n))
        seen.add(event_id)
    repeated = sum(count - 1 for count in counts.values())
    figure(
        f"{len(load.stored)} stored, {len(counts)} handled, {len(dead)} dead, {len(lost)} lost,"
        f" {repeated} handled again, {sum(dead.values()) - len(dead)} dead again;"
        f" {kills} workers and 1 broker killed"
    )
    assert not lost
    assert set(counts) | set(dead) == load.stored
    assert {event_id for event_id in dead if event_id[0] == "b"} == {
        event_id for event_id in load.stored if event_id[0] == "b" and int(event_id[1:]) % 97 == 0
    }
    assert {event_id for event_id in dead if event_id[0] == "m"} == {
        event_id for event_id in load.stored if event_id[0] == "m" and int(event_id[1:]) % 89 == 0
    }
    out_of_order = {key: numbers for key, numbers in firsts.items() if numbers != sorted(numbers)}
    assert not out_of_order
    assert repeated < len(counts) / 2


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n")


def whole(bootstrap: str, group: str) -> bool:
    """Whether three workers have joined a group, and no others are missed."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    found = admin.describe_consumer_groups([group], request_timeout=60)[group].result()
    return found.state == ConsumerGroupState.STABLE and len(found.members) == 3


def calm(bootstrap: str, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether no record is suspect, and none would be if its worker ended now."""
    for group, topics in groups.items():
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
        try:
            known = consumer.list_topics(timeout=60).topics
            parts = [TopicPartition(topic, n) for topic in topics for n in known[topic].partitions]
            for stored in consumer.committed(parts, timeout=60):
                progress = Progress.read(Mark(stored.offset, stored.metadata or ""))
                if progress.suspects or progress.begun:
                    return False
        finally:
            consumer.close()
    return True


def lag(bootstrap: str, group: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    try:
        numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        parts = [TopicPartition(topic, number) for number in numbers]
        ends = sum(extent(consumer, part.topic, part.partition, 60)[1] for part in parts)
        return ends - sum(max(0, part.offset) for part in consumer.committed(parts, timeout=60))
    finally:
        consumer.close()


def letters(bootstrap: str, topic: str) -> list[str]:
    """The ids of a topic's dead letters."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "audit", "enable.auto.commit": False})
    try:
        numbers = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        bounds = {n: extent(consumer, topic, n, 60) for n in numbers}
        consumer.assign([TopicPartition(topic, n, low) for n, (low, high) in bounds.items() if high > low])
        wanted = sum(high - low for low, high in bounds.values())
        found: list[str] = []
        end = time.monotonic() + 90
        while len(found) < wanted:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                headers = dict(message.headers() or [])
                found.append(headers["id"].decode())  # type: ignore[union-attr]
            assert time.monotonic() < end, f"{topic}: {len(found)} of {wanted}"
        return found
    finally:
        consumer.close()
