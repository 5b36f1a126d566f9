"""Deliveries in, outcomes out, by plain functions on threads.

Each thread takes a share of what is ready, and takes over what another has not begun before it goes idle: nothing
waits behind a slow handler but its own key. Keys that ended are given back in batches, which costs a lock per share
and not per record.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

from pipeline.worker.delivery import Delivery, Outcome
from pipeline.worker.keys import KeyQueues
from pipeline.worker.settlement import HandBack, InPlace

__all__ = ["Threads"]

_SHARE = 64
_QUICK_S = 0.001
_HAND_BACK = HandBack()


class Threads:
    """An engine with ``concurrency`` daemon threads. ``put`` takes the outcomes; ``fault`` what should never happen."""

    def __init__(
        self,
        run: Callable[[Delivery, float], Outcome],
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
        self._changed = threading.Condition(threading.Lock())
        self._idle = 0
        self._stopped = False
        self._lanes = [_Lane() for _ in range(concurrency)]
        for number, lane in enumerate(self._lanes):
            threading.Thread(target=self._work, args=(lane,), name=f"{name}-{number}", daemon=True).start()

    def submit(self, deliveries: list[Delivery]) -> None:
        """Take new deliveries."""
        with self._changed:
            self._collect()
            self._queues.add(deliveries)
            self._wake()

    def again(self, delivery: Delivery) -> None:
        """Take one again whose key is held back for it."""
        with self._changed:
            self._queues.ready.append(delivery)
            self._wake()

    def release(self, delivery: Delivery) -> None:
        """Let the next of its key go on."""
        with self._changed:
            self._queues.finish(delivery.key)
            self._wake()

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""
        with self._changed:
            return self._queues.behind(key)

    def tend(self) -> None:
        """Give keys on that ended on a thread which is now busy. Call now and then."""
        with self._changed:
            self._collect()
            self._wake()

    def idle(self) -> bool:
        """Whether nothing is in a handler or about to be."""
        with self._changed:
            return not self._queues.ready and self._idle == len(self._lanes)

    def running(self) -> list[tuple[Delivery, float]]:
        """What is in a handler now, and since when."""
        found = [(lane.now, lane.since) for lane in self._lanes]
        return [(now, since) for now, since in found if now is not None]

    def cancel(self, delivery: Delivery) -> None:
        """Nothing can end a thread: its handler looks at ``ctx.cancelled``."""

    def stop(self) -> None:
        """Let threads end when their handlers do."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self, lane: _Lane) -> None:
        try:
            while self._take(lane):
                self._run_share(lane)
        except BaseException as error:  # noqa: BLE001 — a defect here must end the worker, not one thread in silence
            self._fault(error)

    def _take(self, lane: _Lane) -> bool:
        """Wait for something to do and put a share of it into the lane; False when it is over."""
        with self._changed:
            while True:
                self._collect()
                ready = self._queues.ready
                if self._stopped:
                    return False
                if ready:
                    share = min(_SHARE, -(-len(ready) // len(self._lanes)))
                    lane.share.extend([ready.popleft() for _ in range(share)])
                    self._wake()
                    return True
                if self._take_over(lane):
                    return True
                self._idle += 1
                self._changed.wait()

    def _take_over(self, lane: _Lane) -> bool:
        for other in self._lanes:
            if other is not lane and other.share:
                try:
                    lane.share.append(other.share.pop())
                except IndexError:  # its thread was quicker
                    continue
                return True
        return False

    def _wake(self) -> None:
        """Wake one thread where there is work; it wakes the next when it leaves some."""
        if self._queues.ready and self._idle:
            self._idle -= 1
            self._changed.notify()

    def _collect(self) -> None:
        finish = self._queues.finish
        for lane in self._lanes:
            ended = lane.ended
            while ended:
                finish(ended.popleft())

    def _run_share(self, lane: _Lane) -> None:
        run, put, clock, share, ended = self._run, self._put, self._clock, lane.share, lane.ended
        first = clock()
        while True:
            try:
                delivery = share.popleft()
            except IndexError:  # done, or taken over
                return
            begun = lane.since = clock()
            lane.now = delivery
            if delivery.assigned.closed:
                outcome: Outcome = (delivery, _HAND_BACK)
            else:
                outcome = run(delivery, begun)
            decision = outcome[1]
            if delivery.key is not None and not (decision is not None and isinstance(decision, InPlace)):
                ended.append(delivery.key)
                if begun - first > _QUICK_S:
                    with self._changed:
                        self._collect()
                        self._wake()
                    first = begun
            put(outcome)
            lane.now = None  # only now: what is not in a handler any more has its outcome put


class _Lane:
    """What one thread has before it, runs now, and has ended."""

    __slots__ = ("ended", "now", "share", "since")

    def __init__(self) -> None:
        self.share: deque[Delivery] = deque()
        self.ended: deque[Hashable] = deque()
        self.now: Delivery | None = None
        self.since = 0.0
