"""Connectors as they should be in, connectors that run out.

A connector is checked before it is changed, and waited for after. One that does not come up is put back to what ran
before, so that a mistake costs a message and not an outage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.connector import Check, Connector, Difference, State, differences, is_reference, is_secret, references
from pipeline.errors import ConfigError, ConnectError

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
]

_POLL_S = 0.25
_TRACE_LINES = 12

Command = Literal["pause", "resume", "stop", "restart", "restart-failed"]


class Cluster(Protocol):
    """What deploying needs of Connect: ``pipeline.connect.rest.Connect``."""

    def configs(self) -> dict[str, dict[str, str]]:
        """The configurations of all connectors, by name."""

    def config(self, name: str) -> dict[str, str] | None:
        """The configuration that runs; None where there is none."""

    def state(self, name: str) -> State | None:
        """What a connector does."""

    def check(self, connector: Connector) -> Check:
        """What is wrong with its keys."""

    def put(self, connector: Connector) -> None:
        """Create or replace."""

    def task_configs(self, name: str) -> list[dict[str, str]]:
        """What each task was started with."""

    def delete(self, name: str) -> None:
        """Delete."""

    def pause(self, name: str) -> None:
        """Pause."""

    def resume(self, name: str) -> None:
        """Resume."""

    def stop(self, name: str) -> None:
        """Stop."""

    def restart(self, name: str, *, only_failed: bool) -> None:
        """Restart."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deployment would change. ``running`` is what Connect has, None for a connector that is not there.

    ``check`` is what Connect says of it.
    """

    connector: Connector
    running: dict[str, str] | None
    differences: list[Difference]
    check: Check = field(default_factory=Check)

    @property
    def action(self) -> Literal["create", "update", "unchanged"]:
        """What would be done."""
        return "create" if self.running is None else "update" if self.differences else "unchanged"


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


def plan(connectors: Iterable[Connector], cluster: Cluster) -> list[Plan]:
    """Compare connectors with what runs. Changes nothing. Raises ConnectError, naming the file."""
    found = []
    for connector in connectors:
        try:
            running, said = cluster.config(connector.name), _said(connector, cluster)
        except ConnectError as error:
            raise _of(connector, error) from error
        found.append(Plan(connector, running, differences(running, connector.config, said.secrets), said))
    return found


def plain_secrets(plans: Iterable[Plan]) -> None:
    """Refuse a secret that stands in a file as it is. Raises ConfigError naming file and key."""
    for one in plans:
        connector = one.connector
        for key, value in connector.config.items():
            if value and (is_secret(key) or key in one.check.secrets) and not is_reference(value):
                raise ConfigError(
                    f"{connector.source}: {key}: a secret in plain text, which Connect would keep and show to all",
                    remedy="refer to it: ${env:NAME} or ${file:path:key}; or --allow-plain-secrets",
                )


def check(plans: Sequence[Plan], cluster: Cluster, *, ignore_unknown: bool = False) -> None:
    """Go by what Connect says of all connectors. Raises ConfigError naming file and keys; nothing is changed."""
    for one in plans:
        _check(one, ignore_unknown=ignore_unknown)
    _check_shared({**cluster.configs(), **{one.connector.name: one.connector.config for one in plans}}, plans)


def deploy(
    plans: Sequence[Plan],
    cluster: Cluster,
    waiting: Waiting | None,
    *,
    put_back: bool = True,
    ignore_unknown: bool = False,
) -> None:
    """Check all connectors, then put each that differs, and wait for it unless ``waiting`` is None.

    Raises ConfigError where Connect refuses a configuration, with nothing changed; ConnectError where a connector does
    not run, or Connect does not answer as it should: then ``put_back`` restores what ran before, or removes what was
    new. The error names the file, and says what stands now. Those before it stay deployed.
    """
    check(plans, cluster, ignore_unknown=ignore_unknown)
    done: list[str] = []
    for one in plans:
        taken = False
        try:
            if one.action != "unchanged":
                cluster.put(one.connector)
                taken = True
            state = None if waiting is None else healthy(one.connector, cluster, waiting)
        except ConnectError as error:
            problem = _of(one.connector, error).what + (f"; {error.remedy}" if error.remedy else "")
            raise _given_up(one, cluster, problem, waiting, done, taken=taken, put_back=put_back) from error
        if state is not None:
            name = one.connector.name
            problem = f"{one.connector.source or name}: connector {name} does not run: {state.summary}{_traces(state)}"
            raise _given_up(one, cluster, problem, waiting, done, taken=taken, put_back=put_back)
        if one.action != "unchanged":
            done.append(one.connector.name)


def healthy(connector: Connector, cluster: Cluster, waiting: Waiting) -> State | None:
    """Wait until a connector runs with this configuration and all tasks; return its state where it does not."""
    state = State(connector.name, "not started", "", "", ())

    def runs() -> bool:
        nonlocal state
        found = cluster.state(connector.name)
        current = found is not None and _is_current(connector, cluster)
        state = found if found is not None and current else state
        return current and state.healthy

    ended = waiting.until(lambda: runs() or state.failed, settle_s=waiting.settle_s)
    return None if ended and not state.failed else state


def command(name: str, what: Command, cluster: Cluster, waiting: Waiting) -> State:
    """Pause, resume, stop or restart a connector, and wait until it is so. Raises ConnectError."""
    if cluster.state(name) is None:
        raise _unknown(name)
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
        raise ConnectError(f"connector {name}: {state.summary}, not {wanted}{_traces(state)}", remedy=_LOOK)
    return state


def delete(name: str, cluster: Cluster, waiting: Waiting) -> None:
    """Delete a connector and wait until it is gone. Raises ConnectError."""
    if cluster.config(name) is None:
        raise _unknown(name)
    cluster.delete(name)
    if not waiting.until(lambda: cluster.config(name) is None):
        raise ConnectError(f"connector {name}: still there after {waiting.timeout_s:.0f} s", remedy=_LOOK)


_LOOK = "pipeline connector status NAME -o json has the whole trace; Connect's log says more"


def _said(connector: Connector, cluster: Cluster) -> Check:
    """Ask Connect what is wrong with a connector. Raises ConfigError where it cannot even resolve a reference."""
    try:
        return cluster.check(connector)
    except ConnectError as error:
        for key, value in connector.config.items():
            for provider, path, _ in references(value):
                if provider != "env" and path and path in error.what:
                    raise ConfigError(
                        f"{connector.source}: {key}: {value}: {error.what}",
                        remedy=f"let {path} be there, and readable, where Connect runs; or correct {key}",
                    ) from error
        raise


def _unresolved(config: Mapping[str, str]) -> str:
    """Say which references a database that refuses a sign-in may not have got: Connect leaves them as they are."""
    keys = [f"{key}={config[key]}" for key in _SIGN_IN if references(config.get(key, ""))]
    return f", or what they refer to where Connect runs: {', '.join(keys)}" if keys else ""


_SIGN_IN = ("database.user", "database.password", "database.hostname", "database.dbname")


def _check(one: Plan, *, ignore_unknown: bool) -> None:
    where = one.connector.source or one.connector.name
    if one.check.errors:
        listed = "; ".join(f"{key}: {' '.join(texts[0].split())}" for key, texts in sorted(one.check.errors.items()))
        hint = _unresolved(one.connector.config) if "validating connector config" in listed else ""
        raise ConfigError(
            f"{where}: Connect refuses it: {listed}", remedy=f"correct these keys{hint}; nothing was changed"
        )
    for key, near in one.check.unknown.items():
        if not ignore_unknown:
            hint = f"did you mean {near}? else remove it" if near else "remove it"
            raise ConfigError(
                f"{where}: {key}: unknown key, which Connect would pass over in silence",
                remedy=f"{hint}, or take it with --ignore-unknown; nothing was changed",
            )


_SHARED = {
    ("topic.prefix",): "Debezium names its metrics by it, and the second hangs for a minute for that name",
    ("slot.name", "database.hostname", "database.port", "database.dbname"): "a slot is read by one connector",
}
"""Keys of Debezium connectors that no two may have alike, and why."""


def _check_shared(all_configs: Mapping[str, Mapping[str, str]], plans: Sequence[Plan]) -> None:
    for one in plans:
        mine = one.connector.config
        for name, config in all_configs.items():
            if name == one.connector.name or _class(config) != _class(mine):
                continue
            for keys, why in _SHARED.items():
                if mine.get(keys[0]) and all(mine.get(key) == config.get(key) for key in keys):
                    raise ConfigError(
                        f"{one.connector.source}: {keys[0]}: {mine[keys[0]]!r} is that of connector {name} too",
                        remedy=f"give each connector one of its own: {why}",
                    )


def _class(config: Mapping[str, str]) -> str:
    return config.get("connector.class", "")


def _is_current(connector: Connector, cluster: Cluster) -> bool:
    """Tell whether the tasks have this configuration: states of the ones before are still told for a moment."""
    tasks = cluster.task_configs(connector.name)
    wanted = connector.config.items()
    return cluster.config(connector.name) is not None and all(
        all(task.get(key, value) == value for key, value in wanted if key != "name") for task in tasks
    )


def _of(connector: Connector, error: ConnectError) -> ConnectError:
    """Return an error of Connect that names the file whose connector it was about."""
    where = connector.source or f"connector {connector.name}"
    return ConnectError(f"{where}: {error.what}", remedy=error.remedy, retryable=error.retryable)


def _given_up(
    one: Plan,
    cluster: Cluster,
    problem: str,
    waiting: Waiting | None,
    done: Sequence[str],
    *,
    taken: bool,
    put_back: bool,
) -> ConnectError:
    """Put back what ran before, where that is wanted and can be done; return the error that says what stands now.

    ``taken``: Connect said that it took the new one. Where it did not, its worker may have taken it nevertheless.
    """
    if done:
        problem += f"\n    before it were deployed{', and run' if waiting else ''}: {', '.join(done)}"
    if one.action == "unchanged":
        return ConnectError(problem, remedy=_LOOK)
    try:
        if not taken and cluster.config(one.connector.name) == one.running:
            return ConnectError(problem, remedy=f"nothing was changed by this file; {_LOOK}")
        if not put_back:
            return ConnectError(problem, remedy=f"the new configuration stands; {_LOOK}")
        if one.running is not None:
            cluster.put(Connector(one.connector.name, one.running))
            return ConnectError(problem, remedy="what ran before was put back (--keep does not); correct the file")
        if waiting is None:
            cluster.delete(one.connector.name)
        else:
            delete(one.connector.name, cluster, waiting)
        return ConnectError(problem, remedy="it was removed again (--keep leaves it there); correct the file")
    except ConnectError as error:
        problem += f"\n    and what ran before could not be put back: {error.what}" if put_back else ""
        return ConnectError(
            problem,
            remedy="the new configuration may stand: once Connect answers, pipeline connector diff FILE says so",
        )


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
