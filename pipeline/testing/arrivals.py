"""Committed rows in, their records on the broker out: at once, or when a delayed job's time has come.

Now and then chance publishes the last ones once more, as a relay does that was killed before it could confirm them.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from uuid import UUID

from pipeline.testing.broker import Broker
from pipeline.testing.faults import Misfortune
from pipeline.testing.jobs import Jobs
from pipeline.testing.stored import Row
from pipeline.topics import TopicSpec

__all__ = ["Arrivals"]


class Arrivals:
    """All that was stored, ``rows``, in this order. ``partitions`` are those of topics that nobody has created."""

    def __init__(self, broker: Broker, jobs: Jobs, misfortune: Misfortune, chance: Random, partitions: int) -> None:
        self.rows: list[Row] = []
        self._broker = broker
        self._jobs = jobs
        self._misfortune = misfortune
        self._chance = chance
        self._partitions = partitions
        self._numbers: dict[bytes, bytes] = {}

    def place(self, key: bytes) -> bytes:
        """Return what chooses a key's partition: the same in every run with one seed, also where the key is an id."""
        return self._numbers.get(key, key)

    def take(self, rows: Iterable[Row]) -> None:
        """Take what a transaction has committed."""
        for row in rows:
            self.rows.append(row)
            if row.message.message_type.key is None:  # keyed by its id, which is random: so would be its partition
                self._numbers.setdefault(row.key.encode(), str(len(self.rows)).encode())
            if row.due_at is None:
                self.append(row)
                if self._misfortune.strikes("duplicate"):
                    self.repeat(self._chance.randint(1, 5))
            else:
                self._jobs.wait(row)

    def append(self, row: Row) -> None:
        """Publish a row now."""
        if row.topic not in self._broker.topics:
            self._broker.create([TopicSpec(row.topic, self._partitions)])
        self._broker.append(row.topic, row.key.encode(), row.payload, row.record_headers)

    def repeat(self, count: int) -> None:
        """Publish the last so many once more."""
        for row in self._left()[-count:]:
            self.append(row)

    def sent(self, job_id: UUID) -> Row | None:
        """Return a row that went to the broker; None where it did not."""
        return next((row for row in self._left() if row.id == job_id), None)

    def _left(self) -> list[Row]:
        return [row for row in self.rows if row.id not in self._jobs.due and row.id not in self._jobs.withdrawn]
