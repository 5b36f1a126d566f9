"""Topics that a connector writes to in, those that are missing created, beside its relay, which waits meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence

from pipeline.connect.file import ConnectorFile
from pipeline.connect.topic_creation import group_of
from pipeline.errors import BrokerError, ConfigError
from pipeline.kafka.admin import Topics
from pipeline.kafka.errors import Denied
from pipeline.topics import TopicSpec

__all__ = ["TopicMaking"]

log = logging.getLogger(__name__)

_AGAIN_S = 10.0
_LOOK_S = 0.5  # whether it has to end
_CONTACT_S = 1.0


class TopicMaking:
    """The connector's ``own`` topics are made at the start, others when they are asked for, by ``topic.creation.…``."""

    def __init__(self, file: ConnectorFile, kafka: Mapping[str, str], own: Sequence[TopicSpec]) -> None:
        self._file = file
        self._options = {
            key: value for key, value in kafka.items() if key.startswith(("bootstrap.", "security.", "sasl.", "ssl."))
        }
        self._missing: list[tuple[TopicSpec, int]] = [(spec, -1) for spec in own]
        self._denied = False
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ask = self._asked.put

    def run(self, done: threading.Event) -> None:
        """Work until ``done``; without ``topic.creation.…`` until the connector's own topics are there."""
        while not done.is_set():
            again = self._missing and not self._made()
            if again:
                done.wait(_AGAIN_S)
            elif self._file.topic_groups:
                self._wait()
            else:
                return

    def _wait(self) -> None:
        """Take what is asked for."""
        try:
            names = {self._asked.get(timeout=_LOOK_S)}
            while not self._asked.empty():
                names.add(self._asked.get())
        except queue.Empty:
            return
        for name in sorted(names):
            group = group_of(self._file.topic_groups, name)
            try:
                self._missing.append((TopicSpec(name, group.partitions, dict(group.config)), group.replication))
            except ConfigError as error:
                log.warning(error.what, extra={"action": "relay.no_topic", "connector": self._file.name})

    def _made(self) -> bool:
        """Create what is missing; False where it is to be tried again."""
        names = ", ".join(spec.name for spec, _ in self._missing)
        try:
            topics = Topics(self._options, contact_s=_CONTACT_S)
            there = topics.partitions()
            for replication in sorted({replication for _, replication in self._missing}):
                wanted = [spec for spec, factor in self._missing if factor == replication and spec.name not in there]
                topics.create(wanted, replication)
        except BrokerError as error:
            if isinstance(error, Denied) and not self._denied:
                self._denied = True
                text = f"{error.what}; until then create {names} by hand, or the relay waits when it needs them"
                log.warning(text, extra={"action": "relay.no_topic", "connector": self._file.name})
            if error.retryable:
                return False
            log.warning(
                f"{error.what}: create {names} by hand",
                extra={"action": "relay.no_topic", "connector": self._file.name},
            )
        self._missing.clear()
        return True
