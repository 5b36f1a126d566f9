"""Members of a consumer group in, who has which partition and what was committed out.

As Kafka's cooperative protocol: a partition changes hands only when its owner has given it up, and stays where it is
where that is fair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.progress import Mark

__all__ = ["Coordinator", "Partition"]

Partition = tuple[str, int]


class _Topics(Protocol):
    @property
    def topics(self) -> Mapping[str, int]:
        """Topic → number of partitions."""


class Coordinator:
    """One group. ``committed`` has what was committed for each partition."""

    def __init__(self, broker: _Topics) -> None:
        self.committed: dict[Partition, Mark] = {}
        self._broker = broker
        self._members: dict[object, frozenset[str]] = {}
        self._owners: dict[Partition, object] = {}

    def join(self, member: object, topics: Iterable[str]) -> None:
        """Take a member in; it gets its partitions when others have given them up."""
        self._members[member] = frozenset(topics)

    def leave(self, member: object) -> None:
        """Let a member go, in good order or after a crash: what it had is free."""
        self._members.pop(member, None)
        self._owners = {partition: owner for partition, owner in self._owners.items() if owner is not member}

    def knows(self, member: object) -> bool:
        """Whether a member is in the group."""
        return member in self._members

    def owned(self, member: object) -> set[Partition]:
        """Return what a member has."""
        return {partition for partition, owner in self._owners.items() if owner is member}

    def take(self, member: object, partitions: Iterable[Partition]) -> None:
        """Give a member partitions that are free."""
        self._owners.update(dict.fromkeys(partitions, member))

    def give_up(self, partitions: Iterable[Partition]) -> None:
        """Free partitions."""
        for partition in partitions:
            self._owners.pop(partition, None)

    def free(self, partition: Partition) -> bool:
        """Whether nobody has a partition."""
        return partition not in self._owners

    def target(self, member: object) -> set[Partition]:
        """Return what a member should have."""
        members = list(self._members)
        topics = sorted(set().union(*self._members.values()))
        partitions = [(topic, number) for topic in topics for number in range(self._broker.topics.get(topic, 0))]
        owned = {one: [p for p in partitions if self._owners.get(p) is one] for one in members}
        low, more = divmod(len(partitions), len(members))
        shares: dict[object, list[Partition]] = {}
        for one in sorted(members, key=lambda one: -len(owned[one])):  # who has most may keep one more
            shares[one] = owned[one][: low + (more > 0)]
            more -= len(shares[one]) > low
        kept = {partition for share in shares.values() for partition in share}
        for partition in partitions:
            if partition not in kept:
                min(shares.values(), key=len).append(partition)
        return set(shares[member])
