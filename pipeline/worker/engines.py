"""A group's handlers in, the engine that runs them out: an event loop, threads, or threads before processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.definition import Group, Handler
from pipeline.worker.attempt import Attempts
from pipeline.worker.delivery import Engine, Outcome, Route
from pipeline.worker.processes import Processes
from pipeline.worker.tasks import LoopThread, Tasks
from pipeline.worker.threads import Threads

__all__ = ["Built", "build"]


@dataclass(frozen=True, slots=True)
class Built:
    """An engine, and what it stands on. ``loop`` is where coroutines run; ``bridge`` is that loop where it is ours."""

    engine: Engine
    loop: LoopThread | None = None
    bridge: LoopThread | None = None


def build(
    group: Group,
    routes: Mapping[Handler, Route],
    attempts: Attempts,
    processes: Processes | None,
    put: Callable[[Outcome], None],
    fault: Callable[[BaseException], None],
    *,
    concurrency: int,
    clock: Callable[[], float],
) -> Built:
    """Build it. In a group of plain functions and coroutines all share its order, so they share its threads."""
    name = group.name
    if processes is not None:
        for handler, route in routes.items():
            if handler.process:
                route.call = processes.call_of(handler)
    coroutines = [r for h, r in routes.items() if inspect.iscoroutinefunction(h.function) and not h.process]
    if len(coroutines) == len(routes):
        tasks = Tasks(attempts.arun, put, fault, concurrency=concurrency, name=name, clock=clock)
        return Built(tasks, tasks.thread)
    bridge = LoopThread(f"{name}-loop") if coroutines else None
    for route in coroutines:
        assert bridge is not None
        route.call = bridge.blocking(route.call)
    return Built(
        Threads(attempts.run, put, fault, concurrency=concurrency, name=name, clock=clock), loop=bridge, bridge=bridge
    )
