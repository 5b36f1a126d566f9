"""The worker against other Python consumers, on one topic, in one run on one machine.

    python -m tests.benchmarks.peers [--records 200000] [--rounds 2] [--only NAME …] [--python312 FILE]

Servers as PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_POSTGRES__DSN say. Peers are installed by the first run into
environments of their own, never beside the project; one of them needs Python 3.12. Each figure comes from a process of
its own: one process, no-op handlers, JSON of some 230 bytes decoded, at least once, from the first record handled to
the last. Slow peers get fewer records, and ``tracked``, our worker on jobs whose rows it updates, as many as pgqueuer.
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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg.conninfo import conninfo_to_dict

from pipeline import Event, Pipeline
from pipeline.codec import Decoder
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import PrometheusMeter
from pipeline.postgres.migrations import migrate
from pipeline.probes import Readiness
from pipeline.worker import Limits, Worker
from tests.benchmarks.jobs import Tracked, drain
from tests.benchmarks.table import missing, told
from tests.benchmarks.worker import KEYS, Clock, Schemas, bare, fill, settled

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import new_database

ROOT = Path(__file__).parents[2]
PACKAGES = {
    ".venv-peers": ("quixstreams==3.28.1", "faststream[confluent]==0.7.8", "pgqueuer[asyncpg]==1.6.0"),
    ".venv-peers312": ("pyrallel-consumer==1.0.0",),
}
TARGETS = {"bare": 0.5, "pyrallel-consumer": 3, "pgqueuer": 3, "faststream": 20}
SHARES = {"faststream": 10, "pgqueuer": 5, "tracked": 5, "pyrallel-consumer": 5}
"""Of the records: one in so many."""
_MEASURE = """
import json, os, sys, time
BOOTSTRAP, TOPIC, RECORDS, DSN = (os.environ[name] for name in ("BOOTSTRAP", "TOPIC", "RECORDS", "DSN"))
RECORDS = int(RECORDS)
seen, begun, cpu_s = 0, 0.0, 0.0

def handled(value):
    global seen, begun, cpu_s
    if not seen:
        begun, cpu_s = time.perf_counter(), time.process_time()
    if isinstance(value, (bytes, str)):
        json.loads(value)
    seen += 1
    if seen == RECORDS:
        took, cpu_us = time.perf_counter() - begun, (time.process_time() - cpu_s) / RECORDS * 1e6
        print(json.dumps({"per_s": round(RECORDS / took), "cpu_us": round(cpu_us, 1)}), flush=True)
        os._exit(0)
"""
PEERS: dict[str, str] = {
    "quixstreams": """
from quixstreams import Application
app = Application(
    broker_address=BOOTSTRAP, consumer_group=TOPIC + "-quix", auto_offset_reset="earliest", loglevel="ERROR"
)
stream = app.dataframe(app.topic(TOPIC, value_deserializer="json", key_deserializer="bytes"))
stream.update(handled)
app.run()
""",
    "faststream": """
import asyncio, logging
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker
broker = KafkaBroker(BOOTSTRAP, logger=None)

@broker.subscriber(TOPIC, group_id=TOPIC + "-fast", auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(body: dict) -> None:
    handled(body)

asyncio.run(FastStream(broker, logger=None).run(log_level=logging.ERROR))
""",
    "pgqueuer": """
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
    "pyrallel-consumer": """
import asyncio, logging
from pyrallel_consumer.config import KafkaConfig
from pyrallel_consumer.consumer import PyrallelConsumer
logging.disable(logging.WARNING)
config = KafkaConfig()
config.BOOTSTRAP_SERVERS = [BOOTSTRAP]
config.CONSUMER_GROUP = TOPIC + "-pyrallel"
config.parallel_consumer.worker_pool_size = 16
config.parallel_consumer.poll_batch_size = 200

async def work(item):
    handled(item.payload)

async def main():
    await PyrallelConsumer(config=config, worker=work, topic=TOPIC).start()
    await asyncio.Event().wait()

asyncio.run(main())
""",
}


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    customer: str
    note: str
    quantity: int


def send(producer: Producer, topic: str, number: int) -> None:
    key = f"order-{number % KEYS:06d}"
    value = json.dumps({"order_id": key, "customer": f"customer {number % 977}", "note": "n" * 140, "quantity": 3})
    producer.produce(topic, value, key, headers=[("id", f"e{number}"), ("type", "Placed")])


