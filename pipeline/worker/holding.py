"""Records that wait in place in, taken up again when their time comes; the keys behind them are held back meanwhile.

Behind a held-back key a bounded number of records is kept: then its partition is paused until half of them are settled.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Hashable

from pipeline.worker.delivery import Assigned, Delivery, Engine, InFlight
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Health
from pipeline.worker.settlement import Again, Wait
from pipeline.worker.watch import Watch

__all__ = ["Holding"]

log = logging.getLogger("pipeline.worker")


class Holding:
    """What waits in a worker for its next attempt. ``keys`` has held-back keys, with how many wait behind each.

    ``full`` has those of which so many waited that partitions were paused, held back still or not; ``behind`` has how
    many wait behind the keys that are held back for a partition's records.

    The poll thread only. ``backlog`` is how many are kept behind one key; ``chance`` gives a number from 0 to 1.
    """

    def __init__(
        self,
        group: str,
        engine: Engine,
        partitions: Partitions,
        in_flight: InFlight,
        watch: Watch,
        health: Health,
        *,
        backlog: int,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._group = group
        self._engine = engine
        self._partitions = partitions
        self._in_flight = in_flight
        self._watch = watch
        self._health = health
        self._backlog = backlog
        self._clock = clock
        self._chance = chance
        self._timers: list[tuple[float, int, Delivery]] = []
        self._number = 0
        self.keys: dict[Hashable, int] = {}
        self._held_for: dict[Hashable, Assigned] = {}
        self.behind: Counter[Assigned] = Counter()
        self.full: dict[Hashable, set[Assigned]] = {}
        self.waiting: set[Delivery] = set()

    @property
    def next_at(self) -> float | None:
        """When the next one is due, by the clock."""
        return self._timers[0][0] if self._timers else None

    def hold(self, delivery: Delivery, decision: Again | Wait) -> None:
        """Keep a record, and its key, until its next attempt. Dropped when the partition is being taken away."""
        if not self.keep(delivery):
            return
        delay_s = decision.delay_s
        if isinstance(decision, Again):
            delay_s *= 1 + decision.jitter * self._chance()
        else:
            self._report_waiting(delivery, decision)
        self._number += 1
        heapq.heappush(self._timers, (self._clock() + delay_s, self._number, delivery))

    def keep(self, delivery: Delivery) -> bool:
        """Hold a record's key back, for who says when it is taken up; False where its partition is taken away."""
        if delivery.assigned.closed:
            self.let_go(delivery)
            self.let_next(delivery)
            self._in_flight.leave(delivery)
            return False
        self._watch.rest(delivery)
        key = delivery.key
        if key is not None and key not in self.keys:
            self.keys[key] = count = self._engine.behind(key)
            self._held_for[key] = delivery.assigned
            self.behind[delivery.assigned] += count
            if self.keys[key] >= self._backlog:
                self._stop(key, delivery.assigned)
        return True

    def take_up(self, delivery: Delivery) -> None:
        """Let a record that was kept have its next attempt."""
        if self._watch.concerns(delivery):
            self._watch.add([delivery], again=True)
        else:
            self._watch.begin([delivery], lambda: self._engine.again(delivery), again=True)

    def take_up_anew(self, deliveries: list[Delivery]) -> None:
        """Let records without order that were kept have their next attempt when their queue's pause and rate allow."""
        plain = [delivery for delivery in deliveries if not self._watch.concerns(delivery)]
        self._watch.add(delivery for delivery in deliveries if self._watch.concerns(delivery))
        if plain:
            self._watch.begin(plain, lambda: self._engine.submit(plain))

    def hold_behind(self, assigned: Assigned, key: Hashable) -> None:
        """Count one more behind a held-back key."""
        self.keys[key] += 1
        self.behind[self._held_for[key]] += 1
        if self.keys[key] >= self._backlog:
            self._stop(key, assigned)

    def let_go(self, delivery: Delivery) -> None:
        """A held-back key goes on."""
        if delivery in self.waiting:
            self.waiting.discard(delivery)
            self._ready_if_none_waits()
        self._watch.ended(delivery)
        self._release_key(delivery.key)

    def let_next(self, delivery: Delivery) -> None:
        """Let what is behind a record go on whose key was held back for it, and is not any more."""
        self._watch.let_next(lambda: self._engine.release(delivery))

    def wake(self, now: float) -> None:
        """Take up again what is due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            self.take_up(heapq.heappop(timers)[2])

    def forget_closed(self) -> None:
        """Drop what waits of partitions that are taken away: their next owner begins at the committed offset."""
        kept = []
        for entry in self._timers:
            if entry[2].assigned.closed:
                self.drop(entry[2], held=True)
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._timers = kept
        open_ = {key: {a for a in stopped if not a.closed} for key, stopped in self.full.items()}
        self.full = {key: stopped for key, stopped in open_.items() if stopped}
        self._ready_if_none_waits()

    def drop(self, delivery: Delivery, *, held: bool) -> None:
        """Forget a record that is not in a handler; ``held``: its key is held back for it."""
        if held:
            self._release_key(delivery.key)
            self.waiting.discard(delivery)
            self.let_next(delivery)
        self._watch.ended(delivery)
        self._in_flight.leave(delivery)

    def _release_key(self, key: Hashable) -> None:
        if (count := self.keys.pop(key, None)) is not None:
            held_for = self._held_for.pop(key)
            self.behind[held_for] -= count
            if not self.behind[held_for]:
                del self.behind[held_for]
        if key in self.full and self._engine.behind(key) <= self._backlog // 2:
            stopped = self.full.pop(key)
            self._partitions.resume(stopped.difference(*self.full.values()), "backlog")

    def _stop(self, key: Hashable, assigned: Assigned) -> None:
        self.full.setdefault(key, set()).add(assigned)
        self._partitions.pause([assigned], "backlog")

    def _report_waiting(self, delivery: Delivery, decision: Wait) -> None:
        """Say which record waits, for what and for whom: at ``/readyz``, and in the log when it begins to."""
        record, new = delivery.record, delivery not in self.waiting
        self.waiting.add(delivery)
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        self._health.not_ready(f"{self._group} decoding", f"{where} waits: {decision.what}")
        if new:
            log.warning(
                "a record waits",
                extra={
                    "action": "worker.waiting",
                    "group": self._group,
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "why": decision.what,
                    "remedy": decision.remedy,
                },
            )

    def _ready_if_none_waits(self) -> None:
        if not self.waiting:
            self._health.ready(f"{self._group} decoding")
