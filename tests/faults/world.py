"""Servers, processes, load and links in one hand: what a fault acts on, and how to tell that all works again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from tests.faults.auditor import Copy
from tests.faults.bank import TABLES
from tests.faults.load import Load
from tests.faults.processes import Member, wait
from tests.faults.proxy import Link, Proxies
from tests.faults.stack import Servers
from tests.faults.tail import HandledTail, TopicTail
from tests.servers import environment

__all__ = ["APP", "DLQ", "SLOT", "Broken", "World"]

APP = "tests.faults.bank:app"
SLOT = "pipeline_outbox"
DLQ = "outbox.dlq"
ACCOUNT, PARCEL, MAIL = "outbox.event.account", "outbox.event.parcel", "bank.jobs.mail"
RECOVERY_S = 180.0  # a broker has taken two minutes to start on a machine that was loaded ten times over
READY_S = 120.0
_ROOT = Path(__file__).parents[2]
RELAY_OPTIONS = ("socket.timeout.ms=10000", "reconnect.backoff.max.ms=1000")
WORKER_OPTIONS = (
    *RELAY_OPTIONS,
    "session.timeout.ms=6000",
    "heartbeat.interval.ms=1000",
    "max.poll.interval.ms=10000",
)


class Broken(Exception):
    """The campaign itself could not go on."""


class World:
    """All that a campaign runs. ``folder`` holds everything that is worth a look afterwards."""

    def __init__(self, folder: Path, seed: int, *, per_second: float, workers: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.proxies = Proxies()
        self.servers = Servers(folder / "data", self.proxies)
        self.archive: list[Copy] = []  # of topics that were deleted
        self.lives = 0
        self.poison: set[str] = set()
        self.self_ended: list[str] = []
        self.relays: list[Member] = []
        self.workers: list[Member] = []
        self._seed = seed
        self._per_second = per_second
        self._worker_count = workers

    def open(self) -> None:
        """Start servers, processes and load."""
        self.ends = self.servers.up()
        dsn = self.ends.postgres_dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET wal_sender_timeout = '3s'")
            conn.execute("SELECT pg_reload_conf()")
        self.env = environment(self.ends)
        os.environ.update({name: value for name, value in self.env.items() if name.startswith("PIPELINE_")})
        self._command("db", "migrate")
        schemas = str(self.folder / "schemas")
        self._command("schema", "generate", APP, "--dir", schemas)
        self._command("schema", "push", APP, "--dir", schemas)
        self._command("topics", "apply", APP)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(TABLES)
        self.admin = AdminClient(
            {"bootstrap.servers": self.ends.kafka, "log_level": 0, "reconnect.backoff.max.ms": 500}
        )
        self.create_topic(DLQ, 1)
        self.relays = [self._relay(f"relay-{n}") for n in (1, 2)]
        self.workers = [self.worker(f"worker-{n + 1}") for n in range(self._worker_count)]
        self.spare = self.worker("worker-spare")
        for member in (*self.relays, *self.workers):
            member.start()
        self.tail = TopicTail(self.ends.kafka, [ACCOUNT, PARCEL, MAIL])
        self.handled = HandledTail(self.folder)
        self.load = Load(dsn, self._seed, writers=4, per_second=self._per_second)
        if not wait(lambda: all(m.ready() for m in (*self.relays, *self.workers)), READY_S):
            late = [member for member in (*self.relays, *self.workers) if not member.ready()]
            words = "\n".join(f"{member.name}: {member.last_words()}" for member in late)
            raise Broken(f"not ready within {READY_S:.0f} s: {self.whereabouts()}\n{words}")
        self.load.start()

    def close(self) -> None:
        """End everything that was started."""
        for member in self.members():
            member.resume()
            member.kill()
        if hasattr(self, "tail"):
            self.tail.close()
        self.servers.down()
        self.proxies.close()

    # ── what there is ──────────────────────────────────────────────────────────────────────────────────────────

    def members(self) -> list[Member]:
        """All processes of the pipeline."""
        return [*self.relays, *self.workers, *([self.spare] if hasattr(self, "spare") else [])]

    def link(self, name: str) -> Link:
        """Return a link by its name, such as ``relay-kafka``."""
        return self.proxies.links[name]

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement on the database, past all proxies."""
        with psycopg.connect(self.ends.postgres_dsn, autocommit=True, connect_timeout=3) as conn:
            done = conn.execute(statement.encode(), values)
            return done.fetchall() if done.description else []

    def slot_pid(self) -> int:
        """Return the pid of the server process that feeds the active relay, 0 where there is none."""
        try:
            rows = self.sql("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND active", SLOT)
        except psycopg.Error:
            return 0
        return int(rows[0][0]) if rows else 0

    def active_relay(self) -> Member:
        """Return the relay that says that it is the active one; the first where none does."""
        for relay in self.relays:
            if relay.state().get("role") == "active":
                return relay
        return self.relays[0]

    def standby_relay(self) -> Member:
        """Return the other one."""
        active = self.active_relay()
        return next(relay for relay in self.relays if relay is not active)

    def worker(self, name: str) -> Member:
        """Make another worker process, not started."""
        ends = self.servers.through(self.ends, "worker", self.ends.postgres_dsn)
        words = ["consumer", "run", APP, "--drain-timeout", "15"]
        return self._member(name, [*words, *_options(WORKER_OPTIONS)], environment(ends), ends.postgres_dsn)

    # ── what a fault does beside ───────────────────────────────────────────────────────────────────────────────

    def topic_config(self, topic: str, name: str, value: str | None) -> None:
        """Set one setting of a topic; None removes it."""
        how = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
        entry = ConfigEntry(name, value or "", incremental_operation=how)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        for done in self.admin.incremental_alter_configs([resource], request_timeout=10).values():
            done.result(15)

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic, once the name is free."""
        deadline = time.monotonic() + 20
        while True:
            (done,) = self.admin.create_topics([NewTopic(name, partitions, 1)]).values()
            try:
                done.result(15)
            except Exception as error:  # the old one may still be on its way out
                if time.monotonic() > deadline:
                    raise Broken(f"topic {name} could not be created: {error}") from error
                time.sleep(0.2)
            else:
                return

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the broker does not list it."""
        (done,) = self.admin.delete_topics([name]).values()
        done.result(15)
        wait(lambda: name not in self.admin.list_topics(timeout=10).topics, 15)

    def send_poison(self, value: bytes, key: bytes) -> None:
        """Write a record that no schema can decode, as a foreign producer might."""
        producer = Producer({"bootstrap.servers": self.ends.kafka, "log_level": 0, "partitioner": "murmur2_random"})
        producer.produce(ACCOUNT, value, key, headers={"type": b"Moved"})
        if producer.flush(20):
            raise Broken("the poison record was not accepted")

    def admin_tool(self, main: str, *words: str) -> str:
        """Run one of Kafka's own command-line tools."""
        command = self.servers.local.kafka._command(main, "--bootstrap-server", self.ends.kafka, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise Broken(f"{main}: {done.stdout}{done.stderr}")
        return done.stdout

    # ── after a fault ──────────────────────────────────────────────────────────────────────────────────────────

    def restore(self) -> None:
        """Make sure that everything is there again that a fault took away."""
        self.proxies.restore()
        for name in ("postgres", "kafka", "registry"):
            for process in self.servers.processes(name):
                with contextlib.suppress(psutil.Error):  # a backend that ends just now
                    if process.status() == psutil.STATUS_STOPPED:
                        process.resume()
        if any(not self.servers.processes(name) for name in ("postgres", "kafka", "registry")):
            self.servers.local.up()
        for member in (*self.relays, *self.workers):
            member.resume()
        self.look_after()

    def look_after(self) -> None:
        """Start what is not running, as a supervisor does, and note who ended by himself."""
        for member in (*self.relays, *self.workers):
            if member.pid is None:
                if member.started:
                    at = time.strftime("%H:%M:%S")
                    self.self_ended.append(f"{member.name} ended at {at} with code {member.code}: {_why(member)}")
                member.start()

    def recovered(self) -> float | None:
        """Commit canaries and wait until all groups handled them; return the seconds, None where it took too long."""
        began = time.monotonic()
        try:
            canaries = set(self.load.canaries())
        except (psycopg.Error, OSError):
            return None
        looked = 0.0

        def handled() -> bool:
            nonlocal looked
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                self.look_after()
            self.handled.update()
            return canaries <= self.handled.done.keys()

        return time.monotonic() - began if wait(handled, RECOVERY_S) else None

    def whereabouts(self) -> str:
        """Say how everybody is, for a line about a recovery that did not come."""
        states = {member.name: member.state() for member in (*self.relays, *self.workers)}
        return json.dumps({name: {k: v for k, v in state.items() if k != "ready"} for name, state in states.items()})

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _relay(self, name: str) -> Member:
        ends = self.servers.through(self.ends, "relay", self.ends.postgres_dsn)
        file = self.folder / "outbox.json"
        if not file.exists():
            found = json.loads((_ROOT / "connectors" / "outbox.json").read_text())
            found["config"]["status.update.interval.ms"] = "1000"
            file.write_text(json.dumps(found))
        words = ["connector", "run", str(file), *_options(RELAY_OPTIONS)]
        return self._member(name, words, environment(ends), ends.postgres_dsn)

    def _member(self, name: str, words: list[str], env: dict[str, str], dsn: str) -> Member:
        more = {
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_DSN": dsn,
            "FAULTS_PYTHON": sys.executable,
            "PYTHONFAULTHANDLER": "1",
        }
        return Member(name, words, {**env, **more}, self.folder, _ROOT)

    def _command(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            env=self.env, cwd=_ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Broken(f"pipeline {' '.join(words)}: {done.stderr}")


def _options(options: tuple[str, ...]) -> list[str]:
    return [word for option in options for word in ("-X", option)]


def _why(member: Member) -> str:
    for line in reversed(member.last_words(12).splitlines()):
        if line.startswith("{"):
            return str(json.loads(line).get("message", ""))[:300]
        if line.strip():
            return line[:300]
    return "no log"
