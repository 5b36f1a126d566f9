"""Cron expressions, a zone and rules in; the ticks that are to be made out. Pure: the time is passed in.

Ticks are instants. When clocks go forward, what was to run in the hour that does not exist runs right after it, once;
when they go back, what has a fixed hour runs once, and what runs every few minutes or hours goes on (as Debian's cron).
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from pipeline.errors import ConfigError
from pipeline.event import Job
from pipeline.surroundings import check_function

__all__ = ["Missed", "Overlap", "Schedule", "Tick", "tick_handler", "tick_model"]

Missed = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip"]

GRACE_S = 60.0
"""A tick that nobody could make for longer than this is a missed one."""

_BEGIN = datetime(2024, 1, 1, tzinfo=UTC)  # any; a leap year lies ahead of it
_NAME_CHARS = 100


class Tick(Job, queue="schedules", name="Tick", format="json"):
    """One tick of a schedule: its name, and the time that it is for (UTC), not when it runs."""

    schedule: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression (five fields, or six with seconds first), in a zone.

    ``name`` is stable: what was made under it is remembered by it. ``missed`` says what becomes of ticks at which no
    scheduler ran: none, the latest only, or all; ``overlap="skip"`` leaves a tick out while the job of the one before
    is unfinished. ``queue`` is the full name of where its jobs go. Raises ConfigError for what cannot be.
    """

    name: str
    cron: str
    timezone: str
    queue: str
    model: type[Tick] = Tick
    missed: Missed = "once"
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= _NAME_CHARS:
            raise ConfigError(f"schedule {self.name!r}: a name has 1 to {_NAME_CHARS} characters", remedy="name it so")
        if self.missed not in {"skip", "once", "all"} or self.overlap not in {"allow", "skip"}:
            raise ConfigError(
                f"schedule {self.name}: missed={self.missed!r}, overlap={self.overlap!r}",
                remedy='missed is "skip", "once" or "all"; overlap is "allow" or "skip"',
            )
        if not isinstance(self.cron, str) or not isinstance(self.timezone, str):
            raise ConfigError(
                f"schedule {self.name}: cron={self.cron!r}, timezone={self.timezone!r}",
                remedy='two texts, such as "0 3 * * *" and timezone="Europe/Berlin"',
            )
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError(
                f"schedule {self.name}: no time zone {self.timezone!r}", remedy="a name such as Europe/Berlin, or UTC"
            ) from None
        try:
            next(CronSim(self.cron, _BEGIN))
        except CronSimError as error:
            raise ConfigError(
                f"schedule {self.name}: {self.cron!r} is not a cron expression: {error}",
                remedy="minute hour day month weekday, for example 0 3 * * *",
            ) from None
        except StopIteration:
            raise ConfigError(
                f"schedule {self.name}: {self.cron!r} never fires", remedy="is there such a day in such a month?"
            ) from None

    def after(self, when: datetime) -> Iterator[datetime]:
        """Yield the ticks after ``when``, in UTC."""
        # whole seconds: a tick at the very second of ``when`` is not after it
        start = when.astimezone(ZoneInfo(self.timezone)).replace(microsecond=0)
        for tick in CronSim(self.cron, start):
            found = tick.astimezone(UTC)
            if found > when:
                yield found

    def due(self, last: datetime, now: datetime, *, most: int = 100) -> tuple[list[datetime], datetime]:
        """Return the ticks to make of those in ``(last, now]``, and the time up to which was decided.

        At most ``most`` at once: with ``missed="all"`` the rest comes with the next call.
        """
        begin = now - timedelta(seconds=GRACE_S)
        if self.missed != "all" and last < begin:  # nobody ran: of what is long past, the latest at most
            latest = self._latest(last, begin) if self.missed == "once" else None
            last = begin
            if latest is not None and next(self.after(begin), now + timedelta(1)) > now:
                return [latest], now
        passed = itertools.takewhile(lambda tick: tick <= now, self.after(last))
        ticks = list(itertools.islice(passed, most))
        return ticks, (ticks[-1] if len(ticks) == most else now)

    def _latest(self, last: datetime, now: datetime) -> datetime | None:
        """Return the latest tick in ``(last, now]``. Looked for backwards first: an absence may have been long."""
        edge = (now + timedelta(seconds=1)).astimezone(ZoneInfo(self.timezone)).replace(microsecond=0)
        near = next(CronSim(self.cron, edge, reverse=True), None)
        if near is None:
            return None
        # forwards decides what a tick is; a change of clocks lies within these hours
        begin = max(last, min(near.astimezone(UTC), now) - timedelta(hours=3))
        ticks = list(itertools.takewhile(lambda tick: tick <= now, self.after(begin)))
        return ticks[-1] if ticks else None


def tick_model(name: str, queue: str) -> type[Tick]:
    """Return the job type of one schedule's ticks: each schedule has a handler of its own."""

    class Model(Tick, queue=queue, name=f"Tick_{name.replace('-', '_')}", format="json"):
        pass

    return Model


def tick_handler(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return ``function`` as a handler ``(tick, ctx)``. It may take ``(ctx)`` alone. Raises ConfigError."""
    check_function(function, f"schedule {name}:")
    taken = len(inspect.signature(function).parameters)
    if taken not in {1, 2}:
        raise ConfigError(f"schedule {name}: its function takes {taken} arguments", remedy="(ctx), or (tick, ctx)")
    if taken == 2:
        return function
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def arun(_tick: Tick, ctx: object) -> None:
            await function(ctx)

        return arun

    @functools.wraps(function)
    def run(_tick: Tick, ctx: object) -> None:
        function(ctx)

    return run
