"""What an application puts around its handlers in, callables within it out: middleware, and what lives with a worker.

Around what it publishes too. All are generator functions that yield once, as for ``contextlib.contextmanager``: what
stands before the yield comes first, what stands after it comes last, also after an error. Async ones are for coroutines
alone.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

from pipeline.errors import ConfigError
from pipeline.event import Message

__all__ = [
    "Lifespan",
    "Middleware",
    "PublishMiddleware",
    "State",
    "aenter",
    "check_function",
    "check_generator",
    "check_handler",
    "enter",
    "is_async",
    "name_of",
    "stored_within",
    "surrounded",
]

Y = TypeVar("Y")
S = TypeVar("S")
R = TypeVar("R")

Middleware = Callable[..., Iterator[None]] | Callable[..., AsyncIterator[None]]
"""``(message, ctx)``, yields once: the handler runs there. What it does not raise again is settled as done."""

PublishMiddleware = Callable[[Sequence[Message], dict[str, str]], Iterator[None]]
"""``(messages, headers)``, yields once: they are stored there, with ``headers`` as they are then."""

Lifespan = Callable[[], Iterator[Mapping[str, Any] | None]] | Callable[[], AsyncIterator[Mapping[str, Any] | None]]
"""Yields once what handlers find in ``ctx.state``: entered before the first record, left after the last."""


class State(SimpleNamespace):
    """What lifespans yielded, by name."""

    def __getattr__(self, name: str) -> Any:  # what applications put there is theirs
        raise AttributeError(f"ctx.state.{name}: no lifespan of this process has yielded {name!r}")


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a generator function is an async one."""
    return inspect.isasyncgenfunction(function)


def check_generator(function: Callable[..., Any], what: str) -> None:
    """Raise ConfigError where a function does not yield."""
    if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
        raise ConfigError(f"{what} {name_of(function)}: is no generator function", remedy="let it yield once")


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name, of anything else what Python calls it."""
    return getattr(function, "__qualname__", None) or repr(function)


def check_function(function: Callable[..., Any], what: str = "handler") -> None:
    """Raise ConfigError for what is no function with a name and known arguments, or would give a generator."""
    if not callable(function) or not hasattr(function, "__qualname__"):  # a partial, or an object: jobs are told by it
        raise ConfigError(f"{what} {function!r}: is no function", remedy="write a function that calls it")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{what} {name_of(function)}: yields, so that calling it does nothing",
            remedy="a handler returns, or raises",
        )
    try:
        inspect.signature(function)
    except ValueError:
        raise ConfigError(
            f"{what} {name_of(function)}: Python does not know its arguments", remedy="write a function that calls it"
        ) from None


def check_handler(function: Callable[..., Any]) -> None:
    """Raise ConfigError where something is no handler, or cannot be called as ``(message, ctx)``."""
    check_function(function)
    try:
        inspect.signature(function, follow_wrapped=False).bind(None, None)
    except TypeError:
        raise ConfigError(
            f"handler {name_of(function)}: does not take (message, ctx)", remedy="two arguments, by position"
        ) from None


def surrounded(call: Callable[..., Any], middleware: Sequence[Middleware], *, awaits: bool) -> Callable[..., Any]:
    """Return ``call`` within all middleware, the first of it outermost. ``awaits``: it is a coroutine function."""
    for one in reversed(middleware):
        call = _awaited(one, call) if awaits else _called(one, call)
    return call


def stored_within(
    middleware: Sequence[PublishMiddleware],
    messages: Sequence[Message],
    headers: Mapping[str, str] | None,
    store: Callable[[Mapping[str, str]], Generator[Y, S, R]],
) -> Generator[Y, S, R]:
    """Return the steps of ``store``, of the headers that middleware leaves, within all of it, the first outermost."""
    return _stored(middleware, messages, dict(headers or {}), store) if middleware else store(headers or {})


def _stored(
    middleware: Sequence[PublishMiddleware],
    messages: Sequence[Message],
    headers: dict[str, str],
    store: Callable[[Mapping[str, str]], Generator[Y, S, R]],
) -> Generator[Y, S, R]:
    failure = None
    entered: ExitStack[bool] = ExitStack()
    with entered as stack:
        try:
            for one in middleware:
                stack.enter_context(contextmanager(one)(messages, headers))  # type: ignore[arg-type]  # it may pass over
            return (yield from store(headers))
        except BaseException as error:
            failure = error
            raise
    assert failure is not None
    raise failure  # middleware has passed it over: but nothing was stored, and there are no ids to return


def enter(lifespans: Sequence[Lifespan], stack: ExitStack) -> dict[str, Any]:
    """Enter the plain lifespans, to be left with ``stack``; return what they yielded."""
    found: dict[str, Any] = {}
    for one in lifespans:
        if not is_async(one):
            found.update(stack.enter_context(contextmanager(one)()) or {})  # type: ignore[arg-type]  # it is not async
    return found


async def aenter(lifespans: Sequence[Lifespan], stack: AsyncExitStack) -> dict[str, Any]:
    """Enter the async lifespans on the running loop."""
    found: dict[str, Any] = {}
    for one in lifespans:
        if is_async(one):
            entered = asynccontextmanager(one)()  # type: ignore[arg-type]  # it is async
            yielded: Mapping[str, Any] | None = await stack.enter_async_context(entered)
            found.update(yielded or {})
    return found


def _called(middleware: Middleware, call: Callable[..., Any]) -> Callable[..., Any]:
    manager = contextmanager(middleware)  # type: ignore[arg-type]  # checked when it was declared

    def within(message: object, context: object) -> None:
        with manager(message, context):
            call(message, context)

    return within


def _awaited(middleware: Middleware, call: Callable[..., Any]) -> Callable[..., Any]:
    manager = contextmanager(middleware) if not is_async(middleware) else None  # type: ignore[arg-type]  # as above
    amanager = asynccontextmanager(middleware) if is_async(middleware) else None  # type: ignore[arg-type]  # as above

    async def within(message: object, context: object) -> None:
        if manager is not None:
            with manager(message, context):
                await call(message, context)
        elif amanager is not None:
            async with amanager(message, context):
                await call(message, context)

    return within
