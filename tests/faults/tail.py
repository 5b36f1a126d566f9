"""Topics and handlers' logs in, which ids were seen so far out, while a campaign runs.

For waiting only: the verdict is the auditor's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

__all__ = ["HandledTail", "TopicTail"]


class TopicTail:
    """Ids on topics, read by a thread."""

    def __init__(self, bootstrap: str, topics: Iterable[str]) -> None:
        self.ids: set[str] = set()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "tail",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 1000,
                "socket.timeout.ms": 5000,
                "fetch.wait.max.ms": 100,
                "log_level": 0,
            }
        )
        known = self._consumer.list_topics(timeout=20).topics
        self._consumer.assign([TopicPartition(name, part, 0) for name in topics for part in known[name].partitions])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(10)
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(KafkaException):
                for message in self._consumer.consume(500, 0.1):
                    if message.error() is None:
                        self.ids.update(value.decode() for name, value in message.headers() or () if name == "id")


class HandledTail:
    """``(group, id)`` of what handlers finished, as far as their logs were read."""

    def __init__(self, folder: Path) -> None:
        self.done: dict[tuple[str, str], int] = {}
        self.failing: dict[tuple[str, str], int] = {}  # when the last try began that has not succeeded, ns
        self.repeats: list[tuple[int, str, str, str]] = []  # when a handling was not the first: ns, group, id, pid
        self._folder = folder
        self._read: dict[Path, int] = {}

    def update(self) -> None:
        """Read what was appended."""
        for path in self._folder.glob("handled-*.log"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            data = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(data)
            for line in data.decode().splitlines():
                at, what, group, event_id, _, _, _, pid = line.split()
                if what == "start":
                    self.failing[group, event_id] = int(at)
                else:
                    self.failing.pop((group, event_id), None)
                    count = self.done[group, event_id] = self.done.get((group, event_id), 0) + 1
                    if count > 1:
                        self.repeats.append((int(at), group, event_id, pid))
