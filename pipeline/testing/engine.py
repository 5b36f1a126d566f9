"""Deliveries in, outcomes out, in the caller's own thread: an engine whose concurrency is drawn and not real.

Attempts begin when ``work`` is called, in an order that ``chance`` draws among those whose turn it may be, so that a
seed tells the whole run. Handlers may end later than they began, as slow ones do.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator, Hashable
from dataclasses import replace
from random import Random
from typing import Any

from pipeline.definition import Group
from pipeline.testing.faults import Crash
from pipeline.worker.attempt import Attempts
from pipeline.worker.delivery import Delivery, Outcome
from pipeline.worker.keys import KeyQueues
from pipeline.worker.settlement import HandBack, InPlace

__all__ = ["InlineEngine", "Running", "as_coroutines"]

Running = Generator[Coroutine[Any, Any, Outcome], Outcome, int]
"""Yields each coroutine that must be run, takes its outcome; its value is how many attempts there were."""


class InlineEngine:
    """``awaits`` says that the group's handlers are coroutine functions. ``slow`` draws whether a handler ends later.

    ``begins`` and ``ends`` hear of every attempt; what they raise ends the worker, as a crash at that point does.
    """

    def __init__(
        self,
        attempts: Attempts,
        put: Callable[[Outcome], None],
        *,
        awaits: bool,
        clock: Callable[[], float],
        chance: Random,
        slow: Callable[[], bool] = lambda: False,
        begins: Callable[[Delivery], None] = lambda _delivery: None,
        ends: Callable[[Outcome], None] = lambda _outcome: None,
    ) -> None:
        self._attempts = attempts
        self._put = put
        self._awaits = awaits
        self._clock = clock
        self._chance = chance
        self._slow = slow
        self._begins = begins
        self._ends = ends
        self._queues = KeyQueues()
        self._late: list[tuple[Outcome, float]] = []
        self._now: tuple[Delivery, float] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    @property
    def halfway(self) -> bool:
        """Whether a handler is in the middle."""
        return self._now is not None

    def submit(self, deliveries: list[Delivery]) -> None:
        """Take new deliveries."""
        self._queues.add(deliveries)

    def again(self, delivery: Delivery) -> None:
        """Take one again whose key is held back for it."""
        self._queues.ready.append(delivery)

    def release(self, delivery: Delivery) -> None:
        """Let the next of its key go on."""
        self._queues.finish(delivery.key)

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""
        return self._queues.behind(key)

    def tend(self) -> None:
        """Nothing is left lying here."""

    def idle(self) -> bool:
        """Whether nothing is in a handler or about to be."""
        return not self._queues.ready and not self._late and self._now is None

    def running(self) -> list[tuple[Delivery, float]]:
        """What has not ended yet. Asked while partitions are handed over: some may end meanwhile."""
        self._end_late()
        late = [(outcome[0], begun) for outcome, begun in self._late]
        return late if self._now is None else [*late, self._now]

    def cancel(self, delivery: Delivery) -> None:
        """Cancel the handler of a delivery where it is a coroutine in the middle."""
        if self._task is not None and not (loop := self._task.get_loop()).is_closed():
            loop.call_soon(self._cancel, delivery)  # it may be who asks

    def stop(self) -> None:
        """Begin nothing more, and end what is in the middle."""
        self._stopped = True
        self._queues.ready.clear()
        if self._now is not None:
            self.cancel(self._now[0])

    def work(self, most: int) -> Running:
        """Make at most ``most`` attempts."""
        self._end_late()
        ready = self._queues.ready
        done = 0
        while ready and done < most:
            ready.rotate(-self._chance.randrange(len(ready)))
            delivery = ready.popleft()
            done += 1
            if delivery.assigned.closed:
                self._end((delivery, HandBack()))
                continue
            self._begins(delivery)
            begun = self._clock()
            self._now = (delivery, begun)
            try:
                if self._awaits:
                    outcome = yield self._arun(delivery, begun)
                else:
                    outcome = self._attempts.run(delivery, begun)
            finally:
                self._now = None
            if self._stopped:  # meanwhile
                raise Crash
            self._ends(outcome)
            if self._slow():
                self._late.append((outcome, begun))
            else:
                self._end(outcome)
        return done + len(self._late)

    async def _arun(self, delivery: Delivery, begun: float) -> Outcome:
        self._task = asyncio.current_task()
        try:
            return await self._attempts.arun(delivery, begun)
        finally:
            self._task = None

    def _cancel(self, delivery: Delivery) -> None:
        if self._task is not None and self._now is not None and self._now[0] is delivery:
            self._task.cancel()

    def _end_late(self) -> None:
        ended = [entry for entry in self._late if self._chance.random() < 0.5]
        self._late = [entry for entry in self._late if entry not in ended]
        for outcome, _ in ended:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if not isinstance(outcome[1], InPlace):
            self._queues.finish(outcome[0].key)
        self._put(outcome)


def as_coroutines(group: Group) -> tuple[Group, bool]:
    """Return the group with all its handlers awaitable where one of them is; and whether that is so."""
    if not any(inspect.iscoroutinefunction(handler.function) for handler in group.handlers):
        return group, False
    handlers = tuple(
        handler
        if inspect.iscoroutinefunction(handler.function)
        else replace(handler, function=_awaitable(handler.function))
        for handler in group.handlers
    )
    return replace(group, handlers=handlers), True


def _awaitable(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*args: Any) -> Any:
        return function(*args)

    return call
