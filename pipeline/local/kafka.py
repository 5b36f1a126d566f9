"""Pinned jars in, a Kafka broker with its controller in one process out.

KRaft, one node, plain text on loopback, fsync as in Kafka's own defaults, no topics made by accident.
"""

from __future__ import annotations

import base64
import secrets
import shutil
import socket
import subprocess
import uuid
from pathlib import Path
from typing import ClassVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.errors import LocalStackError
from pipeline.local.java import LOG4J, JavaServer, java_command
from pipeline.local.ports import LOOPBACK
from pipeline.local.process import Launch
from pipeline.local.server import NotReady, inherited_environment

__all__ = ["Kafka"]

HEAP_BYTES = 512 * 2**20
FORMAT_S = 60
PROBE_S = 2.0
SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{broker},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={logs}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# After a kill the broker may come back only when its session has run out. A machine that stands still for as long
# fences it, and members of groups that it loads at that moment never expire.
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""


class Kafka(JavaServer):
    """The broker. Ready when it answers for its cluster with itself as a live broker."""

    name: ClassVar[str] = "kafka"
    port_names: ClassVar[tuple[str, ...]] = ("kafka", "kafka_controller")

    def address(self) -> str:
        """Return the bootstrap server."""
        return f"{LOOPBACK}:{self.home.port('kafka')}"

    def prepare(self) -> Launch:
        """Format the storage once, and write the settings."""
        logs = self.folder / "logs"
        (self.folder / "log4j2.properties").write_text(LOG4J)
        if not logs.exists():
            self._format(logs)
        settings = self._write_settings(logs)
        return Launch(self._command("kafka.Kafka", str(settings)), inherited_environment(), self.folder)

    def probe(self) -> None:
        """List the brokers."""
        host, port = LOOPBACK, self.home.port("kafka")
        try:
            # Without this librdkafka would wait longer and longer between its tries.
            socket.create_connection((host, port), timeout=PROBE_S).close()
        except OSError as error:
            raise NotReady(f"no connection to {host}:{port}") from error
        client = AdminClient(
            {"bootstrap.servers": f"{host}:{port}", "log_level": 0, "socket.timeout.ms": int(PROBE_S * 1000)}
        )
        try:
            cluster = client.list_topics(timeout=PROBE_S)
        except KafkaException as error:
            raise NotReady(f"no answer from {host}:{port}") from error
        if not cluster.brokers:
            raise NotReady("the broker has not joined its cluster yet")

    def _format(self, logs: Path) -> None:
        """Format in a folder beside, so that a kill in the middle leaves nothing half formatted."""
        for left in self.folder.glob("formatting-*"):
            shutil.rmtree(left, ignore_errors=True)
        place = self.folder / f"formatting-{secrets.token_hex(4)}"
        settings = self._write_settings(place)
        identity = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        command = self._command("kafka.tools.StorageTool", "format", "-t", identity, "-c", str(settings))
        done = subprocess.run(
            command,
            env=inherited_environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=FORMAT_S,
            check=False,
            text=True,
            start_new_session=True,
        )
        if done.returncode != 0:
            raise LocalStackError(
                f"kafka: the storage {logs} could not be formatted:\n{done.stdout[-2000:]}",
                remedy="when the disk is full free some space; then `pipeline up` again",
            )
        place.replace(logs)

    def _write_settings(self, logs: Path) -> Path:
        path = self.folder / "server.properties"
        text = SETTINGS.format(
            host=LOOPBACK,
            broker=self.home.port("kafka"),
            controller=self.home.port("kafka_controller"),
            logs=logs,
        )
        path.write_text(text)
        return path

    def _command(self, main: str, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return java_command(
            self.folder, [logging, main, *arguments], heap_bytes=HEAP_BYTES, jars=self._jars.jars("kafka")
        )
