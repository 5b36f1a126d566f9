"""Deliveries that may have ended their worker in, those that may begin now out.

A worker that ends uncleanly leaves no word of which record was to blame. So what may have been in flight is begun in
small windows that are committed by name first, and what was in such a window at the next unclean end is begun alone.
Pure and of one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from pipeline.worker.delivery import Assigned, Delivery

__all__ = ["Watch"]

_WINDOW = 64


class Watch:
    """What waits to be begun with care, in its partition's order, and what was begun so and has not ended."""

    def __init__(self, unclean_ends: int) -> None:
        self._unclean_ends = unclean_ends
        self._waiting: dict[Assigned, deque[tuple[Delivery, bool]]] = {}
        self._begun: set[Delivery] = set()
        self._alone: Delivery | None = None

    @property
    def busy(self) -> bool:
        """Whether anything waits here."""
        return bool(self._waiting)

    @property
    def begun(self) -> bool:
        """Whether anything that was begun with care has not ended."""
        return bool(self._begun) or self._alone is not None

    def add(self, deliveries: Iterable[Delivery], *, again: bool = False) -> None:
        """Take deliveries; ``again``: their keys are held back for them."""
        for delivery in deliveries:
            waiting = self._waiting.setdefault(delivery.assigned, deque())
            if again:
                waiting.appendleft((delivery, True))
            else:
                waiting.append((delivery, False))

    def take(self) -> list[tuple[Delivery, bool]]:
        """Return what may begin, and whether its key is held back for it."""
        taken: list[tuple[Delivery, bool]] = []
        for assigned, waiting in list(self._waiting.items()):
            while waiting and self._may(assigned, *waiting[0]):
                taken.append(waiting.popleft())
            if not waiting:
                del self._waiting[assigned]
        return taken

    def put_back(self, taken: Iterable[tuple[Delivery, bool]]) -> None:
        """Take back what could not be committed by name."""
        for delivery, again in reversed(list(taken)):
            if again:
                self.rest(delivery)
            else:
                self.ended(delivery)
            self._waiting.setdefault(delivery.assigned, deque()).appendleft((delivery, again))

    def rest(self, delivery: Delivery) -> None:
        """A delivery waits for its next attempt: no unclean end is its fault now, and no other takes its turn."""
        self._begun.discard(delivery)
        delivery.assigned.begun.discard(delivery.record.offset)

    def ended(self, delivery: Delivery) -> None:
        """A delivery is settled, or handed back."""
        self.rest(delivery)
        if delivery is self._alone:
            self._alone = None

    def has(self, assigned: Assigned) -> bool:
        """Whether records of a partition wait here."""
        return assigned in self._waiting

    def drop(self, assigned: Assigned) -> list[tuple[Delivery, bool]]:
        """Forget a partition; return what waited."""
        return list(self._waiting.pop(assigned, ()))

    def condemns(self, delivery: Delivery) -> bool:
        """Whether too many workers ended while they had a record."""
        return delivery.assigned.suspects.get(delivery.record.offset, 0) >= self._unclean_ends

    def _may(self, assigned: Assigned, delivery: Delivery, again: bool) -> bool:
        offset = delivery.record.offset
        if self.condemns(delivery):
            return True  # and is not begun
        if offset in assigned.suspects:
            if self._alone is not None and self._alone is not delivery:
                return False
            self._alone = delivery
        elif offset >= assigned.watched_until:
            return True
        elif len(self._begun) >= _WINDOW and not again:  # those behind its key are in the window
            return False
        self._begun.add(delivery)
        assigned.begun.add(offset)
        return True
