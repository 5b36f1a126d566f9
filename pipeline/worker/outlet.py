"""Records that leave for a retry topic or the DLQ in, those that are stored there out.

A record counts as settled only when the broker has acknowledged its copy. What a retry topic does not take now is sent
again; a DLQ that cannot be written ends the worker.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.definition import Group
from pipeline.errors import BrokerError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, RetryState
from pipeline.topics import retry_tier
from pipeline.worker.delivery import Assigned, Delivery
from pipeline.worker.ports import Health, Producer
from pipeline.worker.settlement import tier_for

__all__ = ["Outlet"]

_AGAIN_S = 1.0
_UNREADABLE_S = 30.0


@dataclass(slots=True, eq=False)
class _Copy:
    """A record on its way. ``small`` once its traces were left out."""

    delivery: Delivery
    outcome: Literal["retry", "dead"]
    small: bool = False


class Outlet:
    """Sends and awaits. ``clock`` gives seconds that only grow, ``wall`` seconds since 1970. One thread only."""

    def __init__(
        self, group: Group, producer: Producer, health: Health, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._group = group
        self._producer = producer
        self._health = health
        self._clock = clock
        self._wall = wall
        self._part = f"{group.name} retry topics"
        self._open: set[_Copy] = set()
        self._again: list[tuple[float, int, _Copy]] = []
        self._number = 0

    def retry(self, delivery: Delivery) -> None:
        """Send a record to the retry tier that its due time asks for."""
        self._send(_Copy(delivery, "retry"))

    def bury(self, delivery: Delivery) -> None:
        """Send a record to the DLQ."""
        self._send(_Copy(delivery, "dead"))

    def collect(self, wait_s: float = 0.0) -> list[tuple[Delivery, Literal["retry", "dead"]]]:
        """Return what was stored. Raises BrokerError when the DLQ refused a record."""
        now = self._clock()
        while self._again and self._again[0][0] <= now:
            self._send(heapq.heappop(self._again)[2])
        if not self._open:
            return []
        stored: list[tuple[Delivery, Literal["retry", "dead"]]] = []
        for copy, error in self._producer.poll(wait_s):
            if not isinstance(copy, _Copy):
                continue
            if error is not None:
                self._refused(copy, error)
                continue
            self._open.discard(copy)
            stored.append((copy.delivery, copy.outcome))
        if stored and not self._again:
            self._health.ready(self._part)
        return stored

    def open(self, partitions: set[Assigned] | None = None) -> int:
        """How many are not stored yet, of these partitions or of all."""
        if partitions is None:
            return len(self._open)
        return sum(copy.delivery.assigned in partitions for copy in self._open)

    def _send(self, copy: _Copy) -> None:
        self._open.add(copy)
        record = copy.delivery.record
        topic, headers = self._addressed(copy)
        try:
            self._producer.send(topic, record.key, record.value, headers, 0, copy)
        except BrokerError as error:
            self._refused(copy, error)

    def _addressed(self, copy: _Copy) -> tuple[str, list[tuple[str, str | bytes | None]]]:
        delivery = copy.delivery
        record, state = delivery.record, delivery.state
        if copy.outcome == "retry":
            if state is None:  # a newer worker's: as it is
                return self._tier(_UNREADABLE_S), [*record.headers]
            return self._tier(state.due_ms / 1000 - self._wall()), [*state.headers(record, traces=not copy.small)]
        letter = _letter(delivery, self._group.name, int(self._wall() * 1000))
        return self._group.dlq, [*letter.headers(record, traces=not copy.small)]

    def _tier(self, wait_s: float) -> str:
        # a millisecond that passed since it was settled must not move it to the next shorter tier
        return retry_tier(self._group.name, tier_for(wait_s * 1.02 + 0.05, self._group.tiers_s))

    def _refused(self, copy: _Copy, error: BrokerError) -> None:
        if not error.retryable and not copy.small:
            copy.small = True
            self._send(copy)
        elif copy.outcome == "dead":
            self._open.discard(copy)
            raise BrokerError(
                f"group {self._group.name}: a record cannot be stored on the DLQ {self._group.dlq}: {error.what}",
                remedy=error.remedy or "mend the topic, then start the worker again; nothing was committed past it",
            ) from error
        elif not error.retryable:
            self._open.discard(copy)
            self.bury(copy.delivery)
        else:
            self._health.not_ready(self._part, error.what)
            self._number += 1
            heapq.heappush(self._again, (self._clock() + _AGAIN_S, self._number, copy))


def _letter(delivery: Delivery, group: str, now_ms: int) -> DeadLetter:
    record = delivery.record
    state = delivery.state or RetryState.first(record)
    return DeadLetter(
        state.origin,
        group=group,
        attempts=state.attempt,
        error=state.last_error or Failure("", ""),
        first_error=state.first_error,
        first_failure_ms=state.first_failure_ms,
        died_ms=now_ms,
        generation=state.generation,
        history=state.history,
    )
