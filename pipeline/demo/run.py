"""A number of orders in, the summary of what became of them out: the whole pipeline, on real servers.

Relay and workers run as the separate processes that they are in production. Nothing is left running unless asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psycopg
from confluent_kafka import Producer

from pipeline.config import Settings
from pipeline.demo import shop
from pipeline.demo.audit import judge, record_ids
from pipeline.endpoints import kafka_options, postgres_dsn
from pipeline.errors import PipelineError
from pipeline.local.ports import free_port
from pipeline.local.progress import Progress
from pipeline.local.stack import LocalStack
from pipeline.postgres.liveness import alive

__all__ = ["Counts", "Show", "Summary", "run"]

_APP = "pipeline.demo.shop:app"
_DEADLINE_S = 120.0
_PER_SECOND = 400
_CLOSED, _HASTY, _NOBODY = "closed-bank", "hasty", "nobody"


@dataclass(slots=True)
class Counts:
    """What is known while it runs."""

    placed: int = 0
    payments: int = 0
    receipts: int = 0
    dead: int = 0


class Show(Protocol):
    """Tells the person at the terminal how far it is."""

    def step(self, text: str) -> None:
        """Begin another step."""

    def counts(self, counts: Counts, orders: int) -> None:
        """Show the counts."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of everything. Ids are counted: an order has two, its event and its job."""

    committed: int
    rolled_back: int
    published: int
    handled: int
    retried: int
    dead: int
    redriven: int
    lost: int
    invented: int
    duplicates: int
    p50_ms: float
    p99_ms: float
    seconds: float
    look_next: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Ids:
    committed: set[str] = field(default_factory=set)
    rolled_back: set[str] = field(default_factory=set)
    orders: int = 0
    closed: int = 0
    nobody: int = 0
    hasty: int = 0


