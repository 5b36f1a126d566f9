"""A run's coroutines in, their results out, on an event loop whose time is the test's: sleeping takes none.

Real input and output is waited for as it is; what waits for a time alone has it at once. A run whose time is over stops
in the middle of a coroutine, and goes on there.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import selectors
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack

from pipeline.errors import ConfigError
from pipeline.testing.clock import Clock

__all__ = ["Course"]

T = TypeVar("T")
Args = TypeVarTuple("Args")
_END_S = 60.0  # of the test's time, for what is cancelled at the end


class Course(Generic[T]):
    """One run after another: ``steps`` begins one, and yields coroutines to be run, whose results it is sent."""

    def __init__(self, clock: Clock, steps: Callable[[], Generator[Coroutine[Any, Any, T], T, None]]) -> None:
        self._clock = clock
        self._begin = steps
        self._steps: Generator[Coroutine[Any, Any, T], T, None] | None = None
        self._task: asyncio.Task[T] | None = None
        self._runner: asyncio.Runner | None = None

    def drive(self, until_s: float) -> bool:
        """Begin a run, or go on with the one that was left; False where it is left in the middle of a coroutine.

        ``until_s`` is by the clock, of ``passed_s``. Raises what the run raises, and ConfigError inside a running loop.
        """
        if self._task is not None and _in_loop():
            raise _halfway()
        atexit.unregister(self.close)
        try:
            if self._steps is None or self._task is None:
                self._steps = self._begin()
                self._task = self._started(next(self._steps))
            while self._finished(self._task, until_s):
                outcome, self._task = self._task.result(), None
                self._task = self._started(self._steps.send(outcome))
        except StopIteration:
            self.close()
            return True
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)  # a loop that nobody closed would be told of wherever that comes out
        return False

    async def adrive(self) -> None:
        """Do a run on the running loop, in its time."""
        if self._task is not None:
            raise _halfway()
        steps = self._begin()
        with suppress(StopIteration):
            coroutine = next(steps)
            while True:
                coroutine = steps.send(await coroutine)

    def close(self) -> None:
        """End what is in the middle, and the loop."""
        atexit.unregister(self.close)
        runner, self._runner, self._task = self._runner, None, None
        steps, self._steps = self._steps, None
        if runner is not None:
            _loop_of(runner).waits.until_s = self._clock.passed_s + _END_S
            with suppress(RuntimeError):  # it does not let itself be cancelled, or another loop runs here
                runner.close()
        if steps is not None:
            steps.close()

    def _started(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if _in_loop():
            coroutine.close()
            raise ConfigError("an event loop runs here already", remedy="await harness.arun_until_idle()")
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=lambda: _VirtualLoop(self._clock))
        loop = _loop_of(self._runner)
        task = loop.create_task(coroutine)
        task.add_done_callback(lambda _done: loop.stop())
        return task

    def _finished(self, task: asyncio.Task[T], until_s: float) -> bool:
        """Run the loop until a task has ended or the time is over."""
        assert self._runner is not None
        return _loop_of(self._runner).run_until(task, until_s)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _halfway() -> ConfigError:
    return ConfigError(
        "a handler is in the middle, and an event loop runs here already", remedy="go on outside: run_until_idle()"
    )


def _loop_of(runner: asyncio.Runner) -> _VirtualLoop:
    loop = runner.get_loop()
    assert isinstance(loop, _VirtualLoop)
    return loop


class _Selector(selectors.DefaultSelector):
    """``until_s`` is when the time is over, by the clock: what waits for more is stopped then."""

    def __init__(self, clock: Clock, stop: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._stop = stop
        self.busy = 0  # threads of an executor that work
        self.until_s = math.inf

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait in the test's time where nothing but time is waited for."""
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if timeout is not None and not self.busy and len(self.get_map()) <= 1:  # the loop's own pipe
            left_s = self.until_s - self._clock.passed_s
            if timeout > left_s:
                self._stop()
            self._clock.advance(min(timeout, left_s))
            return []
        begun = time.monotonic()
        found = super().select(timeout)
        self._clock.advance(time.monotonic() - begun)
        return found


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self.waits = _Selector(clock, self.stop)
        self._clock = clock
        super().__init__(self.waits)

    def run_until(self, task: asyncio.Task[Any], until_s: float) -> bool:
        """Run until a task has ended or the time is over; tell whether it has ended."""
        self.waits.until_s = until_s
        if not task.done():
            self.run_forever()
        return task.done()

    def time(self) -> float:
        """Give the test's time."""
        return self._clock.monotonic()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Args]], T], *args: *Args
    ) -> asyncio.Future[T]:
        """Run in a thread; as long as it works, real time is waited for."""
        future = super().run_in_executor(executor, func, *args)
        self.waits.busy += 1
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: asyncio.Future[Any]) -> None:
        self.waits.busy -= 1
