"""Deliveries of a queue in, those that may begin now out: by pause, rate and priority.

Pure and not thread-safe: the journal guards it. What waits here counts as in flight, so the worker's own bounds hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from pipeline.topics import PRIORITIES, Priority
from pipeline.worker.delivery import Delivery

__all__ = ["Gate"]

_TURNS: tuple[Priority, ...] = ("high", "high", "normal", "high", "high", "normal", "high", "high", "normal", "low")
"""Whose turn it is while all of them wait: the low ones get a tenth, so that they never starve."""


class Gate:
    """``window`` bounds how many may be begun and not ended (None: any number, where there are no priorities).

    ``tokens`` is how many may begin now, None without a rate; ``paused`` holds everything.
    """

    def __init__(self, *, window: int | None, rated: bool) -> None:
        self.paused = True  # until somebody has asked
        self.tokens: int | None = 0 if rated else None
        self._window = window
        self._begun = 0
        self._turn = 0
        self._waiting: dict[Priority, deque[Delivery]] = {priority: deque() for priority in PRIORITIES}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def open(self) -> bool:
        """Whether everything may begin at once: then nobody needs to ask."""
        return not self.paused and self.tokens is None and self._window is None and not len(self)

    def add(self, delivery: Delivery, priority: Priority) -> None:
        """Take a delivery."""
        self._waiting[priority].append(delivery)

    def count(self, key: Hashable) -> int:
        """How many of a key wait."""
        return sum(delivery.key == key for waiting in self._waiting.values() for delivery in waiting)

    def begin(self) -> None:
        """Count one in that begins without asking."""
        self._begun += 1

    def ended(self) -> None:
        """Count off one that had begun."""
        self._begun -= 1

    def take(self) -> list[Delivery]:
        """Return what may begin now, in the order in which it should."""
        taken: list[Delivery] = []
        while not self.paused and (self.tokens is None or self.tokens > 0):
            if self._window is not None and self._begun >= self._window:
                break
            waiting = self._next()
            if waiting is None:
                break
            taken.append(waiting.popleft())
            self._begun += 1
            if self.tokens is not None:
                self.tokens -= 1
        return taken

    def _next(self) -> deque[Delivery] | None:
        """Return whose turn it is, of those that wait."""
        for _ in range(len(_TURNS)):
            waiting = self._waiting[_TURNS[self._turn]]
            self._turn = (self._turn + 1) % len(_TURNS)
            if waiting:
                return waiting
        return None

    def closed(self) -> list[Delivery]:
        """Return those whose partition is being taken away: they are handed back, which is no beginning."""
        gone: list[Delivery] = []
        for priority, waiting in self._waiting.items():
            if any(delivery.assigned.closed for delivery in waiting):
                gone += [delivery for delivery in waiting if delivery.assigned.closed]
                self._waiting[priority] = deque(d for d in waiting if not d.assigned.closed)
        self._begun += len(gone)
        return gone
