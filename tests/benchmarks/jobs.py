"""Jobs: enqueueing, draining tracked ones, the scheduler's lateness, what waiting rows cost, and lists of many.

    python -m tests.benchmarks.jobs [--jobs 20000] [--waiting 10000000] [--tracked 1000000] [--rounds 3] [--only lists]

Servers as PIPELINE_POSTGRES__DSN and PIPELINE_KAFKA__BOOTSTRAP_SERVERS say; a database of its own is made and dropped.
Medians of rounds, the parts taking turns. Plain inserts are the same outbox rows by one multi-row INSERT each, without
anything of ours.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg.conninfo import make_conninfo

from pipeline import Context, Job, Outbox, Pipeline, jobs
from pipeline.codec import Decoder
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.metrics import SilentMeter
from pipeline.outbox import Steps, drive, uuid7
from pipeline.postgres.due import DueStore
from pipeline.postgres.jobs import JobRows
from pipeline.postgres.migrations import migrate
from pipeline.postgres.tidy import fold
from pipeline.probes import Readiness
from pipeline.scheduler import Moved, Scheduler
from pipeline.worker import Limits, Worker
from pipeline.worker.journal import Control, Journal
from pipeline.writers.psycopg import executor
from tests.benchmarks.table import told

BULK = 1_000
SINGLE = 500
PART = 10_000  # rows
DUE_A_SECOND = 1_000
DUE_S = 8


class Tracked(Job, queue="tracked", format="json"):
    order_id: str
    note: str = "please leave it with the neighbours if nobody is at home"


class Loose(Job, queue="loose", format="json", track=False):
    order_id: str
    note: str = "please leave it with the neighbours if nobody is at home"


@contextmanager
def database(dsn: str) -> Iterator[str]:
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
    own = make_conninfo(dsn, dbname=name)
    with psycopg.connect(own, autocommit=True) as conn:
        migrate(conn)
    try:
        yield own
    finally:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def rate(count: int, work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


def plain(conn: psycopg.Connection[Any], count: int) -> None:
    row = (
        "loose",
        "k",
        "Loose",
        b'{"order_id":"7","note":"please leave it with the neighbours if nobody is at home"}',
        "t",
    )
    sql = "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic) VALUES "
    values = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * count)
    conn.execute((sql + values).encode(), [value for _ in range(count) for value in (uuid7(), *row)])


def enqueueing(dsn: str, count: int, rounds: int) -> None:
    app = Pipeline("bench", topic_prefix="")
    found: dict[str, list[float]] = {}
    with psycopg.connect(dsn) as conn:

        def bulk(store: Callable[[], object]) -> Callable[[], None]:
            def work() -> None:
                for _ in range(count // BULK):
                    store()
                    conn.commit()

            return work

        def single(store: Callable[[], object]) -> Callable[[], None]:
            def work() -> None:
                for _ in range(SINGLE):
                    store()
                    conn.commit()

            return work

        parts: dict[str, tuple[int, Callable[[], None]]] = {
            "bulk: plain INSERT": (count, bulk(lambda: plain(conn, BULK))),
            "bulk: untracked": (count, bulk(lambda: app.enqueue_many(conn, [Loose(order_id="7")] * BULK))),
            "bulk: tracked": (count, bulk(lambda: app.enqueue_many(conn, [Tracked(order_id="7")] * BULK))),
            "bulk: delayed": (count, bulk(lambda: app.enqueue_many(conn, [Tracked(order_id="7")] * BULK, delay_s=9e6))),
            "single: plain INSERT": (SINGLE, single(lambda: plain(conn, 1))),
            "single: untracked": (SINGLE, single(lambda: app.enqueue(conn, Loose(order_id="7")))),
            "single: tracked": (SINGLE, single(lambda: app.enqueue(conn, Tracked(order_id="7")))),
        }
        for _ in range(rounds):
            for name, (many, work) in parts.items():
                found.setdefault(name, []).append(rate(many, work))
        conn.execute("TRUNCATE pipeline.outbox, pipeline.due, pipeline.job")
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    for name, ours in middle.items():
        base = middle[f"{name.partition(':')[0]}: plain INSERT"]
        if ours is not base:
            told(f"enqueue, {name}, against plain INSERT", f"{ours:,.0f} / {base:,.0f} jobs/s", ours / base)


def moving(dsn: str, waiting: int) -> None:
    """Lateness at a steady rate, and cost of a due row, with few and with many rows that wait behind."""
    costs: list[float] = []
    for behind in (10_000, waiting):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("TRUNCATE pipeline.outbox, pipeline.due, pipeline.job, pipeline.job_delta")
            conn.execute("SET synchronous_commit = off")
            for first in range(0, behind, PART):  # in parts: a long transaction holds up whoever makes a slot
                conn.execute(_WAITING, (first, first + PART - 1))
            conn.execute("VACUUM ANALYZE pipeline.due")
        p50, p99 = lateness(dsn)
        what = f"scheduler's lateness at {DUE_A_SECOND:,} due/s, {behind:,} waiting, p99"
        told(what, f"p50 {p50:.0f} ms", p99, most=250, unit=" ms")
        costs.append(statistics.median(cost(dsn) for _ in range(3)))
    few, many = costs
    what = f"cost of a due row with {waiting:,} waiting, against 10,000"
    told(what, f"{many:.0f} / {few:.0f} µs", many / few, most=1.2)


def lateness(dsn: str) -> tuple[float, float]:
    """Run a scheduler on jobs that become due at a steady rate; p50 and p99 in ms."""
    app = Pipeline("bench", topic_prefix="")
    late: list[float] = []

    def moved(late_s: list[float], now: Any, late: list[float] = late) -> Moved:
        late.extend(late_s)
        return Moved(late_s, now)

    store = DueStore(dsn, Outbox(), moved)
    until = threading.Event()
    scheduler = Scheduler(store, (), tidy=store.tidy, meter=SilentMeter(), health=Readiness("scheduler"))
    thread = threading.Thread(target=scheduler.run, args=(until,))
    with psycopg.connect(dsn) as conn:
        for step in range(DUE_S * 20):
            delay_s = 2 + step / 20
            app.enqueue_many(conn, [Tracked(order_id="7")] * (DUE_A_SECOND // 20), delay_s=delay_s)
        conn.commit()
    thread.start()
    while len(late) < DUE_S * DUE_A_SECOND:
        time.sleep(0.1)
    until.set()
    thread.join()
    store.close()
    late.sort()
    return late[len(late) // 2] * 1000, late[len(late) * 99 // 100] * 1000


def cost(dsn: str, rows: int = 20_000) -> float:
    """Return µs per due row when many are due at once."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO pipeline.due (id, due_at, aggregatetype, aggregateid, type, payload, topic)"
            " SELECT gen_random_uuid(), now(), 'q', 'k', 'T', 'x', 't' FROM generate_series(1, %s)",
            (rows,),
        )
    store = DueStore(dsn, Outbox(), Moved)
    begun, moved = time.perf_counter(), 0
    while moved < rows:
        moved += len(store.move(500).late_s)
    took = time.perf_counter() - begun
    store.close()
    return took / rows * 1e6