def ours(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    clock = Clock()

    def handle(event: Placed, ctx: object) -> None:
        clock.begin()

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
    while not clock.begun or settled(running) < records:
        time.sleep(0.005)
    found = clock.figure(records)
    running.stop()
    thread.join()
    return found


def tracked(bootstrap: str, topic: str, records: int) -> dict[str, Any]:
    """Jobs whose rows are updated as they run: what a queue in PostgreSQL does."""
    with psycopg.connect(os.environ["DSN"], autocommit=True) as conn:
        migrate(conn)
    return {"per_s": round(drain(os.environ["DSN"], bootstrap, Tracked, records))}


def installed(python: str, name: str) -> Path:
    """Return the Python of an environment of peers, which is made where it is not there yet."""
    made, packages = ROOT / name / "bin" / "python", PACKAGES[name]
    if not (ROOT / name / "installed").exists():
        print(f"installing {', '.join(packages)} into {name}", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", ROOT / name], check=True)
        subprocess.run([made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        (ROOT / name / "installed").touch()
    return made


def pythons(names: Sequence[str], python312: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Return peer → its Python, and peer → why there is none for it."""
    found: dict[str, Path] = {}
    why: dict[str, str] = {}
    for name in names:
        newer = name == "pyrallel-consumer"
        try:
            if newer:
                needs = "import sys; sys.exit(sys.version_info < (3, 12))"
                subprocess.run([python312, "-c", needs], check=True, capture_output=True)
            found[name] = installed(python312 if newer else sys.executable, f".venv-peers{'312' if newer else ''}")
        except (OSError, subprocess.CalledProcessError):
            why[name] = f"it needs Python ≥ 3.12, and {python312} is none" if newer else "it could not be installed"
    return found, why


def run(name: str, python: Path | None, topic: str, records: int, dsn: str) -> dict[str, Any]:
    """Measure one, in a process of its own. ``python``: a peer's, None for a part of this module."""
    env = os.environ | {
        "BOOTSTRAP": os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"],
        "TOPIC": topic,
        "RECORDS": str(records),
        "DSN": dsn,
    }
    command = [str(python), "-c", _MEASURE + PEERS[name]] if python else [sys.executable, "-m", __spec__.name]
    command += [] if python else ["--part", name, "--topic", topic, "--records", str(records)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{name} ended with code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def compare(names: list[str], records: int, rounds: int, python312: str) -> None:
    """Measure all, taking turns, and tell how ours stands against each."""
    bootstrap, dsn = os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"], os.environ["PIPELINE_POSTGRES__DSN"]
    topic = f"bench{secrets.token_hex(3)}.outbox.event.order"
    there, why = pythons(names, python312)
    fill(bootstrap, topic, records, send)
    parts = [*PARTS, *there]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    for name in parts * rounds:
        with new_database(dsn) as database:
            share = records // SHARES.get(name, 1)
            found[name].append(run(name, there.get(name), topic, share, _url(database.dsn)))
        print(f"  {name:18} {found[name][-1]['per_s']:>9,}/s", flush=True)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([topic])[topic].result(15)
    middle = {
        name: {figure: statistics.median(one[figure] for one in figures) for figure in figures[0]}
        for name, figures in found.items()
    }
    pairs = [("ours", name) for name in ("bare", *names)] + ([("tracked", "pgqueuer")] if "pgqueuer" in names else [])
    for ours, theirs in pairs:
        what = f"{_TITLES[ours]} against {_TITLES.get(theirs, theirs)}"
        least = 1.0 if ours == "tracked" else TARGETS.get(theirs)
        if theirs in why:
            missing(what, why[theirs], least=least)
            continue
        mine, other = middle[ours], middle[theirs]
        shown = f"{mine['per_s']:,.0f} / {other['per_s']:,.0f} records/s"
        if "cpu_us" in mine:
            shown += f", {mine['cpu_us']:.1f} / {other['cpu_us']:.1f} µs CPU"
        told(what, shown, mine["per_s"] / other["per_s"], least=least)


def _url(dsn: str) -> str:
    """Return a libpq DSN as the URL that asyncpg takes too."""
    host = conninfo_to_dict(dsn)
    return f"postgresql://{host['user']}:{host.get('password', '')}@{host['host']}:{host['port']}/{host['dbname']}"


PARTS = {"bare": partial(bare, model=Placed), "ours": ours, "tracked": tracked}
_TITLES = {"bare": "a bare poll() loop: JSON", "ours": "worker", "tracked": "tracked jobs drained"}


def main() -> None:
    """Compare, or run one part."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=sorted(PEERS), default=sorted(PEERS))
    parser.add_argument("--python312", default="python3.12")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--topic")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](os.environ["BOOTSTRAP"], given.topic, given.records)))
        return
    records, rounds = (20_000, 1) if given.quick else (given.records, given.rounds)
    compare(given.only, records, rounds, given.python312)


if __name__ == "__main__":
    main()
