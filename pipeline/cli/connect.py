"""Connector files and names in, what Kafka Connect shall do with them and what it does out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from pipeline import deployment
from pipeline.cli.offsets import offsets
from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.cli.render import render
from pipeline.config import Settings
from pipeline.connector import State
from pipeline.deployment import Command, Plan
from pipeline.errors import ConfigError
from pipeline.runtime import connect as stage

__all__ = ["COMMANDS"]

F = TypeVar("F", bound=Callable[..., Any])

_files = click.argument("paths", metavar="FILE|FOLDER|- …", nargs=-1, required=True)
_names = click.argument("names", metavar="NAME|FILE|FOLDER/|- …", nargs=-1, required=True)
_timeout = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=60, show_default=True, help="Seconds to wait."
)


@click.command()
@_files
@output_option
@click.pass_context
def diff(context: click.Context, paths: tuple[str, ...], output: str) -> None:
    """Compare connector files with what runs on Kafka Connect. Changes nothing; exits with 2 where they differ.

    \b
    Example:
      pipeline connector diff connectors/
    """
    with stage.open_connect(Settings.load()) as connect:
        plans = deployment.plan(stage.for_connect(paths), connect)
    _print_plans(plans, output)
    context.exit(2 if any(one.action != "unchanged" for one in plans) else 0)


@click.command()
@_files
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until connector and tasks run.")
@_timeout
@click.option("--dry-run", is_flag=True, help="Print the plan, let Connect check it, and change nothing.")
@click.option("--keep", is_flag=True, help="Leave a connector that does not come up; else what ran before is put back.")
@click.option("--allow-plain-secrets", is_flag=True, help="Take secrets that stand in a file as they are.")
@click.option("--ignore-unknown", is_flag=True, help="Take keys that no plugin reads instead of refusing them.")
@click.option("--prune", is_flag=True, help="Delete connectors that no file names: by --label, or as --confirm lists.")
@click.option("--label", default="", help="With --prune: only connectors with this pipeline.label; all files have it.")
@click.option("--confirm", multiple=True, metavar="NAME", help="With --prune: a connector that may go; repeat it.")
@output_option
@click.pass_context
def deploy(
    context: click.Context,
    paths: tuple[str, ...],
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    keep: bool,
    allow_plain_secrets: bool,
    ignore_unknown: bool,
    prune: bool,
    label: str,
    confirm: tuple[str, ...],
    output: str,
) -> None:
    """Bring connector files to Kafka Connect, and wait until all run. Checks, plans, and makes one PUT for each that
    differs.

    Secrets must be references that Connect resolves: ${env:NAME}, ${file:path:key}. A connector that somebody has
    stopped or paused stays so: then it exits with 2.

    \b
    Example:
      pipeline connector deploy connectors/outbox.json --wait
      pipeline connector deploy connectors/ --prune --label shop
      pipeline connector render connectors/outbox.json -o json | pipeline connector deploy -
    """
    with stage.open_connect(Settings.load()) as connect:
        plans = deployment.plan(stage.for_connect(paths), connect)
        if not allow_plain_secrets:
            deployment.plain_secrets(plans)
        unknown = stage.strangers(connect, plans, label) if prune else []
        if output == "table":
            _print_plans(plans, output)
        if unconfirmed := sorted(set(unknown) ^ set(confirm)) if prune and not label else []:
            raise ConfigError(
                f"--prune: no file names {', '.join(unknown) or 'nothing else'}; "
                f"confirmed: {', '.join(confirm) or 'none'}",
                remedy=f"list exactly these: {' '.join(f'--confirm {name}' for name in unknown) or 'nothing'}"
                if unknown or unconfirmed
                else "",
            )
        waiting = stage.waiting_for(timeout_s)
        resting: list[State] = []
        if dry_run:
            deployment.check(plans, connect, ignore_unknown=ignore_unknown)
            say("".join(f"would delete {name}\n" for name in unknown) + "nothing was changed: leave --dry-run out")
        else:
            resting = deployment.deploy(
                plans, connect, waiting if wait else None, put_back=not keep, ignore_unknown=ignore_unknown
            )
            for name in unknown:
                deployment.delete(name, connect, waiting)
        runs = None if dry_run or not wait else "RUNNING"
        rest = {state.name: state.state for state in resting}
        done: list[dict[str, str | None]] = [
            {"connector": name, "action": one.action, "state": rest.get(name, runs)}
            for one in plans
            for name in [one.connector.name]
        ]
        done += [{"connector": name, "action": "delete", "state": None} for name in unknown]
    if output != "table":
        print_rows(done, output)
    elif not dry_run:
        say("\n".join(f"{one['connector']}: {one['action']}{_outcome(one, resting, wait=wait)}" for one in done))
    context.exit(2 if wait and resting else 0)


@click.command("list")
@output_option
@click.pass_context
def list_(context: click.Context, output: str) -> None:
    """List the connectors of Kafka Connect with their states. Exits with 2 where not all run.

    \b
    Example:
      pipeline connector list
    """
    with stage.open_connect(Settings.load()) as connect:
        found = stage.states(connect, ())
    print_rows([_row(state) for state in found], output, empty="no connectors")
    context.exit(0 if all(state.healthy for state in found) else 2)


@click.command()
@click.argument("names", metavar="[NAME|FILE|FOLDER/|- …]", nargs=-1)
@output_option
@click.pass_context
def status(context: click.Context, names: tuple[str, ...], output: str) -> None:
    """Say what connectors and their tasks do, and why they failed. Exits with 2 where not all run.

    \b
    Example:
      pipeline connector status outbox
    """
    with stage.open_connect(Settings.load()) as connect:
        found = stage.states(connect, stage.names(names))
    if output != "table":
        print_rows([_whole(state) for state in found], output)
    else:
        print_rows([_row(state) for state in found], output, empty="no connectors")
        for state in found:
            for where, trace in _traces(state):
                click.echo(f"\n{state.name}, {where}\n" + "\n".join(f"  {line}" for line in trace.splitlines()))
    context.exit(0 if all(state.healthy for state in found) else 2)


def _action(name: str, what: Command, text: str) -> click.Command:
    """Make one of the commands that do something to connectors and wait until it is so."""

    @click.command(name, help=f"{text}\n\n\b\nExample:\n  pipeline connector {name} outbox")
    @_names
    @_timeout
    def run(names: tuple[str, ...], timeout_s: float) -> None:
        with stage.open_connect(Settings.load()) as connect:
            for one in stage.names(names):
                state = deployment.command(one, what, connect, stage.waiting_for(timeout_s))
                say(f"{one}: {state.summary}")

    return run


@click.command()
@_names
@click.option("--only-failed", is_flag=True, help="Only connector and tasks that have failed.")
@_timeout
def restart(names: tuple[str, ...], only_failed: bool, timeout_s: float) -> None:
    """Start connectors and their tasks again. Waits until they run.

    \b
    Example:
      pipeline connector restart outbox --only-failed
    """
    with stage.open_connect(Settings.load()) as connect:
        for name in stage.names(names):
            what: Command = "restart-failed" if only_failed else "restart"
            say(f"{name}: {deployment.command(name, what, connect, stage.waiting_for(timeout_s)).summary}")


@click.command()
@_names
@click.option("--execute", is_flag=True, help="Do it. Without this nothing is done.")
@_timeout
def delete(names: tuple[str, ...], execute: bool, timeout_s: float) -> None:
    """Delete connectors, and wait until they are gone. Their slots and offsets stay.

    \b
    Example:
      pipeline connector delete outbox --execute
    """
    with stage.open_connect(Settings.load()) as connect:
        for state in stage.states(connect, stage.names(names)):
            if not execute:
                say(f"would delete {state.name} ({state.summary}): add --execute")
                continue
            deployment.delete(state.name, connect, stage.waiting_for(timeout_s))
            say(f"{state.name}: deleted; its slot and offsets stay")


COMMANDS: tuple[click.Command, ...] = (
    diff,
    deploy,
    list_,
    status,
    _action("pause", "pause", "Let connectors do nothing, and wait until they do. Tasks and slot stay."),
    _action("resume", "resume", "Let paused or stopped connectors go on. Waits until they run."),
    _action("stop", "stop", "End the tasks of connectors, and wait until they have ended. Offsets and slot stay."),
    restart,
    delete,
    offsets,
    render,
)


def _outcome(one: Mapping[str, str | None], resting: Sequence[State], *, wait: bool) -> str:
    for state in resting:
        if state.name == one["connector"]:
            return f", {state.state} as before: {deployment.resumed(state.name)}"
    return ", runs" if wait and one["action"] != "delete" else ""


def _row(state: State) -> dict[str, object]:
    running = sum(task.state == "RUNNING" for task in state.tasks)
    others = sorted({task.state for task in state.tasks} - {"RUNNING"})
    return {
        "connector": state.name,
        "state": state.state,
        "tasks": f"{running}/{len(state.tasks)} RUNNING" + "".join(f", {other}" for other in others),
        "type": state.kind,
        "worker": state.worker,
    }


def _whole(state: State) -> dict[str, object]:
    tasks = [{"task": t.number, "state": t.state, "worker": t.worker, "trace": t.trace or None} for t in state.tasks]
    trace = state.trace or None
    return {"connector": state.name, "state": state.state, "healthy": state.healthy, "trace": trace, "tasks": tasks}


def _traces(state: State) -> list[tuple[str, str]]:
    found = [("connector", state.trace), *((f"task {task.number}", task.trace) for task in state.tasks)]
    return [(where, trace) for where, trace in found if trace]


def _print_plans(plans: Sequence[Plan], output: str) -> None:
    if output != "table":
        rows = [
            {
                "connector": one.connector.name,
                "action": one.action,
                "differences": [{"key": d.key, "now": d.now, "wanted": d.wanted} for d in one.differences],
            }
            for one in plans
        ]
        print_object({"connectors": rows}, output)
        return
    signs = {"add": "+", "change": "~", "remove": "-"}
    for one in plans:
        click.echo(f"{one.connector.name}: {one.action}")
        for found in one.differences:
            values = " → ".join(value for value in (found.now, found.wanted) if value is not None)
            click.echo(f"  {signs[found.kind]} {found.key}: {values}")
