"""A command in, that many processes of it out: watched, started again when they end, drained together.

What each says of itself becomes one readiness, what all count one ``/metrics``. None outlives its supervisor by more
than its drain, however that ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry

from pipeline.metrics import PrometheusMeter
from pipeline.probes import LOOPBACK, serve
from pipeline.retry import RetryPolicy
from pipeline.runtime.member import BACK_OFF, Member
from pipeline.runtime.tally import FOLDER, Tally, Together, held_folder

__all__ = ["leave_s", "supervise"]

_LOOK_S = 0.1
_LEAVE_S = 30.0  # beside drain and lifespans: the last commit, leaving the groups, processes of handlers, the last beat
_KILL_S = 10.0  # after which one is killed that does not even end itself by force
_SUPERVISOR_S = 20.0  # what a supervisor has beyond what its processes have
_HURRY_S = 10.0


def leave_s(drain_timeout_s: float, *, supervisor: bool = False) -> float:
    """How long a process may take to end: its drain, as long again for its lifespans, and the rest.

    Its supervisor has longer.
    """
    return 2 * drain_timeout_s + _LEAVE_S + (_SUPERVISOR_S if supervisor else 0.0)


def supervise(
    command: Callable[[int], Sequence[str]],
    *,
    processes: int,
    drain_timeout_s: float,
    metrics_port: int | None,
    metrics_host: str = LOOPBACK,
    until: threading.Event,
    at_once: threading.Event,
    on_port: Callable[[int], None] = lambda _port: None,
    back_off: RetryPolicy = BACK_OFF,
) -> bool:
    """Run a command in so many processes until ``until`` is set; tell whether all drained.

    ``command`` gives the command of each by its number (from 1); behind it that number and the file descriptor of its
    pipe are put. Those that end by themselves are started again, later each time. Raises PipelineError, when all have
    drained, where one says that it cannot go on, or ended ``back_off.attempts`` times in succession.
    """
    with held_folder() as (folder, held):
        env = dict(os.environ) if metrics_port is None else {**os.environ, FOLDER: str(folder)}
        registry = CollectorRegistry()
        meter = PrometheusMeter(registry)
        meter.add("pipeline_worker_restarts_total", 0)  # told from the start
        members = [Member(number, command(number), env, back_off, holds=held) for number in range(1, processes + 1)]

        def report() -> None:
            meter.set("pipeline_worker_processes", sum(member.alive for member in members))
            meter.set("pipeline_ready", 1 if _state(members)["ready"] else 0, role="worker")

        report()
        try:
            if metrics_port is not None:
                counted = Together(registry, Tally(folder))
                on_port(serve(counted, lambda: _state(members), metrics_port, metrics_host))
            while not until.wait(_LOOK_S) and not any(member.failure for member in members):
                ended = sum(member.look() for member in members)
                meter.add("pipeline_worker_restarts_total", ended)
                report()
        finally:
            _end(members, drain_timeout_s, at_once, report)
        if failure := next((member.failure for member in members if member.failure), None):
            raise failure
        return all(member.drained for member in members)


def _end(
    members: Sequence[Member], drain_timeout_s: float, at_once: threading.Event, report: Callable[[], None]
) -> None:
    """Drain all, a second time without waiting, and kill at last what does not end."""
    for member in members:
        member.ask()
    until, hurried = time.monotonic() + leave_s(drain_timeout_s) + _KILL_S, False
    while any(member.alive for member in members):
        if at_once.wait(_LOOK_S) and not hurried:
            hurried = True
            until = time.monotonic() + _HURRY_S
            for member in members:
                member.ask()
        elif hurried:
            time.sleep(_LOOK_S)
        for member in members:
            member.hear()
            if time.monotonic() >= until:
                member.kill()
        report()
    for member in members:
        member.hear()
        member.close()


def _state(members: Sequence[Member]) -> dict[str, object]:
    states = [(f"process {member.number}", member.state) for member in members]
    return {
        "ready": all(state["ready"] for _, state in states),
        "role": "worker",
        **{
            kind: {f"{name} {part}": text for name, state in states for part, text in state[kind].items()}
            for kind in ("reasons", "notes")
        },
    }
