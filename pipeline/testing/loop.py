"""Coroutines in, their results out, on an event loop whose time is the test's: sleeping takes none.

Real input and output is waited for as it is; what waits for a time alone has it at once.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from pipeline.errors import ConfigError
from pipeline.testing.clock import Clock

__all__ = ["adrive", "drive"]

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")


def drive(steps: Generator[Coroutine[Any, Any, T], T, R], clock: Clock) -> R:
    """Run what ``steps`` yields on a loop of its own; return its value. Raises ConfigError inside a running loop."""
    runner: asyncio.Runner | None = None
    try:
        coroutine = next(steps)
        if _in_loop():
            coroutine.close()
            raise ConfigError("an event loop runs here already", remedy="await harness.arun_until_idle()")
        runner = asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock))
        while True:
            coroutine = steps.send(runner.run(coroutine))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        if runner is not None:
            runner.close()


async def adrive(steps: Generator[Coroutine[Any, Any, T], T, R]) -> R:
    """Run what ``steps`` yields on the running loop, in its time."""
    try:
        coroutine = next(steps)
        while True:
            coroutine = steps.send(await coroutine)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.busy = False  # threads of an executor may work

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait in the test's time where nothing but time is waited for."""
        found = super().select(0)
        if found or timeout is None or timeout > 0:
            if found:
                return found
            if timeout is not None and not self.busy and len(self.get_map()) <= 1:  # the loop's own pipe
                self._clock.advance(timeout)
                return []
            begun = time.monotonic()
            found = super().select(timeout)
            self._clock.advance(time.monotonic() - begun)
        return found


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._waits = _Selector(clock)
        self._clock = clock
        super().__init__(self._waits)

    def time(self) -> float:
        """Give the test's time."""
        return self._clock.monotonic()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Args]], T], *args: *Args
    ) -> asyncio.Future[T]:
        """Run in a thread; from now on real time is waited for."""
        self._waits.busy = True
        return super().run_in_executor(executor, func, *args)
