"""A group's records in a worker's hands: one member of a group on the broker in memory.

What ``pipeline.kafka.consumer`` promises holds here too: nothing is committed by itself, no offset is reset, a group
begins where it is told, new partitions at their beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from random import Random

from pipeline.definition import Start
from pipeline.errors import BrokerError
from pipeline.progress import Mark
from pipeline.record import Record
from pipeline.testing.broker import Broker
from pipeline.testing.coordinator import Partition
from pipeline.worker.ports import Listener

__all__ = ["GroupConsumer"]

_AWAY = "Kafka: the broker does not answer"


class GroupConsumer:
    """One member. ``chance`` draws which partition comes first and how many records a fetch brings.

    A commit without ``wait`` arrives at the next poll: a crash before loses it. ``fetched`` counts records.
    """

    def __init__(self, broker: Broker, group: str, chance: Random) -> None:
        self._broker = broker
        self._name = group
        self._group = broker.group(group)
        self._chance = chance
        self._starts: dict[str, Start] = {}
        self._listener: Listener | None = None
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._on_the_way: dict[Partition, Mark] = {}
        self._told_down = False
        self.fetched = 0

    def open(self, topics: Mapping[str, Start], listener: Listener) -> None:
        """Join the group. Raises BrokerError where the broker does not answer or a topic is missing."""
        missing = sorted(set(topics) - set(self._broker.topics))
        if self._broker.down or missing:
            what = f"group {self._name}: no such topic: {', '.join(missing)}" if missing else _AWAY
            raise BrokerError(what, remedy="create them" if missing else "", retryable=not missing)
        self._starts = dict(topics)
        self._listener = listener
        committed = self._group.committed
        for topic, start in topics.items():
            numbers = range(self._broker.topics[topic])
            if not any((topic, number) in committed for number in numbers):
                committed.update({(topic, number): Mark(self._start(topic, number, start)) for number in numbers})
        self._group.join(self, topics)

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """Return at most ``limit`` records; there is no waiting in memory. Raises BrokerError when it is over."""
        del wait_s
        if self._away():
            return []
        self._send_commits()
        self._rebalance()
        open_now = sorted(set(self._positions) - self._paused)
        self._chance.shuffle(open_now)
        found: list[Record] = []
        for topic, partition in open_now:
            room = limit - len(found)
            if room <= 0:
                break
            found += self._fetch(topic, partition, self._chance.randint(1, room))
        self.fetched += len(found)
        return found

    def commit(self, marks: Mapping[Partition, Mark], *, wait: bool) -> None:
        """Commit the offsets to read next; without ``wait`` trouble goes to the listener."""
        self._on_the_way.update(marks)
        if not wait:
            return
        if self._broker.down:
            raise BrokerError(_AWAY, retryable=True)
        if not self._group.knows(self):
            raise BrokerError(f"commit of group {self._name}: not a member any more", retryable=True)
        self._send_commits()

    def close(self) -> None:
        """Leave the group."""
        if self._listener is not None and self._positions and self._group.knows(self):
            self._listener.revoked(list(self._positions))
        self.crash()

    def crash(self) -> None:
        """Be gone, as after a kill: what was on the way is lost."""
        self._on_the_way.clear()
        self._positions.clear()
        self._group.leave(self)

    def expel(self) -> None:
        """Be taken for dead by the group, as after a long stop: the member learns it at its next poll."""
        self._group.leave(self)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch no more of these."""
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch these again."""
        self._paused.difference_update(partitions)

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """End offsets."""
        return {(topic, number): self._broker.bounds(topic, number)[1] for topic, number in partitions}

    def reachable(self) -> bool:
        """Whether the broker answers."""
        return not self._broker.down

    def _away(self) -> bool:
        if self._broker.down and not self._told_down and self._listener is not None:
            self._listener.trouble(BrokerError(_AWAY, retryable=True))
        self._told_down = self._broker.down
        return self._told_down

    def _send_commits(self) -> None:
        sent, self._on_the_way = self._on_the_way, {}
        if not sent:
            return
        if self._group.knows(self):
            self._group.committed.update(sent)
        elif self._listener is not None:
            self._listener.trouble(BrokerError(f"commit of group {self._name}: not a member any more", retryable=True))

    def _rebalance(self) -> None:
        group, listener = self._group, self._listener
        assert listener is not None
        if not group.knows(self):
            gone = list(self._positions)
            self._drop(gone)
            group.join(self, self._starts)
            if gone:
                listener.lost(gone)
        target = group.target(self)
        given_up = sorted(set(self._positions) - target)
        if given_up:
            listener.revoked(given_up)
            self._drop(given_up)
            group.give_up(given_up)
        fresh = sorted(partition for partition in target - set(self._positions) if group.free(partition))
        if fresh:
            group.take(self, fresh)
            starts = {partition: self._begin(partition) for partition in fresh}
            self._positions.update({partition: mark.offset for partition, mark in starts.items()})
            listener.assigned(starts)

    def _drop(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._paused.discard(partition)

    def _begin(self, partition: Partition) -> Mark:
        found = self._group.committed.get(partition)
        return Mark(self._broker.bounds(*partition)[0]) if found is None else found  # a new one: at its beginning

    def _start(self, topic: str, number: int, start: Start) -> int:
        low, high = self._broker.bounds(topic, number)
        if isinstance(start, datetime):
            found = self._broker.offset_at(topic, number, int(start.timestamp() * 1000))
            return high if found is None else found
        return low if start == "earliest" else high

    def _fetch(self, topic: str, partition: int, limit: int) -> list[Record]:
        position = self._positions[topic, partition]
        low, high = self._broker.bounds(topic, partition)
        if not low <= position <= high:
            raise BrokerError(
                f"{topic} [{partition}] of group {self._name}: the committed offset is not there any more: "
                "records may have been missed",
                remedy="see what retention deleted, then set the offset: pipeline consumer reset",
            )
        found = self._broker.read(topic, partition, position, limit)
        if found:
            self._positions[topic, partition] = found[-1].offset + 1
        return found
