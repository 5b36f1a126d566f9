"""The table of faults: what each does to the world, for how long, and how it is undone."""

from __future__ import annotations

import random
import time
from typing import ClassVar

from tests.faults.world import World

__all__ = ["FAULTS", "Fault"]

FAULTS: dict[str, type[Fault]] = {}


class Fault:
    """One kind of fault. ``inject`` says what it did; ``heal`` may say more. ``hold_s`` is drawn between two times."""

    kind: ClassVar[str] = ""
    part: ClassVar[str] = ""
    hold_s: ClassVar[tuple[float, float]] = (0.5, 2.5)
    alone: ClassVar[bool] = False  # never together with another
    often: ClassVar[int] = 3  # how often in one turn through all kinds: what takes long comes once
    violations: list[str]

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.hold = round(rng.uniform(*self.hold_s), 2)
        self.violations = []

    def __init_subclass__(cls) -> None:
        if cls.kind:
            FAULTS[cls.kind] = cls

    def inject(self, world: World) -> str:
        """Do it."""
        raise NotImplementedError

    def heal(self, world: World) -> str:
        """Undo it. What is not undone here, ``World.restore`` undoes."""
        del world
        return ""

    def after(self, world: World) -> str:
        """Look, when everything works again, at what this fault alone promises."""
        del world
        return ""


def takeover(world: World, before: int, timeout_s: float = 30) -> str:
    """Wait until another server process than ``before`` feeds a relay; say how long it took."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        pid = world.slot_pid()
        if pid and pid != before:
            return f"taken over after {time.monotonic() - began:.1f} s"
        time.sleep(0.05)
    return f"NOT taken over within {timeout_s:.0f} s"
