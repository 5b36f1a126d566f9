"""Chances of faults in; whether one happens here and now out, drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random

from pipeline.errors import ConfigError

__all__ = ["Crash", "Faults", "Misfortune"]


class Crash(BaseException):
    """The process of a worker ends here, as by a kill."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What may go wrong, each with its chance (0 to 1) wherever it can happen.

    ``crash``: a worker's process ends, before or after a handler, between two polls, with records on their way.
    ``rebalance``: a member joins or leaves. ``expel``: the group takes a worker for dead that is not. ``duplicate``: a
    record is published twice, as by a relay that restarted. ``refuse``: a retry topic or DLQ refuses a record for a
    moment. ``outage``: the broker is away for some seconds. ``slow``: a handler ends later, maybe in a rebalance.
    """

    crash: float = 0
    rebalance: float = 0
    expel: float = 0
    duplicate: float = 0
    refuse: float = 0
    outage: float = 0
    slow: float = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ConfigError(f"Faults: {field.name}={getattr(self, field.name)}", remedy="a chance from 0 to 1")


class Misfortune:
    """Draws faults. ``count`` has how many of each there were. Ends after ``most`` of a kind: things calm down."""

    def __init__(self, faults: Faults, chance: Random, most: int = 100) -> None:
        self.count: dict[str, int] = {field.name: 0 for field in fields(faults)}
        self._faults = faults
        self._chance = chance
        self._most = most

    @property
    def possible(self) -> bool:
        """Whether any fault can happen."""
        return self._faults != Faults()

    def strikes(self, kind: str) -> bool:
        """Draw one."""
        chance = getattr(self._faults, kind)
        if not chance or self.count[kind] >= self._most or self._chance.random() >= chance:
            return False
        self.count[kind] += 1
        return True

    def crash(self) -> None:
        """Raise Crash where chance wants it."""
        if self.strikes("crash"):
            raise Crash
