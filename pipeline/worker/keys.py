"""Deliveries in, those whose turn it is out: one of a key at a time, keys side by side.

Pure and not thread-safe: the engines guard it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from pipeline.worker.delivery import Delivery

__all__ = ["KeyQueues"]


class KeyQueues:
    """``ready`` holds what may begin; behind it each key has its own queue. A key of None keeps no order."""

    __slots__ = ("_behind", "ready")

    def __init__(self) -> None:
        self.ready: deque[Delivery] = deque()
        self._behind: dict[Hashable, deque[Delivery] | None] = {}

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries; one of a key that is taken waits behind it."""
        behind, ready = self._behind, self.ready
        for delivery in deliveries:
            key = delivery.key
            if key is None:
                ready.append(delivery)
            elif key not in behind:
                behind[key] = None
                ready.append(delivery)
            elif (queue := behind[key]) is None:
                behind[key] = deque((delivery,))
            else:
                queue.append(delivery)

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""
        return len(self._behind.get(key) or ())

    def finish(self, key: Hashable) -> None:
        """Let the next of a key begin. Call once for each delivery that came from ``ready``."""
        if key is None:
            return
        queue = self._behind[key]
        if queue:
            self.ready.append(queue.popleft())
        else:
            del self._behind[key]