def lists(dsn: str, most: int, rounds: int) -> None:
    """Pages, one row and counts, with few and with many tracked jobs."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE pipeline.outbox, pipeline.due, pipeline.job, pipeline.job_delta, pipeline.job_count")
        held = 0
        for rows in (10_000, most):
            for first in range(held, rows, PART):
                conn.execute(_JOBS, (first + 1, first + PART))
            held = rows
            conn.execute("VACUUM ANALYZE pipeline.job")
            fold(conn, rows)
            newest, since = f"{rows:012x}{0:020x}", datetime.fromtimestamp(rows * 0.999 / 1000, UTC)
            asked: dict[str, Callable[[], Steps[Any]]] = {
                "list": jobs.listing,
                "list --queue": lambda: jobs.listing(queue="q1"),
                "list --queue --state dead": lambda: jobs.listing(queue="q1", state="dead"),
                "list --type --before": lambda rows=rows: jobs.listing(
                    type_name="T2", before=f"{rows // 2:012x}{0:020x}"
                ),
                "list --tag, of few": lambda: jobs.listing(tag="rare"),
                "list --tag, of all": lambda: jobs.listing(tag="all"),
                "list --state done --since": lambda since=since: jobs.listing(state="done", since=since),
                "list --counts": jobs.counts,
                "show": lambda newest=newest: jobs.find(newest),
            }
            took: dict[str, float] = {}
            for name, ask in asked.items():
                took[name] = statistics.median(_asked(conn, ask) for _ in range(5 * rounds)) * 1000
                print(f"  {name:<26} of {rows:>10,}: {took[name]:6.1f} ms")
            slowest, which = max((ms, name) for name, ms in took.items())
            told(f"pipeline jobs, slowest of {len(asked)} ways, of {rows:,} jobs", f"{slowest:.1f} ms ({which})")


def _asked(conn: psycopg.Connection[Any], ask: Callable[[], Steps[Any]]) -> float:
    begun = time.perf_counter()
    with conn.transaction():
        drive(ask(), executor(conn))
    return time.perf_counter() - begun


_WAITING = """
INSERT INTO pipeline.due (id, due_at, aggregatetype, aggregateid, type, payload, topic)
SELECT CAST(lpad(to_hex(n), 12, '0') || repeat('0', 20) AS uuid), now() + make_interval(secs => 3600 + n),
       'q', 'k', 'T', 'x', 't'
