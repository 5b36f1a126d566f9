"""Whether a handler's attempts may begin: its breaker, as its attempts go.

Closed, everything begins. Open, nothing does until the cool-down is over; then, half open, single records do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Literal

from pipeline.breaker import Breaker

__all__ = ["Circuit"]


class Circuit:
    """The breaker of one handler in one worker. Thread-safe; ``clock`` gives seconds that only grow.

    ``state`` may be read at any time. ``opened`` counts how often it opened, ``kind`` is the class of the last error.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_failures",
        "_lock",
        "_probed",
        "_probing",
        "_row",
        "_successes",
        "_until",
        "kind",
        "opened",
        "state",
    )

    def __init__(self, breaker: Breaker, clock: Callable[[], float]) -> None:
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self.opened = 0
        self.kind = ""
        self._breaker = breaker
        self._clock = clock
        self._lock = threading.Lock()
        self._successes = 0  # not exact among threads, and need not be
        self._failures: deque[tuple[float, int]] = deque(maxlen=breaker.threshold)
        self._row = 0
        self._until = 0.0
        self._probing: set[object] = set()
        self._probed = 0

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe may begin; 0 where it may now."""
        return max(0.0, self._until - self._clock()) if self.state == "open" else 0.0

    def free(self, trying: AbstractSet[object] = frozenset()) -> int:
        """How many more probes may begin beside those of ``trying``, which have begun or are about to."""
        with self._lock:
            if self.state != "half-open":
                return 0
            return self._breaker.probes - self._probed - len(self._probing | trying)

    def admits(self, attempt: object) -> bool:
        """Whether an attempt may begin. What is told of it afterwards must name the same object."""
        if self.state == "closed":
            return True
        with self._lock:
            if self.state == "half-open" and self._probed + len(self._probing) < self._breaker.probes:
                self._probing.add(attempt)
                return True
            return self._closed()

    def succeeded(self, attempt: object) -> None:
        """An attempt was handled."""
        if self.state == "closed":
            self._successes += 1
            return
        with self._lock:
            if attempt in self._probing:
                self._probing.discard(attempt)
                self._probed += 1
                if self._probed >= self._breaker.probes:
                    self.state, self._row = "closed", 0
                    self._failures.clear()

    def failed(self, attempt: object, kind: str) -> None:
        """An attempt ended in an error that the handler's policy does not count."""
        with self._lock:
            now = self._clock()
            self.kind = kind
            if self.state == "closed":
                self._failures.append((now, self._successes))
                if self._tripped(now):
                    self._open(now)
            elif attempt in self._probing:
                self._open(now)

    def passed(self, attempt: object) -> None:
        """An attempt came to an end that says nothing of the dependency."""
        if self.state != "closed":
            with self._lock:
                self._probing.discard(attempt)

    def cool(self) -> bool:
        """Let probes begin where the cool-down is over; tell whether that is so now for the first time."""
        with self._lock:
            if self.state != "open" or self._clock() < self._until:
                return False
            self.state = "half-open"
            return True

    def _closed(self) -> bool:
        return self.state == "closed"

    def _tripped(self, now: float) -> bool:
        breaker, failures = self._breaker, self._failures
        first_at, successes = failures[0]
        if len(failures) < breaker.threshold or now - first_at > breaker.window_s:
            return False
        return len(failures) >= breaker.share * (len(failures) + self._successes - successes)

    def _open(self, now: float) -> None:
        self._row += 1
        self.opened += 1
        self._until = now + self._breaker.open_s(self._row)
        self._probing.clear()
        self._probed = 0
        self._failures.clear()
        self.state = "open"
