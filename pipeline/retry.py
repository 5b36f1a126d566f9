"""An attempt's error in, what becomes of the record out.

A handler speaks in verdicts: it returns (done), raises (retry, then dead), raises RetryLater (retry when it says) or
Reject (dead at once).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError

__all__ = ["EVENT_POLICY", "JOB_POLICY", "Reject", "RetryLater", "RetryPolicy"]

LONGEST_DELAY_S = 7 * 86_400


class Reject(Exception):
    """Raised by a handler: this will never work. Straight to the DLQ, no retries."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):
    """Raised by a handler: not now, again in ``delay_s`` seconds.

    ``counted=False`` burns no attempt: for waiting on something that is known to come.
    """

    def __init__(self, delay_s: float, reason: str = "", *, counted: bool = True) -> None:
        super().__init__(reason or f"again in {delay_s} s")
        if not 0 <= delay_s <= LONGEST_DELAY_S:
            raise ValueError(f"delay_s {delay_s}: must be between 0 and {LONGEST_DELAY_S}")
        self.delay_s = delay_s
        self.counted = counted


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long between.

    ``attempts`` counts the first try too. The n-th wait is ``min(first_s * factor**(n-1), cap_s)`` seconds, up to
    ``jitter`` (a share, 0 to 1) longer by chance. ``fatal`` errors go to the DLQ at once; ``uncounted`` ones (a
    dependency is down) are retried without burning an attempt.
    """

    attempts: int = 20
    first_s: float = 5
    factor: float = 4
    cap_s: float = 600
    jitter: float = 0.1
    fatal: tuple[type[Exception], ...] = ()
    uncounted: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        problems = [
            text
            for bad, text in (
                (not 1 <= self.attempts <= 1000, f"attempts={self.attempts} must be 1 to 1000"),
                (not 0 <= self.first_s <= self.cap_s, f"first_s={self.first_s} must be 0 to cap_s={self.cap_s}"),
                (not 1 <= self.factor <= 1_000_000, f"factor={self.factor} must be 1 to 1,000,000"),
                (self.cap_s > LONGEST_DELAY_S, f"cap_s={self.cap_s} must be at most {LONGEST_DELAY_S} (7 days)"),
                (not 0 <= self.jitter <= 1, f"jitter={self.jitter} must be 0 to 1"),
                (
                    1 <= self.attempts <= 1000 and len(self.delays_s()) > 16,
                    "more than 16 different delays, each of them a topic",
                ),
            )
            if bad
        ]
        if problems:
            raise ConfigError(f"RetryPolicy: {'; '.join(problems)}", remedy="correct the numbers")

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (1 is the first), without jitter."""
        # the power overflows a float long before attempts end: the cap is reached first
        delay = self.first_s
        for _ in range(attempt - 1):
            if delay >= self.cap_s or self.factor == 1:
                break
            delay *= self.factor
        return min(delay, self.cap_s)

    def exhausted(self, attempt: int) -> bool:
        """Whether ``attempt`` was the last one."""
        return attempt >= self.attempts

    def delays_s(self) -> tuple[float, ...]:
        """The different delays, shortest first: one retry topic each."""
        return tuple(sorted({self.delay_s(attempt) for attempt in range(1, self.attempts)}))


JOB_POLICY = RetryPolicy()
"""About 2.7 hours in all."""

EVENT_POLICY = RetryPolicy(attempts=5, first_s=1, factor=4, cap_s=60)
"""In place, while the key waits: 1, 4, 16 and 60 seconds."""
