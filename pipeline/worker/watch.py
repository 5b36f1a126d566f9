"""Deliveries that may have ended their worker in, those that may begin now out.

A worker that ends uncleanly leaves no word of which record was to blame. So what may have been in flight is begun in
small windows that are committed by name first. What was in such a window when a worker ended again is a suspect: it is
begun when nothing else runs, and an end counts against it only while nothing else does. Pure and of one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Hashable, Iterable

from pipeline.progress import Suspicion
from pipeline.worker.delivery import Assigned, Delivery
from pipeline.worker.solitude import Solitude

__all__ = ["Entry", "Watch"]

_WINDOW = 64
_INSIST_S = 10.0
_INSIST_FACTOR = 4
_INSIST_MOST = 6

Entry = tuple[Delivery, bool]
"""A delivery, and whether its key is held back for it."""


class Watch:
    """What waits to be begun with care, in its partition's order, and what was begun so and has not ended.

    ``alone`` is the suspect that nothing else may run beside. ``unsaid`` has partitions whose commit still says so of
    one that has ended, or waits, or has had its time: nothing may begin before they are committed.
    """

    def __init__(self, unclean_ends: int, solitude: Solitude) -> None:
        self._unclean_ends = unclean_ends
        self._solitude = solitude
        self._waiting: dict[Assigned, deque[Entry]] = {}
        self._begun: set[Delivery] = set()
        self._tried: set[Delivery] = set()  # suspects that were begun: each holds its key back until it is settled
        self._spared: set[Delivery] = set()
        self._releases: deque[Callable[[], None]] = deque()
        self.alone: Delivery | None = None
        self.unsaid: set[Assigned] = set()

    @property
    def busy(self) -> bool:
        """Whether anything waits here."""
        return bool(self._waiting)

    @property
    def begun(self) -> bool:
        """Whether anything that was begun with care has not ended."""
        return bool(self._begun or self._tried)

    def begin(self, deliveries: list[Delivery], begin: Callable[[], None], *, again: bool = False) -> None:
        """Call ``begin`` for what needs no care; keep the deliveries where nothing may begin now."""
        if self._tried or not self._solitude.admit(begin):
            for delivery in deliveries:
                delivery.assigned.careful = True
            self.add(deliveries, again=again)

    def let_next(self, release: Callable[[], None]) -> None:
        """Call ``release``, which lets the next of a key begin by itself: now, or when something may begin."""
        self._releases.append(release)
        self.release()

    def release(self) -> None:
        """Let those begin that could not when their keys became free."""
        while self._releases and self._solitude.admit(self._releases[0]):
            self._releases.popleft()

    def add(self, deliveries: Iterable[Delivery], *, again: bool = False) -> None:
        """Take deliveries; ``again``: their keys are held back for them."""
        for delivery in deliveries:
            waiting = self._waiting.setdefault(delivery.assigned, deque())
            if again:
                waiting.appendleft((delivery, True))
            else:
                waiting.append((delivery, False))

    def concerns(self, delivery: Delivery) -> bool:
        """Whether a delivery must wait here for its turn."""
        return delivery.assigned.careful or delivery.record.offset in delivery.assigned.suspects

    def take(self) -> list[Entry]:
        """Return what may begin of what is not suspect: a window of it where one has to be named first."""
        taken: list[Entry] = []
        for assigned, waiting in list(self._waiting.items()):
            behind = self._held()
            kept: deque[Entry] = deque()
            while waiting:
                entry = waiting.popleft()
                key = entry[0].key
                if key in behind or not self._may(assigned, *entry):
                    kept.append(entry)
                    if key is not None:
                        behind.add(key)
                    if self._full:
                        break
                else:
                    taken.append(entry)
            waiting.extendleft(reversed(kept))
            if not waiting:
                del self._waiting[assigned]
        return taken

    def suspects(self, held: Container[Hashable]) -> list[Entry]:
        """Return the suspects whose turn it is in their key, those first of which an end would tell most."""
        found: list[tuple[int, int, Entry]] = []
        for assigned, waiting in self._waiting.items():
            if not assigned.suspects:
                continue
            behind = self._held()
            for delivery, again in waiting:
                key = delivery.key
                suspicion = assigned.suspects.get(delivery.record.offset)
                if suspicion is not None and (again or (key not in behind and (key is None or key not in held))):
                    found.append((-suspicion.ends, suspicion.spared, (delivery, again)))
                if key is not None:
                    behind.add(key)
        return [entry for _, _, entry in sorted(found, key=lambda one: one[:2])]

    def insists_s(self, delivery: Delivery) -> float:
        """How long a suspect waits until nothing else runs, and then runs alone."""
        spared = delivery.assigned.suspects[delivery.record.offset].spared - (delivery in self._spared)
        return _INSIST_S * float(_INSIST_FACTOR ** min(spared, _INSIST_MOST))

    def take_alone(self, entry: Entry) -> list[Entry]:
        """Let a suspect begin while nothing else does."""
        [delivery] = self._out([entry])
        self.alone = delivery
        delivery.assigned.alone = delivery.record.offset
        return [entry]

    def take_beside(self, entries: list[Entry]) -> list[Entry]:
        """Let suspects begin beside what runs: their ends tell nothing, and next time they insist longer."""
        for delivery in self._out(entries):
            self._spare(delivery)
        return entries

    def take_condemned(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those of the entries that are not to begin at all."""
        condemned = [entry for entry in entries if self.condemns(entry[0])]
        for entry in condemned:
            self._remove(entry)
        return condemned

    def spare(self) -> None:
        """The suspect has survived for long enough: others may begin beside it."""
        if (delivery := self.alone) is not None:
            self._spare(delivery)
            self._not_alone(delivery)

    def put_back(self, taken: Iterable[Entry]) -> None:
        """Take back what could not be committed by name, or may not begin any more."""
        for delivery, again in reversed(list(taken)):
            if again:
                self.rest(delivery)
            else:
                self.ended(delivery)
            self._waiting.setdefault(delivery.assigned, deque()).appendleft((delivery, again))

    def rest(self, delivery: Delivery) -> None:
        """A delivery waits for its next attempt: no unclean end is its fault now. A suspect's key waits with it."""
        self._begun.discard(delivery)
        delivery.assigned.begun.discard(delivery.record.offset)
        self._not_alone(delivery)

    def ended(self, delivery: Delivery) -> None:
        """A delivery is settled, or handed back."""
        self.rest(delivery)
        self._tried.discard(delivery)
        self._spared.discard(delivery)

    def has(self, assigned: Assigned) -> bool:
        """Whether records of a partition wait here."""
        return assigned in self._waiting

    def drop(self, assigned: Assigned) -> list[Entry]:
        """Forget a partition; return what waited."""
        return list(self._waiting.pop(assigned, ()))

    def condemns(self, delivery: Delivery) -> bool:
        """Whether too many workers ended while they ran a record and nothing else."""
        suspicion = delivery.assigned.suspects.get(delivery.record.offset)
        return suspicion is not None and suspicion.ends >= self._unclean_ends

    @property
    def _full(self) -> bool:
        return len(self._begun) >= _WINDOW

    def _held(self) -> set[Hashable]:
        """The keys of suspects that have begun: what would be behind them in the engine would begin by itself."""
        return {delivery.key for delivery in self._tried if delivery.key is not None}

    def _may(self, assigned: Assigned, delivery: Delivery, again: bool) -> bool:
        offset = delivery.record.offset
        if offset in assigned.suspects:
            return False
        if offset >= assigned.watched_until:
            return True
        if self._full and not again:  # those behind its key are in the window
            return False
        self._begun.add(delivery)
        assigned.begun.add(offset)
        return True

    def _out(self, entries: Iterable[Entry]) -> list[Delivery]:
        """Let suspects begin, by name."""
        deliveries = []
        for entry in entries:
            self._remove(entry)
            delivery = entry[0]
            self._begun.add(delivery)
            self._tried.add(delivery)
            delivery.assigned.begun.add(delivery.record.offset)
            deliveries.append(delivery)
        return deliveries

    def _remove(self, entry: Entry) -> None:
        assigned = entry[0].assigned
        waiting = self._waiting[assigned]
        waiting.remove(entry)
        if not waiting:
            del self._waiting[assigned]

    def _spare(self, delivery: Delivery) -> None:
        if delivery not in self._spared:  # once for each worker, however often it tries in place
            self._spared.add(delivery)
            suspects, offset = delivery.assigned.suspects, delivery.record.offset
            suspects[offset] = Suspicion(suspects[offset].ends, suspects[offset].spared + 1)

    def _not_alone(self, delivery: Delivery) -> None:
        if delivery is self.alone:
            self.alone = None
            delivery.assigned.alone = None
            self.unsaid.add(delivery.assigned)
