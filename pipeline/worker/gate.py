"""Deliveries of a queue in, those that may begin now out: by pause, rate and priority.

One that comes again in place pays for its attempt as a new one does; its key waits for it, so it comes before them.

Pure and not thread-safe: the journal guards it. What waits here counts as in flight, so the worker's own bounds hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from pipeline.topics import PRIORITIES, Priority
from pipeline.worker.delivery import Delivery

__all__ = ["Begin", "Gate"]

_TURNS: tuple[Priority, ...] = ("high", "high", "normal", "high", "high", "normal", "high", "high", "normal", "low")
"""Whose turn it is while all of them wait: the low ones get a tenth, so that they never starve."""


class Begin(NamedTuple):
    """Deliveries for an engine: those whose key is held back for them, and new ones."""

    again: list[Delivery]
    new: list[Delivery]


class Gate:
    """``window`` bounds how many may be begun and not ended (None: any number, where there are no priorities).

    ``tokens`` is how many may begin now, None without a rate; ``owed`` is how many have begun without; ``paused`` holds
    everything.
    """

    def __init__(self, *, window: int | None, rated: bool) -> None:
        self.paused = True  # until somebody has asked
        self.tokens: int | None = 0 if rated else None
        self.owed = 0
        self._window = window
        self._begun = 0
        self._turn = 0
        self._waiting: dict[Priority, deque[Delivery]] = {priority: deque() for priority in PRIORITIES}
        self._again: deque[Delivery] = deque()

    def __len__(self) -> int:
        return len(self._again) + sum(map(len, self._waiting.values()))

    @property
    def open(self) -> bool:
        """Whether everything may begin at once: then nobody needs to ask."""
        return not self.paused and self.tokens is None and self._window is None and not len(self)

    def add(self, delivery: Delivery, priority: Priority) -> None:
        """Take a delivery."""
        self._waiting[priority].append(delivery)

    def add_again(self, delivery: Delivery) -> None:
        """Take one whose key is held back for it."""
        self._again.append(delivery)

    def count(self, key: Hashable) -> int:
        """How many of a key wait for their first attempt here."""
        return sum(delivery.key == key for waiting in self._waiting.values() for delivery in waiting)

    def begin(self, count: int) -> None:
        """Count in what begins without asking. It pays with the first tokens that come."""
        self._begun += count
        if self.tokens is not None:
            self.owed += count

    @property
    def wants(self) -> int:
        """How many tokens are of use."""
        return len(self) + self.owed

    def grant(self, tokens: int) -> None:
        """Take tokens; what was not spent of those before is gone."""
        paid = min(self.owed, tokens)
        self.owed -= paid
        self.tokens = tokens - paid

    def ended(self) -> None:
        """Count off one that had begun."""
        self._begun -= 1

    def take(self) -> Begin:
        """Return what may begin now, in the order in which it should."""
        again: list[Delivery] = []
        while self._again and self._may:
            again.append(self._pay(self._again))
        new: list[Delivery] = []
        while self._may and (self._window is None or self._begun < self._window) and (waiting := self._next()):
            new.append(self._pay(waiting))
        return Begin(again, new)

    @property
    def _may(self) -> bool:
        return not self.paused and self.tokens != 0

    def _pay(self, waiting: deque[Delivery]) -> Delivery:
        """Take one out, with a token where there is a rate."""
        self._begun += 1
        if self.tokens is not None:
            self.tokens -= 1
        return waiting.popleft()

    def _next(self) -> deque[Delivery] | None:
        """Return whose turn it is, of those that wait."""
        for _ in range(len(_TURNS)):
            waiting = self._waiting[_TURNS[self._turn]]
            self._turn = (self._turn + 1) % len(_TURNS)
            if waiting:
                return waiting
        return None

    def closed(self) -> Begin:
        """Return those whose partition is being taken away: they are handed back, which is no beginning."""
        new: list[Delivery] = []
        for waiting in self._waiting.values():
            new += _closed(waiting)
        gone = Begin(_closed(self._again), new)
        self._begun += len(gone.again) + len(gone.new)
        return gone


def _closed(waiting: deque[Delivery]) -> list[Delivery]:
    """Take out those whose partition is being taken away."""
    gone = [delivery for delivery in waiting if delivery.assigned.closed]
    if gone:
        left = [delivery for delivery in waiting if not delivery.assigned.closed]
        waiting.clear()
        waiting.extend(left)
    return gone