FROM generate_series(CAST(%s AS bigint), %s) AS n
"""

_JOBS = """
INSERT INTO pipeline.job (id, queue, type, state, tags)
SELECT CAST(lpad(to_hex(n), 12, '0') || repeat('0', 20) AS uuid), 'q' || n %% 3, 'T' || n %% 5,
       CASE WHEN n %% 1000 = 0 THEN 'dead' ELSE 'done' END,
       CASE WHEN n %% 5000 = 0 THEN ARRAY['all', 'rare'] ELSE ARRAY['all'] END
FROM generate_series(CAST(%s AS bigint), %s) AS n
"""


def draining(dsn: str, bootstrap: str, count: int, rounds: int) -> None:
    """No-op jobs by one worker in this process: tracked ones with their rows updated, and untracked ones."""
    for model in (Tracked, Loose):
        with psycopg.connect(dsn) as conn:
            conn.execute("TRUNCATE pipeline.outbox, pipeline.job, pipeline.job_delta")
        found = statistics.median(drain(dsn, bootstrap, model, count) for _ in range(rounds))
        told(f"no-op jobs drained by one process, {model.__name__.lower()}", f"{found:,.0f} jobs/s")


def drain(dsn: str, bootstrap: str, model: type[Job], count: int) -> float:
    """Enqueue jobs, put their rows on Kafka, and return how many a second one worker does; tracked: with their rows."""
    app = Pipeline(f"bench{secrets.token_hex(3)}", topic_prefix="")
    done, begun = [0], [0.0]

    @app.job(model)
    def work(job: Job, ctx: Context) -> None:
        begun[0] = begun[0] or time.perf_counter()
        done[0] += 1

    with psycopg.connect(dsn) as conn:
        conn.execute("TRUNCATE pipeline.outbox, pipeline.job, pipeline.job_delta")
        for _ in range(count // BULK):
            app.enqueue_many(conn, [model(order_id="7")] * BULK)
        conn.commit()
        rows = conn.execute("SELECT id, type, payload, topic FROM pipeline.outbox").fetchall()
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = [NewTopic(spec.name, spec.partitions, 1, config=spec.config) for spec in app.topics()]
    for created in admin.create_topics(new, operation_timeout=10).values():
        created.result(15)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
    for event_id, type_name, payload, topic in rows:
        producer.produce(topic, payload, str(event_id), headers=[("id", str(event_id)), ("type", type_name)])
        producer.poll(0)
    producer.flush(60)
    (group,) = app.groups.values()
    health, store, limits = Readiness("worker"), JobRows(dsn, Control), Limits()
    consumer = GroupConsumer({"bootstrap.servers": bootstrap}, group.name)
    journal = Journal(store, app.queue_of(group.name), worker="bench", health=health, concurrency=16)
    worker = Worker(
        group, consumer, consumer, AckProducer({"bootstrap.servers": bootstrap}), Decoder(_NoSchemas()),
        meter=SilentMeter(), health=health, limits=limits, journal=journal if model is Tracked else None,
    )  # fmt: skip
    thread = threading.Thread(target=worker.run)
    thread.start()
    while not _drained(dsn, model, done, count):
        time.sleep(0.02)
    took = time.perf_counter() - begun[0]
    worker.stop()
    thread.join()
    store.close()
    admin.delete_topics([spec.name for spec in app.topics()])
    return count / took


def _drained(dsn: str, model: type[Job], done: list[int], count: int) -> bool:
    if done[0] < count or model is Loose:
        return done[0] >= count
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT 1 FROM pipeline.job WHERE state <> 'done' LIMIT 1").fetchone() is None


class _NoSchemas:
    def text(self, schema_id: int) -> str:
        raise AssertionError(schema_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--waiting", type=int, default=10_000_000)
    parser.add_argument("--tracked", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["enqueueing", "moving", "lists", "draining"])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.jobs, given.waiting, given.tracked, given.rounds = 5_000, 100_000, 50_000, 1
    bootstrap = os.environ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]
    with database(os.environ["PIPELINE_POSTGRES__DSN"]) as dsn:
        parts: dict[str, Callable[[], None]] = {
            "enqueueing": lambda: enqueueing(dsn, given.jobs, given.rounds),
            "moving": lambda: moving(dsn, given.waiting),
            "lists": lambda: lists(dsn, given.tracked, given.rounds),
            "draining": lambda: draining(dsn, bootstrap, given.jobs, given.rounds),
        }
        for name, part in parts.items():
            if given.only in {None, name}:
                part()


if __name__ == "__main__":
    main()
