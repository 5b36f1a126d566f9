"""A folder in, servers of a campaign's own out: the local stack, with timeouts scaled down and ways to cut.

Kafka has one more listener for relays and one for workers, each advertised as a proxy's port. Its folder is a small
file system of its own where that is permitted (as root), so that it can run full.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.local import Endpoints, LocalStack
from pipeline.local.kafka import Kafka
from pipeline.local.ports import LOOPBACK, free_port, is_free_soon
from tests.faults.proxy import Link, Proxies
from tests.quick import quick_java

__all__ = ["DISK_BYTES", "SCALED", "Servers"]

DISK_BYTES = 1_200_000_000
SCALED = {
    "wal_sender_timeout": "3 s (60 s)",
    "status.update.interval.ms": "1 s (10 s)",
    "group.consumer.session.timeout.ms and session.timeout.ms": "6 s (45 s)",
    "socket.timeout.ms of relay and workers": "10 s (60 s)",
    "max.poll.interval.ms": "10 s (5 min)",
}
"""What is shorter in a campaign than as delivered, so that a stop of some seconds is longer than it."""

_BROKER = """\
group.consumer.min.session.timeout.ms=6000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=1000
group.consumer.heartbeat.interval.ms=1000
log.segment.bytes=33554432
broker.session.timeout.ms=9000
broker.heartbeat.interval.ms=2000
"""

_LOG = """\
logger.group.name = org.apache.kafka.coordinator.group
logger.group.level = info
"""
"""Who joined a group, and who did not come back: without it nobody can tell why a rebalance took long."""


class _Kafka(Kafka):
    """The local broker with a listener more for each link, on ports that are chosen as it starts."""

    links: Mapping[str, Link] = {}  # by name of the listener, which is advertised as the link's port

    def _ports(self) -> list[int]:
        return [*super()._ports(), *(link.target[1] for link in self.links.values())]

    def _write_settings(self, logs: Path) -> Path:
        path = super()._write_settings(logs)
        text = path.read_text()
        for name, link in self.links.items():
            if not link.target[1] or not is_free_soon(link.target[1]):
                link.target = (LOOPBACK, free_port(self._ports()))
            port, shown = link.target[1], link.port
            text = (
                text.replace("\nlisteners=", f"\nlisteners={name}://{LOOPBACK}:{port},")
                .replace("\nadvertised.listeners=", f"\nadvertised.listeners={name}://{LOOPBACK}:{shown},")
                .replace("\nlistener.security.protocol.map=", f"\nlistener.security.protocol.map={name}:PLAINTEXT,")
            )
        with (self.folder / "log4j2.properties").open("a") as log:
            log.write(_LOG)
        path.write_text(f"{text}inter.broker.listener.name=PLAINTEXT\n{_BROKER}")
        return path


class Servers:
    """The servers, the links to them, and what only somebody on their machine can do."""

    def __init__(self, folder: Path, proxies: Proxies) -> None:
        quick_java()
        self.local = LocalStack(folder)
        self._proxies = proxies
        self.kafka_folder = folder / "kafka"
        self.own_disk = False
        old = self.local.kafka
        self._kafka = self.local.kafka = _Kafka(old.home, old.progress, old._jars)

    def up(self) -> Endpoints:
        """Start what does not run, and the links to it."""
        if not self._kafka.links:
            self._mount()
            self._kafka.links = {who.upper(): self._link(f"{who}-kafka", 0) for who in ("relay", "worker")}
        ends = self.local.up()
        if "relay-postgres" not in self._proxies.links:
            port = int(str(conninfo_to_dict(ends.postgres_dsn)["port"]))
            for name in ("relay-postgres", "worker-postgres"):
                self._link(name, port)
            self._link("worker-registry", int(ends.registry.split(":")[2].split("/")[0]))
        return ends

    def down(self) -> None:
        """Stop all and remove the data."""
        self.local.down()
        if self.own_disk:  # lazily: a look into it by somebody else must not keep it
            subprocess.run(["umount", "--lazy", str(self.kafka_folder)], check=False)
        self.local.down(delete=True)

    def through(self, ends: Endpoints, who: str, database: str) -> Endpoints:
        """Return the servers as ``who`` (relay or worker) reaches them, by way of the proxies."""
        links = self._proxies.links
        registry = ends.registry
        if who == "worker":
            port = registry.split(":")[2].split("/")[0]
            registry = registry.replace(f":{port}/", f":{links['worker-registry'].port}/")
        return Endpoints(
            postgres_dsn=make_conninfo(database, host="127.0.0.1", port=links[f"{who}-postgres"].port),
            kafka=f"127.0.0.1:{links[f'{who}-kafka'].port}",
            registry=registry,
            registry_username=ends.registry_username,
            registry_password=ends.registry_password,
            connect=None,
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes of a server, the parent first."""
        server = getattr(self.local, name)
        pid = server.process.find()
        if pid is None:
            return []
        try:
            parent = psutil.Process(pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.Error:
            return []

    def fill_disk(self) -> str:
        """Leave the broker no room; return how. ``empty_disk`` ends it."""
        if not self.own_disk:
            for process in self.processes("kafka"):
                process.rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
            return "files limited to 4 KiB (no file system of its own permitted)"
        size = 0
        block = b"\0" * 1_000_000
        with (self.kafka_folder / "filler").open("ab", buffering=0) as filler:
            try:
                while True:
                    size += filler.write(block)
            except OSError:
                pass
        return f"{size // 1_000_000} MB filled"

    def empty_disk(self) -> None:
        """Give the broker its room back."""
        (self.kafka_folder / "filler").unlink(missing_ok=True)

    def _link(self, name: str, port: int) -> Link:
        return self._proxies.link(name, (LOOPBACK, port))

    def _mount(self) -> None:
        self.kafka_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = f"size={DISK_BYTES},mode=0700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.kafka_folder)], check=False, capture_output=True
        )
        self.own_disk = done.returncode == 0
