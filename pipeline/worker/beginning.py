"""Deliveries in, begun on an engine: at once, or with care where a worker before may have died of one.

With care means: after the group's commit names it, in small windows, what is suspect alone.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import BrokerError
from pipeline.failure import Failure
from pipeline.headers import RetryState
from pipeline.worker.delivery import Delivery, Engine, Outcome
from pipeline.worker.journal import Journal
from pipeline.worker.partitions import Partitions
from pipeline.worker.settlement import Dead
from pipeline.worker.watch import Watch

__all__ = ["Beginning"]

_NAME_AGAIN_S = 0.1


class Beginning:
    """Begins records, in the poll thread. ``put`` takes the outcome of what is condemned, ``trouble`` the broker's."""

    def __init__(
        self,
        engine: Engine,
        partitions: Partitions,
        watch: Watch,
        journal: Journal | None,
        *,
        unclean_ends: int,
        put: Callable[[Outcome], None],
        trouble: Callable[[BrokerError], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._partitions = partitions
        self._watch = watch
        self._journal = journal
        self._unclean_ends = unclean_ends
        self._put = put
        self._trouble = trouble
        self._clock = clock
        self._wall = wall
        self._next_naming = 0.0

    def submit(self, deliveries: list[Delivery]) -> None:
        """Begin new deliveries."""
        if any(assigned.careful for assigned in {delivery.assigned for delivery in deliveries}):
            self._watch.add(delivery for delivery in deliveries if delivery.assigned.careful)
            deliveries = [delivery for delivery in deliveries if not delivery.assigned.careful]
            self._begin_watched(self._clock())
        if deliveries:
            self._engine.submit(deliveries)

    def go_on(self, now: float) -> None:
        """Begin what may begin by now of what is begun with care."""
        if self._watch.busy and now >= self._next_naming:
            self._begin_watched(now)

    def _begin_watched(self, now: float) -> None:
        if self._journal is not None and self._journal.paused:
            return  # what a paused queue holds is in nobody's hands, and must not look so
        taken = self._watch.take()
        if not taken:
            return
        naming = [a for a in self._partitions.mine.values() if not a.named]
        naming += {d.assigned for d, _ in taken if d.assigned.named and d.record.offset in d.assigned.begun}
        try:
            if naming:
                self._partitions.commit_in_hand(naming)
        except BrokerError as error:
            self._trouble(error)
            self._watch.put_back(taken)
            self._next_naming = now + _NAME_AGAIN_S
            return
        for assigned in naming:
            assigned.named = True
        fresh = []
        for delivery, again in taken:
            if self._watch.condemns(delivery):
                self._condemn(delivery)
            elif again:
                self._engine.again(delivery)
            else:
                fresh.append(delivery)
        if fresh:
            self._engine.submit(fresh)
        for assigned in {delivery.assigned for delivery, _ in taken}:
            assigned.careful = self._watch.has(assigned) or assigned.watermark.end < assigned.careful_until

    def _condemn(self, delivery: Delivery) -> None:
        """A record that its worker did not survive, time and again, is dead."""
        state = delivery.state or RetryState.first(delivery.record)
        why = f"its worker ended uncleanly {self._unclean_ends} times while it was handled"
        delivery.state = state.failed(Failure("UncleanEnd", why), int(self._wall() * 1000))
        outcome = (delivery, Dead("unclean"))
        if self._journal is not None and delivery.route is not None:
            delivery.entry = self._journal.entry(delivery, delivery.route)
            self._journal.tell(outcome)
        else:
            self._put(outcome)
