"""What a worker needs of the outside: a group's records, a way to store records, a place to say how it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.definition import Start
from pipeline.errors import BrokerError
from pipeline.progress import Mark
from pipeline.record import Record

__all__ = ["Flow", "Health", "Listener", "Partition", "Producer", "Source"]

Partition = tuple[str, int]
"""Topic and number."""


class Listener(Protocol):
    """Who is told, inside ``Source.poll`` and ``close``, what becomes of the assignment."""

    def assigned(self, starts: Mapping[Partition, Mark]) -> None:
        """Partitions are ours from now on, read from what was committed."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions are ours until this returns: commit now."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """Partitions belong to somebody else already: commit nothing."""

    def trouble(self, error: BrokerError) -> None:
        """The client goes on trying by itself."""


class Source(Protocol):
    """A consumer group's records. One thread only."""

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group. A group that never ran begins each topic where it says; that is committed at once."""

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """Return at most ``limit`` records, waiting for the first one only. Raises BrokerError when it is over."""

    def commit(self, marks: Mapping[Partition, Mark], *, wait: bool) -> None:
        """Commit the offsets to read next. Raises BrokerError only with ``wait``."""

    def close(self) -> None:
        """Leave the group."""


class Flow(Protocol):
    """The tap of a Source."""

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch no more of these."""

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch these again."""

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """End offsets as far as they are known without asking the broker."""

    def reachable(self) -> bool:
        """Ask whether the broker answers, for a moment at most, and lets this group read."""


class Producer(Protocol):
    """Stores records on other topics: ``pipeline.kafka.producer.AckProducer``."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        timestamp_ms: int,
        token: object,
    ) -> None:
        """Queue one record. Raises BrokerError."""

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        """Return token and error of what was stored or refused."""

    def flush(self, wait_s: float) -> int:
        """Send what is queued at once."""

    def close(self) -> None:
        """Drop what was not acknowledged."""


class Health(Protocol):
    """Where a worker says how it is: ``pipeline.probes.Readiness``."""

    def ready(self, part: str) -> None:
        """This part works."""

    def not_ready(self, part: str, why: str) -> None:
        """This part does not, and why."""

    def note(self, part: str, what: str) -> None:
        """Something to know of a part that works; empty: no more."""
