"""Batches of records in, the same out; each topic that is seen for the first time is asked for.

Whoever creates topics does it beside the relay, which meanwhile waits for them as it waits for any topic.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.capture import Batch
from pipeline.relay.encoding import Source

__all__ = ["CreatingSource"]

_KNOWN_TOPICS = 10_000


class CreatingSource:
    """A source that tells ``ask`` of each topic, once or a few times."""

    def __init__(self, source: Source, ask: Callable[[str], None]) -> None:
        self._source = source
        self._ask = ask
        self._known: set[str] = set()
        self.start = source.start
        self.confirm = source.confirm
        self.close = source.close

    def read(self, wait_s: float) -> Batch:
        """Return what has come."""
        batch = self._source.read(wait_s)
        dead = batch.dead
        for topic in {record[0] for index, record in enumerate(batch.records) if index not in dead} - self._known:
            if len(self._known) >= _KNOWN_TOPICS:
                self._known.clear()
            self._known.add(topic)
            self._ask(topic)
        return batch
