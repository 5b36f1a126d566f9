"""Partitions that are taken away in; what runs of them ended in time, committed, and fenced.

What was not begun is dropped at once: their next owner begins at the committed offset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from pipeline.errors import BrokerError
from pipeline.worker.circuits import Circuits
from pipeline.worker.delivery import Assigned, Engine
from pipeline.worker.holding import Holding
from pipeline.worker.outlet import Outlet
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Producer, Source
from pipeline.worker.settling import Settling
from pipeline.worker.tiers import Tiers
from pipeline.worker.watch import Watch

__all__ = ["HandOver"]

log = logging.getLogger("pipeline.worker")

_POLL_S = 0.02


class HandOver:
    """Gives partitions back, in the poll thread, for ``drain_s`` at most.

    ``hurried`` tells whether to wait for nothing any more, ``faulty`` that the engine has failed.
    """

    def __init__(
        self,
        group: str,
        source: Source,
        producer: Producer,
        engine: Engine,
        partitions: Partitions,
        settling: Settling,
        holding: Holding,
        circuits: Circuits,
        tiers: Tiers,
        watch: Watch,
        outlet: Outlet,
        *,
        drain_s: float,
        hurried: Callable[[], bool],
        faulty: Callable[[], bool],
        trouble: Callable[[BrokerError], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._group = group
        self._source = source
        self._producer = producer
        self._engine = engine
        self._partitions = partitions
        self._settling = settling
        self._holding = holding
        self._circuits = circuits
        self._tiers = tiers
        self._watch = watch
        self._outlet = outlet
        self._drain_s = drain_s
        self._hurried = hurried
        self._faulty = faulty
        self._trouble = trouble
        self._clock = clock
        self._sleep = sleep

    def give_back(self, taken: list[Assigned], *, patience_s: float = 0) -> bool:
        """Let running handlers end for a bounded time, commit, and fence; tell whether all had ended.

        ``patience_s`` is how long a commit is tried again that the broker refuses for now.
        """
        closing = set(taken)
        for assigned in taken:
            assigned.closed = True
        self._forget(taken)
        deadline = self._clock() + self._drain_s
        while True:
            running = any(delivery.assigned in closing for delivery, _ in self._engine.running())
            self._settling.settle()
            unsettled = self._outlet.open(closing)
            ended = not running and not unsettled
            if ended or self._hurried() or self._faulty() or self._clock() >= deadline:
                break
            if unsettled:
                self._producer.flush(0.01)
            self._sleep(0.002)  # what was refused for now is not in the producer, and flushing it waits for nothing
        self._commit_last(taken, self._clock() + patience_s)
        for assigned in taken:
            assigned.lost = True
            self._partitions.mine.pop((assigned.topic, assigned.partition), None)
        if not ended:
            log.warning(
                "handlers did not end in time; their records are handled again",
                extra={"action": "worker.drain_timeout", "group": self._group, "drain_s": self._drain_s},
            )
        return ended

    def lose(self, taken: list[Assigned]) -> None:
        """Forget partitions that somebody else has already: commit nothing, and what ends later counts for nothing."""
        for assigned in taken:
            assigned.closed = assigned.lost = True
        self._forget(taken)

    def _commit_last(self, taken: list[Assigned], until: float) -> None:
        """Commit partitions that go. In a rebalance the broker refuses that: take part in it, and commit then."""
        while True:
            try:
                self._partitions.commit_given_back(taken)
            except BrokerError as error:
                self._trouble(error)
                if not error.retryable or self._clock() >= until or self._hurried():
                    return
                self._source.poll(1, _POLL_S)  # what it returns is not ours to begin, and not committed
            else:
                return

    def _forget(self, taken: Iterable[Assigned]) -> None:
        for assigned in taken:
            self._tiers.drop(assigned)
            if assigned.lost:
                self._partitions.mine.pop((assigned.topic, assigned.partition), None)
            for delivery, again in self._watch.drop(assigned):
                self._holding.drop(delivery, held=again)
        self._circuits.forget_closed()
        self._holding.forget_closed()
