"""Attempts that a dependency failed in, when to leave it alone out.

A retry policy's ``uncounted`` errors say that not the record is at fault. A handler that meets several of them waits
as a whole, and tries with single records whether its dependency is back.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.retry import RetryPolicy

__all__ = ["DEFAULT_BREAKER", "Breaker", "breaker_for"]

_LONGEST_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a handler waits for what it depends on, in each worker by itself.

    It opens when ``threshold`` attempts within ``window_s`` ended in an uncounted error, and were at least ``share`` of
    all attempts since the first of them. Then nothing of the handler begins. After ``cool_down_s`` ``probes`` records
    are tried: when as many succeeded it closes, when one fails it opens again, each time ``factor`` times longer, up to
    ``cap_s``. Errors that count, verdicts and cancellations say nothing of the dependency: the next record is tried.
    """

    threshold: int = 5
    window_s: float = 60
    share: float = 0.5
    cool_down_s: float = 10
    factor: float = 2
    cap_s: float = 300
    probes: int = 1

    def __post_init__(self) -> None:
        problems = [
            text
            for good, text in (
                (1 <= self.threshold <= 10_000, f"threshold={self.threshold} must be 1 to 10,000"),
                (0 < self.window_s <= _LONGEST_S, f"window_s={self.window_s} must be above 0, and a day at most"),
                (0 <= self.share <= 1, f"share={self.share} must be 0 to 1"),
                (
                    0 < self.cool_down_s <= self.cap_s <= _LONGEST_S,
                    f"cool_down_s={self.cool_down_s} must be above 0, up to cap_s={self.cap_s}, and that up to a day",
                ),
                (1 <= self.factor <= 1000, f"factor={self.factor} must be 1 to 1000"),
                (1 <= self.probes <= 1000, f"probes={self.probes} must be 1 to 1000"),
            )
            if not good
        ]
        if problems:
            raise ConfigError(f"Breaker: {'; '.join(problems)}", remedy="correct the numbers")

    def open_s(self, times: int) -> float:
        """Seconds until it is tried when it opened ``times`` times without closing between."""
        wait_s = self.cool_down_s
        for _ in range(times - 1):
            if wait_s >= self.cap_s or self.factor == 1:
                break
            wait_s *= self.factor
        return min(wait_s, self.cap_s)


DEFAULT_BREAKER = Breaker()
"""For handlers whose policy has uncounted errors."""


def breaker_for(given: Breaker | None, policy: RetryPolicy, what: str) -> Breaker | None:
    """Return a handler's breaker. Raises ConfigError for one that nothing could open."""
    if policy.uncounted:
        return given
    if given is None or given is DEFAULT_BREAKER:
        return None
    raise ConfigError(
        f"{what}: a breaker, and no error that opens it",
        remedy="name the errors of what it depends on: retry=RetryPolicy(uncounted=(ConnectionError,))",
    )