def run(data: Path, orders: int, show: Show, progress: Progress, *, keep: bool = False) -> Summary:
    """Run the demonstration with its state in ``data`` and return the summary.

    Raises PipelineError when a server, a command or a deadline fails; what was started is stopped then.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        show.step("starting PostgreSQL, Kafka and the schema registry")
        servers = LocalStack(data, progress=progress)
        servers.down(delete=True)
        stack.push(lambda error, *_: _stop(servers, keep=keep, failed=error is not None))
        servers.up()
        settings = _settings(data)
        commands = _Commands(data, postgres_dsn(settings))
        conn = stack.enter_context(psycopg.connect(alive(postgres_dsn(settings), "pipeline-demo"), autocommit=True))
        conn.execute(shop.TABLES)

        show.step("database schema, Avro schemas, topics")
        commands.run("db", "migrate")
        commands.run("schema", "push", _APP, "--dir", str(_file("schemas")))
        commands.run("topics", "apply", _APP)

        show.step("relay and worker, each a process of its own")
        with ExitStack() as processes:
            processes.enter_context(commands.process("relay", "connector", "run", str(_file("connectors/outbox.json"))))
            processes.enter_context(
                commands.process("worker", "consumer", "run", _APP, "--group", "billing", "--queue", "email")
            )
            ids = _break_things_and_redrive(conn, kafka_options(settings), commands, orders, show)
            retried = _retried(conn)
            show.step("stopping relay and worker: they finish what they have in hand")

        show.step("auditing every event id")
        verdict = judge(
            conn,
            kafka_options(settings),
            committed=ids.committed,
            rolled_back=ids.rolled_back,
            topics=[shop.app.topic_of(model) for model in shop.app.messages],
            dlqs=[group.dlq for group in shop.app.groups.values()],
        )
        conn.close()
        return Summary(
            committed=len(ids.committed),
            rolled_back=len(ids.rolled_back),
            retried=retried,
            redriven=ids.closed,
            seconds=round(time.monotonic() - begun, 1),
            look_next=_look_next(data) if keep else ["pipeline demo --keep"],
            **asdict(verdict),
        )


def _stop(servers: LocalStack, *, keep: bool, failed: bool) -> None:
    """Leave nothing running, unless asked; after a failure the logs stay, to be read."""
    if failed or not keep:
        servers.down(delete=not failed)


def _break_things_and_redrive(
    conn: psycopg.Connection[Any], kafka: dict[str, str], commands: _Commands, orders: int, show: Show
) -> _Ids:
    show.step(f"placing {orders} orders: some rolled back, some handlers fail once or always, one record is poison")
    conn.execute("INSERT INTO bank VALUES (%s)", (_CLOSED,))
    counts = Counts()
    ids = _place(conn, orders, counts, show)
    _poison(kafka, shop.app.topic_of(shop.OrderPlaced))
    dlqs = [group.dlq for group in shop.app.groups.values()]
    dead = ids.closed + ids.nobody + 1

    def settled() -> bool:
        _count_handled(conn, counts)
        counts.dead = sum(record_ids(kafka, dlqs).values())
        show.counts(counts, orders)
        handled = counts.payments == ids.orders - ids.closed and counts.receipts == ids.orders - ids.nobody
        return handled and counts.dead >= dead

    _wait(settled, "all orders to be handled or dead-lettered", commands)

    show.step(f"{counts.dead} dead letters; the bank opens again: redriving those that it had refused")
    conn.execute("DELETE FROM bank")
    commands.run("dlq", "redrive", "--group", "shop.billing", "--error-class", "PermissionError", "--execute")

    def redriven() -> bool:
        _count_handled(conn, counts)
        show.counts(counts, orders)
        return counts.payments == ids.orders

    _wait(redriven, "the redriven records to be handled", commands)
    return ids


def _place(conn: psycopg.Connection[Any], orders: int, counts: Counts, show: Show) -> _Ids:
    """Place orders, one transaction each, at a steady rate."""
    ids = _Ids()
    begun = time.monotonic()
    for number in range(orders):
        customer = _customer(number)
        roll_back = number % 20 == 7
        with conn.transaction(force_rollback=roll_back):
            placed = {str(i) for i in shop.place_order(conn, f"o-{number}", customer, Decimal("9.90"))}
        if roll_back:
            ids.rolled_back |= placed
        else:
            ids.committed |= placed
            ids.orders += 1
            ids.closed += customer == _CLOSED
            ids.nobody += customer == _NOBODY
        counts.placed = number + 1
        if number % 100 == 0:
            _count_handled(conn, counts)
            show.counts(counts, orders)
        time.sleep(max(0.0, begun + number / _PER_SECOND - time.monotonic()))
    return ids


def _customer(number: int) -> str:
    if number % 100 == 13:
        return _CLOSED
    if number % 50 == 25:
        return f"{_HASTY}-{number}"
    return _NOBODY if number % 1000 == 500 else f"customer-{number}"


def _poison(kafka: dict[str, str], topic: str) -> None:
    """Write a record that no schema can decode, as a foreign producer might."""
    producer = Producer(kafka)
    producer.produce(topic, key=b"o-poison", value=b"not Avro at all", headers=[("type", b"OrderPlaced")])
    if producer.flush(30):
        raise PipelineError(
            "demo: the poison record was not accepted", remedy="is Kafka still running? pipeline status"
        )


def _count_handled(conn: psycopg.Connection[Any], counts: Counts) -> None:
    row = conn.execute(
        "SELECT (SELECT count(DISTINCT event_id) FROM payments), (SELECT count(DISTINCT event_id) FROM receipts)"
    ).fetchone()
    counts.payments, counts.receipts = row or (0, 0)


def _retried(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(
        "SELECT (SELECT count(*) FROM payments WHERE attempt > 1) + (SELECT count(*) FROM receipts WHERE attempt > 1)"
    ).fetchone()
    return int(row[0]) if row else 0


def _wait(done: Callable[[], bool], what: str, commands: _Commands) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not done():
        commands.check()
        if time.monotonic() > deadline:
            raise PipelineError(f"demo: waited {_DEADLINE_S:.0f} s for {what}", remedy=f"look into {commands.logs}")
        time.sleep(0.2)


class _Commands:
    """Runs ``pipeline …`` as a user does, against the demonstration's servers."""

    def __init__(self, data: Path, dsn: str) -> None:
        self.logs = data / "demo"
        self.logs.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
        self._env = {**kept, "PIPELINE_DATA_DIR": str(data), "SHOP_DSN": dsn}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *words: str) -> None:
        """Run a command to its end. Raises PipelineError with what it said when it fails."""
        done = subprocess.run([sys.executable, "-m", "pipeline", *words], env=self._env, capture_output=True, text=True)
        if done.returncode:
            raise PipelineError(f"demo: pipeline {' '.join(words)} failed\n{done.stderr.strip()}")

    @contextmanager
    def process(self, name: str, *words: str) -> Iterator[None]:
        """Run a command beside this one, from when it is ready until SIGTERM, its log in a file."""
        port = free_port(())
        command = [sys.executable, "-m", "pipeline", *words, "--metrics-port", str(port)]
        with (self.logs / f"{name}.log").open("wb") as log, subprocess.Popen(
            command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process:  # fmt: skip
            self._running[name] = process
            try:
                _wait(lambda: _ready(port), f"the {name} to be ready", self)
                yield
            finally:
                del self._running[name]
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()

    def check(self) -> None:
        """Raise PipelineError when a process ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self.logs / f"{name}.log"
                last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise PipelineError(f"demo: the {name} ended with code {process.returncode}\n{last}")


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, HTTPError, OSError):
        return False


def _settings(data: Path) -> Settings:
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]
    return Settings(data_dir=data)


def _file(name: str) -> Path:
    """A file of the checkout, or its copy in an installed package."""
    root = Path(__file__).parents[2]
    return root / name if (root / name).exists() else Path(__file__).parent / name


def _look_next(data: Path) -> list[str]:
    here = f"PIPELINE_DATA_DIR={data}"
    return [
        f"{here} pipeline status",
        f"{here} pipeline outbox status",
        f"{here} pipeline dlq list pipeline.demo.shop:app",
        f"{here} pipeline consumer lag pipeline.demo.shop:app",
        f"pipeline down --delete --data {data}",
    ]
