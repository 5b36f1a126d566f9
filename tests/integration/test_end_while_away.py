"""Servers that take a connection and say nothing, from the start: every role waits, not ready, and ends when told."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from faults.proxy import Proxies
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from relays import connector_file
from servers import Database
from waiting import wait_until
from working import Broker

APP = """
from pipeline import Context, Event, Pipeline

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str

app = Pipeline("shop", topic_prefix={prefix!r} + ".", partitions=1)

@app.consumer(Placed, group="billing", inbox=True)
def bill(event: Placed, ctx: Context) -> None: ...
"""


class Role:
    """A role of the pipeline as a process, and what its probe says."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str], *words: str) -> None:
        self._log = folder / f"{name}.log"
        command = [sys.executable, "-m", "pipeline", *words, "--metrics-port", "0"]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=output, stderr=output)
        self.name = name

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def state(self) -> dict[str, object] | None:
        """What /readyz says; None while nobody answers."""
        ports = [line.split()[-1] for line in self.log.splitlines() if "probes on port" in line]
        if not ports:
            return None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/readyz", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))

    def waits(self) -> None:
        """Wait until it says that it waits for something."""

        def told() -> bool:
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.log}"
            found = self.state()
            return found is not None and not found["ready"]

        wait_until(told, why=lambda: self.log)

    def ready(self) -> None:
        def told() -> bool:
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.log}"
            return bool((self.state() or {}).get("ready"))

        wait_until(told, why=lambda: f"{self.state()} {self.log}")


@contextmanager
def running(*roles: Role) -> Iterator[None]:
    try:
        yield
    finally:
        for role in roles:
            if role.process.poll() is None:
                role.process.kill()
                role.process.wait(60)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where everybody is let in and nobody is answered, as at a stopped postmaster."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield int(listening.getsockname()[1])


@pytest.fixture
def module(tmp_path: Path, prefix: str) -> Path:
    (tmp_path / "shop.py").write_text(APP.format(prefix=prefix))
    return tmp_path


def test_every_role_waits_for_a_server_that_is_silent_and_ends_within_its_drain_timeout(
    module: Path, prefix: str, silent: int, broker: Broker, database: Database, cli_environment: dict[str, str]
) -> None:
    broker.admin_create(f"{prefix}.outbox.event.order", partitions=1)
    broker.admin_create(f"{prefix}.shop.billing.retry.0s", partitions=1)
    broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": "1"}, key="1")
    broker.flush()
    file = str(connector_file(module, f"{prefix}-one"))
    no_database = cli_environment | {
        "PIPELINE_POSTGRES__DSN": make_conninfo(database.dsn, host="127.0.0.1", port=silent)
    }
    no_broker = cli_environment | {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{silent}"}
    drain = ("--drain-timeout", "12")
    roles = [
        Role(module, "relay, no database", no_database, "connector", "run", file),
        Role(module, "relay, no broker", no_broker, "connector", "run", file),
        Role(module, "scheduler", no_database, "scheduler", "run", "shop:app"),
        Role(module, "worker, no broker", no_broker, "consumer", "run", "shop:app", *drain),
        Role(module, "worker, no database", no_database, "consumer", "run", "shop:app", *drain),
    ]
    within_s = {"relay": 25.0, "scheduler": 15.0, "worker": 12.0}
    with running(*roles):
        for role in roles:
            if role.name != "relay, no broker":  # it has nothing to send
                role.waits()
        begun = time.monotonic()
        for role in roles:
            role.process.send_signal(signal.SIGTERM)
        for role in roles:
            code = role.process.wait(60)
            took_s = time.monotonic() - begun
            assert code == 0, f"{role.name}: {code}: {role.log}"
            assert took_s < within_s[role.name.partition(",")[0]] + 5, f"{role.name}: {took_s:.1f} s"


def test_who_starts_before_its_servers_answer_goes_on_when_they_do(
    module: Path, prefix: str, broker: Broker, bootstrap_servers: str, database: Database,
    cli_environment: dict[str, str],
) -> None:  # fmt: skip
    broker.admin_create(f"{prefix}.outbox.event.order", partitions=1)
    broker.admin_create(f"{prefix}.shop.billing.retry.0s", partitions=1)
    where = conninfo_to_dict(database.dsn)
    with ExitStack() as stack:
        proxies = Proxies()
        stack.callback(proxies.close)
        kafka = proxies.link("kafka", _address(bootstrap_servers))
        postgres = proxies.link("postgres", (str(where["host"]), int(str(where["port"]))))
        for link in (kafka, postgres):
            link.silence()
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=postgres.port)
        environment = cli_environment | {
            "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka.port}",
            "PIPELINE_POSTGRES__DSN": dsn,
        }
        file = str(connector_file(module, f"{prefix}-one"))
        roles = [
            Role(module, "worker", environment, "consumer", "run", "shop:app"),
            Role(module, "scheduler", environment, "scheduler", "run", "shop:app"),
            Role(module, "relay", environment, "connector", "run", file),
        ]
        stack.enter_context(running(*roles))
        for role in roles:
            role.waits()
        wait_until(lambda: "worker.waiting" in roles[0].log, why="the worker says what it waits for")
        for link in (kafka, postgres):
            link.restore(reset=True)
        for role in roles:
            role.ready()
        for role in roles:
            role.process.send_signal(signal.SIGTERM)
        assert [role.process.wait(60) for role in roles] == [0, 0, 0]


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.partition(",")[0].rpartition(":")
    return host, int(port)
