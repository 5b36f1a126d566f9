"""Deliveries in, outcomes out, by coroutine functions on one event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from pipeline.context import Context
from pipeline.worker.delivery import Delivery, Outcome
from pipeline.worker.keys import KeyQueues
from pipeline.worker.settlement import HandBack, InPlace

__all__ = ["LoopThread", "Tasks"]

R = TypeVar("R")
_HAND_BACK = HandBack()
_BREATHE = 100
_END_S = 1.0
_ANSWER_S = 0.05


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def blocking(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Return a plain function that runs ``function`` on the loop and waits for it, as long as its context says."""

        async def bounded(message: Any, context: Context) -> Any:
            async with asyncio.timeout(context.timeout_s):
                return await function(message, context)

        return lambda *args: asyncio.run_coroutine_threadsafe(bounded(*args), self.loop).result()

    def wait(self, coroutine: Coroutine[Any, Any, R], timeout_s: float | None = None) -> R:
        """Run a coroutine on the loop and return what it returns, or raise what it raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def stop(self) -> None:
        """Cancel what runs, and end; what does not let itself be cancelled is left behind."""
        self.loop.call_soon_threadsafe(self._cancel)
        self._thread.join(_END_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _cancel(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda _done: self.loop.stop())


class Tasks:
    """An engine with ``concurrency`` tasks. ``put`` takes the outcomes; ``fault`` what should never happen."""

    def __init__(
        self,
        run: Callable[[Delivery, float], Coroutine[Any, Any, Outcome]],
        put: Callable[[Outcome], None],
        fault: Callable[[BaseException], None],
        *,
        concurrency: int,
        name: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._put = put
        self._fault = fault
        self._clock = clock
        self._queues = KeyQueues()
        self._coming: deque[list[Delivery]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._now: dict[int, tuple[Delivery, float]] = {}
        self.thread = LoopThread(name)
        self._loop = self.thread.loop
        self._stopped = False
        self._loop.call_soon_threadsafe(self._start, concurrency)

    def submit(self, deliveries: list[Delivery]) -> None:
        """Take new deliveries."""
        self._coming.append(deliveries)
        self._loop.call_soon_threadsafe(self._add)

    def again(self, delivery: Delivery) -> None:
        """Take one again whose key is held back for it."""
        self._loop.call_soon_threadsafe(self._repeat, delivery)

    def release(self, delivery: Delivery) -> None:
        """Let the next of its key go on."""
        self._loop.call_soon_threadsafe(self._finish, delivery)

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""
        coming = sum(delivery.key == key for batch in self._coming.copy() for delivery in batch)
        return coming + self._queues.behind(key)

    def tend(self) -> None:
        """Nothing is left lying here."""

    def idle(self) -> bool:
        """Whether nothing is in a handler or about to be. False where a handler keeps the loop from answering."""
        answers: list[bool] = []
        asked = threading.Event()

        def answer() -> None:
            answers.append(not (self._coming or self._queues.ready or self._now))
            asked.set()

        self._loop.call_soon_threadsafe(answer)
        return asked.wait(_ANSWER_S) and answers[0]

    def running(self) -> list[tuple[Delivery, float]]:
        """What is in a handler now, and since when."""
        return list(self._now.copy().values())

    def cancel(self, delivery: Delivery) -> None:
        """Cancel the handler of a delivery, where it runs."""
        self._loop.call_soon_threadsafe(self._cancel, delivery)

    def stop(self) -> None:
        """Cancel the handlers that run, and end."""
        self._stopped = True
        self.thread.stop()

    def _start(self, concurrency: int) -> None:
        self._workers = [self._loop.create_task(self._work(number)) for number in range(concurrency)]

    def _cancel(self, delivery: Delivery) -> None:
        # what stands in _now is inside its handler: a task between two handlers is never cancelled
        for number, (now, _) in self._now.items():
            if now is delivery:
                self._workers[number].cancel()

    def _add(self) -> None:
        self._queues.add(self._coming.popleft())
        self._wake()

    def _repeat(self, delivery: Delivery) -> None:
        self._queues.ready.append(delivery)
        self._wake()

    def _finish(self, delivery: Delivery) -> None:
        self._queues.finish(delivery.key)
        self._wake()

    def _wake(self) -> None:
        """Wake one task where there is work; it wakes the next when it leaves some."""
        while self._queues.ready and self._idle:
            sleeper = self._idle.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return

    async def _work(self, number: int) -> None:
        ready = self._queues.ready
        run_in_a_row = 0
        try:
            while not self._stopped:
                if not ready:
                    sleeper = self._loop.create_future()
                    self._idle.append(sleeper)
                    await sleeper
                    continue
                delivery = ready.popleft()
                self._wake()
                await self._one(number, delivery)
                run_in_a_row += 1
                if run_in_a_row % _BREATHE == 0:
                    await asyncio.sleep(0)  # handlers that never wait must not starve the loop
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        except BaseException as error:  # noqa: BLE001 — a defect here must end the worker, not one task in silence
            self._fault(error)

    async def _one(self, number: int, delivery: Delivery) -> None:
        begun = self._clock()
        # before it is looked at: who closes the partition either sees this, or is seen
        self._now[number] = (delivery, begun)
        outcome: Outcome = (delivery, _HAND_BACK)
        if not delivery.assigned.closed:
            outcome = await self._run(delivery, begun)
        if self._stopped:
            return
        if outcome[1] is None or not isinstance(outcome[1], InPlace):
            self._queues.finish(delivery.key)
            self._wake()
        self._put(outcome)
        self._now.pop(number, None)  # only now: what is not in a handler any more has its outcome put
