"""A test's database and broker in, a relay process, rows and what became of them out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psycopg
from confluent_kafka import Consumer, Message, TopicPartition
from waiting import DEADLINE_S, wait_until

from pipeline.kafka.extent import extent

T = TypeVar("T")
POLLING_INDEX = "CREATE INDEX ON pipeline.outbox (xid, seq)"
CONNECTOR = Path(__file__).parents[1] / "connectors" / "outbox.json"


def connector_file(folder: Path, name: str, **changes: str | None) -> Path:
    """Write our connector file under another name, slot and with other changes; None removes a key."""
    loaded = json.loads(CONNECTOR.read_text())
    loaded["name"] = name
    loaded["config"]["slot.name"] = name.replace("-", "_")
    for key, value in changes.items():
        if value is None:
            loaded["config"].pop(key, None)
        else:
            loaded["config"][key] = value
    path = folder / f"{name}.json"
    path.write_text(json.dumps(loaded))
    return path


def until(condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
    """Wait until a condition holds, and return what it returned."""
    return wait_until(condition, timeout_s, what)


class RelayProcess:
    """``pipeline connector run`` as a user runs it."""

    def __init__(self, file: Path, environment: Mapping[str, str], *options: str) -> None:
        self._log = file.with_suffix(f".{uuid.uuid4().hex[:6]}.log")
        code = "from pipeline.cli.main import main; main()"
        command = [sys.executable, "-c", code, "connector", "run", str(file), "--metrics-port", "0", *options]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(command, env=dict(environment), stderr=output, stdout=output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            sys.stderr.write(self.log[-4000:])
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    @property
    def log(self) -> str:
        """All that it wrote."""
        return self._log.read_text(errors="replace")

    def actions(self) -> list[str]:
        """The actions of its log lines."""
        found = []
        for line in self.log.splitlines():
            with suppress(ValueError):
                found.append(json.loads(line).get("action", ""))
        return found

    def reading(self, timeout_s: float = DEADLINE_S) -> Self:
        """Wait until it reads the slot."""
        begun = lambda: {"slot.read", "poll.read"} & set(self.actions())  # noqa: E731
        until(lambda: begun() or self.process.poll() is not None, "the relay reads", timeout_s)
        assert self.process.poll() is None, self.log
        return self

    def peak_memory_bytes(self) -> int:
        """The most memory that it held at once."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def kill(self) -> None:
        """As a crash does."""
        self.process.kill()
        self.process.wait(60)

    def stop(self, timeout_s: float = DEADLINE_S) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def readiness(self) -> dict[str, object]:
        """What /readyz says."""
        port = until(
            lambda: [line.split()[-1] for line in self.log.splitlines() if "probes on port" in line], "a port"
        )[0]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))


def insert(
    conn: psycopg.Connection[tuple[object, ...]],
    topic: str,
    key: str,
    payload: bytes | None = b"\0\0\0\0\1x",
    *,
    event_id: uuid.UUID | None = None,
    traceparent: str | None = None,
    headers: str | None = None,
) -> str:
    """Insert one row and return its id."""
    name = event_id or uuid.uuid4()
    conn.execute(
        "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, headers, traceparent)"
        " VALUES (%s, 'order', %s, 'shop.OrderPlaced', %s, %s, %s, %s)",
        (name, key, payload, topic, headers, traceparent),
    )
    return str(name)


@contextmanager
def busy(
    dsn: str, write: Callable[[psycopg.Connection[tuple[object, ...]]], object], *, every_s: float = 0.05
) -> Iterator[None]:
    """Let somebody write all the time meanwhile, so that positions go on."""
    enough = threading.Event()

    def go_on() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            while not enough.wait(every_s):
                write(own)

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        yield
    finally:
        enough.set()
        writer.join()


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """Return all records that a topic has now, partition after partition."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": f"read-{uuid.uuid4()}", "enable.auto.commit": False,
         "enable.partition.eof": False, "fetch.message.max.bytes": 20_000_000}
    )  # fmt: skip
    try:
        partitions = consumer.list_topics(topic, timeout=60).topics[topic].partitions
        ends = {p: extent(consumer, topic, p, 60)[1] for p in partitions}
        consumer.assign([TopicPartition(topic, p, 0) for p in ends])
        left = {p for p, end in ends.items() if end}
        found: dict[int, list[Message]] = defaultdict(list)
        deadline = time.monotonic() + 60
        while left:
            assert time.monotonic() < deadline, f"{topic}: not readable within 60 s"
            for message in consumer.consume(1000, 0.2):
                assert message.error() is None, message.error()
                found[message.partition()].append(message)
                if message.offset() + 1 >= ends[message.partition()]:
                    left.discard(message.partition())
        return [message for p in sorted(found) for message in found[p]]
    finally:
        consumer.close()


def ids(messages: list[Message]) -> list[str]:
    """Event ids of records."""
    return [headers(message)["id"].decode() for message in messages]


def headers(message: Message) -> dict[str, bytes]:
    """Headers of a record."""
    return dict(message.headers() or [])  # type: ignore[arg-type]
