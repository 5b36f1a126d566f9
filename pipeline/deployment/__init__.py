"""Connectors as they should be in, connectors that run out.

A connector is checked before it is changed, and waited for after. One that does not come up is put back to what ran
before, so that a mistake costs a message and not an outage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.connector import Connector, State
from pipeline.deployment.checks import check, plain_secrets
from pipeline.deployment.plan import Cluster, Plan, plan, with_source
from pipeline.errors import ConnectError

__all__ = [
    "Cluster",
    "Command",
    "Plan",
    "Waiting",
    "check",
    "command",
    "delete",
    "deploy",
    "healthy",
    "plain_secrets",
    "plan",
    "resumed",
]

_POLL_S = 0.25
_TRACE_LINES = 12

Command = Literal["pause", "resume", "stop", "restart", "restart-failed"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """How to wait for Connect: ``timeout_s`` in all; ``settle_s`` is how long a connector must be seen running.

    A task counts as RUNNING when it was started, and can fail a moment later.
    """

    clock: Callable[[], float]
    pause: Callable[[float], None]
    timeout_s: float = 60.0
    settle_s: float = 3.0

    def until(self, condition: Callable[[], bool], *, settle_s: float = 0) -> bool:
        """Wait until a condition holds, for ``settle_s`` without a break; False where it does not in time.

        A Connect that is away for a moment, as a worker that restarts, is waited for too.
        """
        deadline = self.clock() + self.timeout_s
        since: float | None = None
        while True:
            away: ConnectError | None = None
            try:
                holds = condition()
            except ConnectError as error:
                if not error.retryable:
                    raise
                holds, away = False, error
            now = self.clock()
            since = (now if since is None else since) if holds else None
            if since is not None and now - since >= settle_s:
                return True
            if now > deadline:
                if away is not None:
                    raise away
                return False
            self.pause(_POLL_S)


def deploy(
    plans: Sequence[Plan],
    cluster: Cluster,
    waiting: Waiting | None,
    *,
    put_back: bool = True,
    ignore_unknown: bool = False,
) -> list[State]:
    """Check all connectors, then put each that differs, and wait for it unless ``waiting`` is None.

    What somebody has stopped or paused stays so, with what was put, and is returned: it cannot be waited for.
    Raises ConfigError where Connect refuses a configuration, with nothing changed; ConnectError where a connector does
    not run, or Connect does not answer as it should: then ``put_back`` restores what ran before, or removes what was
    new. The error names the file, and says what stands now. Those before it stay deployed.
    """
    check(plans, cluster, ignore_unknown=ignore_unknown)
    done: list[str] = []
    resting: list[State] = []

    def stands() -> str:
        told = f"\n    before it were deployed{', and run' if waiting else ''}: {', '.join(done)}" if done else ""
        return told + "".join(
            f"\n    {state.name} is {state.state}, as before, and has its file's keys" for state in resting
        )

    for one in plans:
        taken = False
        try:
            before = None if one.running is None else cluster.state(one.connector.name)
            rests = before is not None and before.rests
            if one.action != "unchanged":
                cluster.put(one.connector)
                taken = True
            state = None if waiting is None or rests else healthy(one.connector, cluster, waiting, one.running)
        except ConnectError as error:
            problem = with_source(one.connector, error).what + (f"; {error.remedy}" if error.remedy else "")
            raise _given_up(one, cluster, problem + stands(), waiting, taken=taken, put_back=put_back) from error
        if state is not None:
            name = one.connector.name
            problem = f"{one.connector.source or name}: connector {name} does not run: {state.summary}{_traces(state)}"
            raise _given_up(one, cluster, problem + stands(), waiting, taken=taken, put_back=put_back)
        if rests and before is not None:
            resting.append(before)
        elif one.action != "unchanged":
            done.append(one.connector.name)
    return resting


def healthy(
    connector: Connector, cluster: Cluster, waiting: Waiting, before: Mapping[str, str] | None = None
) -> State | None:
    """Wait until a connector runs with this configuration and all tasks; return its state where it does not.

    ``before`` is the configuration that it had: its tasks are not to be taken for those of this one.
    """
    state = State(connector.name, "not started", "", "", ())

    def runs() -> bool:
        nonlocal state
        found = cluster.state(connector.name)
        current = found is not None and _is_current(connector, cluster, before or {})
        state = found if found is not None and current else state
        return current and state.healthy

    ended = waiting.until(lambda: runs() or state.failed, settle_s=waiting.settle_s)
    return None if ended and not state.failed else state


def command(name: str, what: Command, cluster: Cluster, waiting: Waiting) -> State:
    """Pause, resume, stop or restart a connector, and wait until it is so. Raises ConnectError."""
    if (now := cluster.state(name)) is None:
        raise _unknown(name)
    if now.rests and what.startswith("restart"):
        raise ConnectError(f"connector {name}: {now.summary}: there is nothing to restart", remedy=resumed(name))
    if what == "pause":
        cluster.pause(name)
    elif what == "resume":
        cluster.resume(name)
    elif what == "stop":
        cluster.stop(name)
    else:
        cluster.restart(name, only_failed=what == "restart-failed")
    wanted = {"pause": "PAUSED", "stop": "STOPPED"}.get(what, "RUNNING")
    state = State(name, "unknown", "", "", ())

    def reached() -> bool:
        nonlocal state
        state = cluster.state(name) or state
        tasks = all(task.state == wanted for task in state.tasks) and (wanted != "RUNNING" or bool(state.tasks))
        return (state.state == wanted and tasks) or (wanted == "RUNNING" and state.failed)

    # what was before is still told for a moment
    done = waiting.until(reached, settle_s=1.0 if what.startswith("restart") else 0)
    if not done or (wanted == "RUNNING" and state.failed):
        raise ConnectError(f"connector {name}: {state.summary}, not {wanted}{_traces(state)}", remedy=_look(name))
    return state


def delete(name: str, cluster: Cluster, waiting: Waiting) -> None:
    """Delete a connector and wait until it is gone. Raises ConnectError."""
    if cluster.config(name) is None:
        raise _unknown(name)
    cluster.delete(name)
    if not waiting.until(lambda: cluster.config(name) is None):
        raise ConnectError(f"connector {name}: still there after {waiting.timeout_s:.0f} s", remedy=_look(name))


def resumed(name: str) -> str:
    """Return the command by which a connector that rests goes on."""
    return f"pipeline connector resume {name}"


def _look(name: str) -> str:
    return f"pipeline connector status {name} -o json has the whole trace; Connect's log says more"


def _is_current(connector: Connector, cluster: Cluster, before: Mapping[str, str]) -> bool:
    """Tell whether the tasks have this configuration: states of the ones before are still told for a moment."""
    tasks = cluster.task_configs(connector.name)
    wanted = connector.config.items()
    removed = {(key, value) for key, value in before.items() if key != "name" and key not in connector.config}
    return cluster.config(connector.name) is not None and all(
        all(task.get(key, value) == value for key, value in wanted if key != "name") and not removed & task.items()
        for task in tasks
    )


def _given_up(
    one: Plan,
    cluster: Cluster,
    problem: str,
    waiting: Waiting | None,
    *,
    taken: bool,
    put_back: bool,
) -> ConnectError:
    """Put back what ran before, where that is wanted and can be done; return the error that says what stands now.

    ``taken``: Connect said that it took the new one. Where it did not, its worker may have taken it nevertheless.
    """
    look = _look(one.connector.name)
    mend = f"correct the file, or what pipeline doctor {one.connector.source or 'FILE'} finds"
    if one.action == "unchanged":
        return ConnectError(problem, remedy=look)
    try:
        if not taken and cluster.config(one.connector.name) == one.running:
            return ConnectError(problem, remedy=f"nothing was changed by this file; {look}")
        if not put_back:
            return ConnectError(problem, remedy=f"the new configuration stands; {look}")
        if one.running is not None:
            old = Connector(one.connector.name, one.running, one.connector.source)
            cluster.put(old)
            back = f"what ran before was put back (--keep does not){_again(old, one, cluster, waiting)}"
            return ConnectError(problem, remedy=f"{back}; {mend}")
        if waiting is None:
            cluster.delete(one.connector.name)
        else:
            delete(one.connector.name, cluster, waiting)
        return ConnectError(problem, remedy=f"it was removed again (--keep leaves it there); {mend}")
    except ConnectError as error:
        problem += f"\n    and what ran before could not be put back: {error.what}" if put_back else ""
        return ConnectError(
            problem,
            remedy="the new configuration may stand: once Connect answers, "
            f"pipeline connector diff {one.connector.source or 'FILE'} says so",
        )


def _again(old: Connector, one: Plan, cluster: Cluster, waiting: Waiting | None) -> str:
    """Say whether what was put back runs again, where that is waited for."""
    if waiting is None:
        return ""
    try:
        state = cluster.state(old.name)
        if state is None or not state.rests:
            state = healthy(old, cluster, waiting, one.connector.config)
    except ConnectError as error:
        return f", and whether it runs is not known: {error.what}"
    return ", and runs" if state is None else f", and does not run: {state.summary}{_traces(state)}\n   "


def _traces(state: State) -> str:
    """Return the cause of each failure: its first line, and what it says it was caused by."""
    found = [("connector", state.trace)] if state.trace else []
    found += [(f"task {task.number}", task.trace) for task in state.tasks if task.trace]
    lines = []
    for where, trace in found:
        said = [line.strip() for line in trace.splitlines() if line and not line.startswith(("\tat ", "\t..."))]
        lines += [f"\n    {where}: {line}" for line in said[:_TRACE_LINES]]
    return "".join(lines)


def _unknown(name: str) -> ConnectError:
    return ConnectError(f"there is no connector {name}", remedy="pipeline connector list shows what there is")
