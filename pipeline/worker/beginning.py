"""Deliveries in, begun on an engine: at once, or with care where a worker before may have died of one.

With care means: after the group's commit names it, in small windows; what is suspect when nothing else runs in the
process, for a bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable

from pipeline.errors import BrokerError
from pipeline.failure import Failure
from pipeline.headers import RetryState
from pipeline.worker.delivery import Assigned, Delivery, Engine, Outcome
from pipeline.worker.gate import Begin
from pipeline.worker.journal import Journal
from pipeline.worker.partitions import Partitions
from pipeline.worker.settlement import Dead
from pipeline.worker.solitude import Solitude
from pipeline.worker.watch import Entry, Watch

__all__ = ["Beginning"]

_NAME_AGAIN_S = 0.1
_BRIEF_S = 1.0
_OTHERS_S = 10.0


class Beginning:
    """Begins records, in the poll thread. ``put`` takes the outcome of what is condemned, ``trouble`` the broker's."""

    def __init__(
        self,
        engine: Engine,
        partitions: Partitions,
        watch: Watch,
        solitude: Solitude,
        held: Container[Hashable],
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
        self._solitude = solitude
        self._held = held
        self._journal = journal
        self._unclean_ends = unclean_ends
        self._put = put
        self._trouble = trouble
        self._clock = clock
        self._wall = wall
        self._next_naming = 0.0
        self._next_alone = 0.0
        self._since: float | None = None  # of the claim, while it is waited for, and then of the one that runs alone
        solitude.join(self, engine.idle)

    def submit(self, deliveries: list[Delivery]) -> None:
        """Begin new deliveries."""
        if any(assigned.careful for assigned in {delivery.assigned for delivery in deliveries}):
            self._watch.add(delivery for delivery in deliveries if delivery.assigned.careful)
            deliveries = [delivery for delivery in deliveries if not delivery.assigned.careful]
            self._begin_watched(self._clock())
        if deliveries:
            self._watch.begin(deliveries, lambda: self._engine.submit(deliveries))

    def end(self) -> None:
        """Begin nothing more, and hold up no other worker of the process."""
        self._solitude.leave(self)

    @property
    def waits(self) -> bool:
        """Whether a suspect waits for its turn, or has it: all else waits for that."""
        return self._since is not None

    def go_on(self, now: float) -> None:
        """Begin what may begin by now of what is begun with care, and what is behind keys that became free."""
        self._watch.release()
        if (self._watch.busy or self._since is not None) and now >= self._next_naming:
            self._begin_watched(now)

    def _begin_watched(self, now: float) -> None:
        if not self._nothing_alone(now):
            return
        if self._journal is not None and self._journal.paused:
            self._let_others(now)
            return  # what a paused queue holds is in nobody's hands, and must not look so
        taken = self._try_suspects(now)
        if taken is None:
            return
        if not taken and not self._solitude.taken_from(self):
            taken = self._watch.take()
        if taken and self._name(taken, now):
            self._begin(taken)

    def _nothing_alone(self, now: float) -> bool:
        """Whether nothing has the process for itself, and the commit does not say so any more."""
        watch = self._watch
        if watch.alone is not None:
            if self._since is not None and now - self._since < watch.insists_s(watch.alone):
                return False
            watch.spare()
        if watch.unsaid:
            if not self._commit([assigned for assigned in watch.unsaid if not assigned.closed], now):
                return False
            watch.unsaid.clear()
            self._let_others(now)
        return True

    def _try_suspects(self, now: float) -> list[Entry] | None:
        """Take suspects whose turn has come; None while nothing else may begin."""
        watch = self._watch
        suspects = watch.suspects(self._held)
        if condemned := watch.take_condemned(suspects):
            return condemned
        if not suspects or now < self._next_alone:
            self._let_others(now)
            return []
        if not self._solitude.claim(self):
            return None
        if self._since is None:
            self._since = now
        if self._solitude.quiet():
            self._since = now
            return watch.take_alone(suspects[0])
        waited_s = now - self._since
        impatient = [entry for entry in suspects if waited_s >= watch.insists_s(entry[0])]
        if not impatient:
            return None
        return watch.take_beside(impatient)

    def _let_others(self, now: float) -> None:
        """Let things begin again, and before the next suspect for about as long as they could not."""
        if self._since is not None:
            lasted_s, self._since = now - self._since, None
            self._next_alone = now + (min(lasted_s, _OTHERS_S) if lasted_s > _BRIEF_S else 0.0)
            self._solitude.release(self)

    def _name(self, taken: list[Entry], now: float) -> bool:
        """Commit what is about to begin where that has to be known; otherwise take it back."""
        naming = [a for a in self._partitions.mine.values() if not a.named]
        naming += {d.assigned for d, _ in taken if d.assigned.named and d.record.offset in d.assigned.begun}
        if not self._commit(naming, now):
            self._watch.put_back(taken)
            return False
        for assigned in naming:
            assigned.named = True
        return True

    def _commit(self, partitions: list[Assigned], now: float) -> bool:
        try:
            if partitions:
                self._partitions.commit_in_hand(partitions)
        except BrokerError as error:
            self._trouble(error)
            self._next_naming = now + _NAME_AGAIN_S
            return False
        return True

    def _begin(self, taken: list[Entry]) -> None:
        """Begin what was named; a claim of its own has let suspects pass, others wait for another worker's."""
        suspects = [d for d, _ in taken if d.record.offset in d.assigned.suspects]
        if suspects:
            self._begin_now(taken)
            if self._watch.alone is None:
                self._let_others(self._clock())
        elif not self._solitude.admit(lambda: self._begin_now(taken)):
            self._watch.put_back(taken)
        for assigned in {delivery.assigned for delivery, _ in taken}:
            assigned.careful = self._watch.has(assigned) or assigned.watermark.end < assigned.careful_until

    def _begin_now(self, taken: list[Entry]) -> None:
        fresh = []
        for delivery, again in taken:
            if self._watch.condemns(delivery):
                self._condemn(delivery)
            elif self._journal is not None and delivery is self._watch.alone:
                self._journal.begin_at_once(Begin([delivery], []) if again else Begin([], [delivery]))
            elif again:
                self._engine.again(delivery)
            else:
                fresh.append(delivery)
        if fresh:
            self._engine.submit(fresh)

    def _condemn(self, delivery: Delivery) -> None:
        """A record that its worker did not survive, time and again, is dead."""
        state = delivery.state or RetryState.first(delivery.record)
        why = f"its worker ended uncleanly {self._unclean_ends} times while it ran and nothing else did"
        delivery.state = state.failed(Failure("UncleanEnd", why), int(self._wall() * 1000))
        outcome = (delivery, Dead("unclean"))
        if self._journal is not None and delivery.route is not None:
            delivery.entry = self._journal.entry(delivery, delivery.route)
            self._journal.tell(outcome)
        else:
            self._put(outcome)
