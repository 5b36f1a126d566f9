"""A time that stands still until it is moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]

_BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
_ZERO_S = 1000.0  # of the clock that only grows


class Clock:
    """Both clocks of a worker. ``start`` has a zone."""

    def __init__(self, start: datetime = _BEGIN) -> None:
        self._start = start
        self._passed_s = 0.0

    @property
    def now(self) -> datetime:
        """The time (UTC)."""
        return self._start.astimezone(UTC) + timedelta(seconds=self._passed_s)

    @property
    def passed_s(self) -> float:
        """Seconds since the beginning."""
        return self._passed_s

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return _ZERO_S + self._passed_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._start.timestamp() + self._passed_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_s += max(seconds, 0.0)
