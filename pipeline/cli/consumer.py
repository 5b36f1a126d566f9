"""``pipeline consumer``: run an application's handlers, and see how far its groups are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime

import click

from pipeline import log
from pipeline.beat import EVERY_S
from pipeline.cli.duration import seconds
from pipeline.cli.ending import ending
from pipeline.cli.output import output_option, print_rows, say
from pipeline.cli.running import client_option, client_settings, log_level_option, probe_options, say_port
from pipeline.cli.workers import job_rows, worker_row
from pipeline.config import Settings
from pipeline.runtime.load import load_app
from pipeline.runtime.member import supervised
from pipeline.runtime.supervisor import leave_s, supervise
from pipeline.runtime.worker import Mode, Place, counts_elsewhere, lag_of, reset, run_worker
from pipeline.runtime.workers import crew

__all__ = ["consumer"]


@click.group()
def consumer() -> None:
    """Consumer groups and queues of an application."""


@consumer.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--group", "groups", multiple=True, help="A consumer group, by its short or full name; may be repeated.")
@click.option("--queue", "queues", multiple=True, help="A queue of jobs; may be repeated. Neither: all of them.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=16, show_default=True, help="Attempts at once.")
@click.option("--drain-timeout", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds, at SIGTERM.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Worker processes.")
@click.option("--instance-id", help="Static membership: a name that stays over restarts, one for each worker.")
@click.option(
    "--mode", type=click.Choice(["consumer", "share"]), default="consumer", help="share: a share group (a preview)."
)
@probe_options
@click.option(
    "--heartbeat", type=click.FloatRange(0, 3600), default=EVERY_S, show_default=True, help="Seconds; 0: none."
)
@client_option
@log_level_option
@click.option("--supervised", "member", type=(int, int), hidden=True, help="Its number, and the pipe's descriptor.")
@click.pass_context
def run(
    context: click.Context,
    app: str,
    groups: tuple[str, ...],
    queues: tuple[str, ...],
    concurrency: int,
    drain_timeout: float,
    processes: int,
    instance_id: str | None,
    mode: Mode,
    metrics_port: int | None,
    metrics_host: str,
    heartbeat: float,
    options: tuple[str, ...],
    log_level: str,
    member: tuple[int, int] | None,
) -> None:
    """Handle events and jobs until SIGTERM. SIGTERM and SIGINT drain, a second one ends at once.

    --processes runs as many workers under one supervisor, each with --concurrency. One that crashes is started again;
    when it does so ten times in succession all end, with 1.

    \b
    Example:
      pipeline consumer run shop:app --group billing --queue email --metrics-port 9102 --processes 4

    A worker that has not ended twice --drain-timeout and 30 s after SIGTERM ends by force; a supervisor 20 s later.

    Logs are JSON on stderr. Exit codes: 0 stopped and drained, 1 it cannot go on, and why, 2 stopped while handlers
    were still running, or by force: their records are handled again.
    """
    log.configure(log_level)
    given = client_settings(options)
    if instance_id is not None:
        given["group.instance.id"] = instance_id
    number, fd = member or (1, None)
    may_supervise = processes > 1 or (metrics_port is not None and member is None)  # for handlers with process=True
    within_s = leave_s(drain_timeout, supervisor=may_supervise)
    with ending(within_s) as (until, at_once), supervised(fd, until, at_once) as on_state:
        loaded = load_app(app) if processes == 1 else None
        if loaded is None or (metrics_port is not None and counts_elsewhere(loaded, groups, queues)):
            drained = supervise(
                _command(context, given.get("group.instance.id")),
                processes=processes,
                drain_timeout_s=drain_timeout,
                metrics_port=metrics_port,
                metrics_host=metrics_host,
                until=until,
                at_once=at_once,
                on_port=say_port,
            )
        else:
            drained = run_worker(
                loaded,
                groups=groups,
                queues=queues,
                settings=Settings.load(),
                concurrency=concurrency,
                drain_timeout_s=drain_timeout,
                metrics_port=metrics_port,
                metrics_host=metrics_host,
                until=until,
                at_once=at_once,
                options=given,
                number=number,
                supervisor=os.getppid() if member else None,
                mode=mode,
                heartbeat_s=heartbeat,
                on_port=say_port,
                on_state=on_state,
            )
    context.exit(0 if drained else 2)


@consumer.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option("--group", "groups", multiple=True, help="Only this group (full name, or short with MODULE:APP).")
@output_option
def lag(app: str | None, groups: tuple[str, ...], output: str) -> None:
    """Show how far groups are, in records and seconds. Lists committed and end offset of every partition, retry topics
    among them.

    Without MODULE:APP: of all groups that the broker knows. Seconds are the age of the oldest record that is not
    committed. Exits with 0 however large the lag is.

    \b
    Example:
      pipeline consumer lag shop:app --group billing
      pipeline consumer lag -o json
    """
    rows = lag_of(Settings.load(), load_app(app) if app else None, groups)
    print_rows([asdict(row) for row in rows], output, empty="no group has committed anything")


@consumer.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option("--jobs", is_flag=True, help="What is in handlers for longest, instead of workers.")
@click.option("--within", default="1d", show_default=True, help="Leave out who is silent for longer, e.g. 10m.")
@output_option
@click.pass_context
def workers(context: click.Context, app: str | None, jobs: bool, within: str, output: str) -> None:
    """Show workers by their last heartbeats. Who ended by itself or was killed is silent; who drained is not listed.

    Without MODULE:APP: those of all applications. Counters are since a worker's start; slow is what is in a handler for
    more than 10 s. Exits with 2 when a worker is silent or not ready, or a group of MODULE:APP has none.

    \b
    Example:
      pipeline consumer workers shop:app
      pipeline consumer workers --jobs -o json
    """
    found = crew(Settings.load(), load_app(app) if app else None, within_s=seconds(within))
    if jobs:
        print_rows([row for one in found.workers for row in job_rows(one)], output, empty="no handler runs")
    else:
        rows = [worker_row(one, whole=output != "table") for one in found.workers]
        print_rows(rows, output, empty="no worker was heard")
    if found.unattended:
        say(f"groups without a worker: {', '.join(found.unattended)}")
    if found.unreadable:
        say(f"{found.unreadable} records on the topic are no heartbeats that this version can read")
    context.exit(0 if found.well else 2)


@consumer.command("reset")
@click.argument("group")
@click.option("--to", required=True, metavar="WHERE", help="earliest, latest, an offset, or a time with its zone.")
@click.option("--topic", "topics", multiple=True, help="Only this topic (full name); needed for a retry topic.")
@click.option("--partition", type=click.IntRange(0), help="Only this partition.")
@click.option("--execute", is_flag=True, help="Do it; without, only the plan is shown.")
@output_option
def reset_(group: str, to: str, topics: tuple[str, ...], partition: int | None, execute: bool, output: str) -> None:
    """Set where a group (full name) goes on. Its workers must be stopped. Shows the plan; --execute does it.

    Records between the new and the old offset are handled again (again > 0) or skipped (again < 0). Retry topics stay
    as they are unless they are named.

    \b
    Example:
      pipeline consumer reset shop.billing --to 2026-11-01T00:00:00+00:00
      pipeline consumer reset shop.billing --to 4711 --topic outbox.event.order --partition 2 --execute
    """
    moves = reset(Settings.load(), group, _place(to), topics=topics, partition=partition, execute=execute)
    print_rows([asdict(move) for move in moves], output)
    say("done" if execute else "nothing was changed: add --execute")


_SUPERVISORS = frozenset({"processes", "instance_id", "metrics_port", "metrics_host", "member"})


def _command(context: click.Context, instance_id: str | None) -> Callable[[int], list[str]]:
    """Return the command of a worker process by its number: this one, with an instance id of its own."""
    words = [sys.executable, "-m", "pipeline", "consumer", "run", context.params["app"]]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if isinstance(option, click.Option) and option.name not in _SUPERVISORS and value is not None:
            words += [word for one in (value if option.multiple else [value]) for word in (option.opts[0], str(one))]

    def command(number: int) -> list[str]:
        if instance_id is None:
            return [*words, "--supervised"]
        own = f"{instance_id}-{number}" if context.params["processes"] > 1 else instance_id
        return [*words, "--instance-id", own, "--supervised"]

    return command


def _place(text: str) -> Place:
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: earliest, latest, an offset or an ISO time", param_hint="--to") from error
    if at.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no zone: write {text}+00:00 for UTC", param_hint="--to")
    return at
