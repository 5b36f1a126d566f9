"""``pipeline jobs``: look at background jobs, and command them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar, Unpack, cast

import click

from pipeline import jobs as asked
from pipeline.cli.moment import moment
from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.errors import ConfigError, JobError
from pipeline.job import FINISHED, EnqueueOptions, State, Unique
from pipeline.retry import RetryPolicy
from pipeline.runtime import jobs as stage
from pipeline.runtime.load import load_app

__all__ = ["jobs"]

F = TypeVar("F", bound=Callable[..., Any])
_NOTHING = "nothing was changed: add --execute"
_UNFINISHED: tuple[State, ...] = ("blocked", "delayed", "waiting", "running", "retrying")
_SHOWN = ("id", "queue", "type", "state", "attempts", "created_at", "due_at", "finished_at", "error")


def _filters(*states: str) -> Callable[[F], F]:
    """Add the options that say which jobs are meant; ``states`` are those that may be asked for."""
    options = (
        click.option("--queue", default="", help="Full name of a queue."),
        click.option("--type", "type_name", default="", help="Name of a job type."),
        click.option("--state", type=click.Choice(states), help="Only in this state."),
        click.option("--tag", default="", help="Only with this tag."),
        click.option("--since", type=moment, metavar="TIME", help="Enqueued then or later: 2026-03-01T09:30:00Z."),
    )

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_execute = click.option("--execute", is_flag=True, help="Do it; without, only the plan is shown.")
_queue = click.argument("queue", required=False, metavar="[QUEUE]")
_schedule = click.option("--schedule", help="A schedule (its full name) instead of a queue.")


@click.group()
def jobs() -> None:
    """Background jobs: those that are tracked, of this database."""


@jobs.command("list")
@_filters(*_UNFINISHED, *FINISHED)
@click.option("--before", help="The next page: id of the last job of the one before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--counts", is_flag=True, help="How many there are, instead of which.")
@output_option
def list_(before: str | None, limit: int, counts: bool, output: str, **which: Unpack[asked.Which]) -> None:
    """List jobs, the newest first.

    \b
    Example:
      pipeline jobs list --queue shop.jobs.email --state dead --since 2026-03-01T00:00:00Z
      pipeline jobs list --state delayed
      pipeline jobs list --counts
    """
    settings = Settings.load()
    if counts:
        states = [which["state"]] if which["state"] else [*_UNFINISHED, *FINISHED]
        print_rows(stage.plan(settings, cast(list[State], states), which), output, empty="no such job")
        return
    rows = [asdict(row) for row in stage.perform(settings, asked.listing(before=before, limit=limit, **which))]
    shown = [{name: row[name] for name in _SHOWN} for row in rows] if output == "table" else rows
    print_rows(shown, output, empty="no such job")
    if len(rows) == limit:
        say(f"more: --before {rows[-1]['id']}")


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--wait", "wait_s", type=click.FloatRange(0), help="Wait so many seconds for its end.")
@output_option
def show(job_id: str, wait_s: float | None, output: str) -> None:
    """Show all that is known of a job, its result too.

    \b
    Example:
      pipeline jobs show 01923f6e-… --wait 30 -o json
    """
    settings = Settings.load()
    found = (
        stage.wait_for(settings, job_id, timeout_s=wait_s) if wait_s else stage.perform(settings, asked.find(job_id))
    )
    print_object(asdict(found), output)


@jobs.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("name")
@click.argument("arguments", metavar="JSON")
@click.option("--delay", type=click.FloatRange(0), default=0.0, help="Seconds.")
@click.option("--run-at", help="A time with its zone, such as 2031-03-01T03:00:00+01:00.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds for each attempt.")
@click.option("--retry", help="Its policy: attempts=3,first_s=10,factor=2,cap_s=60,jitter=0.1, or some of these.")
@click.option("--expires", type=click.FloatRange(0, min_open=True), help="Seconds after which it does not begin.")
@click.option("--unique-key", help="Only where no unfinished job has this key; else the id of that one is printed.")
def enqueue(
    app: str,
    name: str,
    arguments: str,
    delay: float,
    run_at: str | None,
    tags: tuple[str, ...],
    priority: str,
    timeout: float | None,
    retry: str | None,
    expires: float | None,
    unique_key: str | None,
) -> None:
    """Enqueue a job by its name. Its model checks the arguments. Prints its id.

    \b
    Example:
      pipeline jobs enqueue shop:app SendReceipt '{"order_id": "7", "address": "a@example.org"}' --delay 60
    """
    options: EnqueueOptions = {"delay_s": delay, "tags": tags, "priority": priority, "run_at": _time(run_at)}  # type: ignore[typeddict-item]  # click has checked it
    options |= {"timeout_s": timeout, "retry": _policy(retry), "expires_s": expires}
    if unique_key is not None:
        options["unique"] = Unique(key=unique_key)
    click.echo(stage.enqueue_text(load_app(app), Settings.load(), name, arguments, options))


@jobs.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters(*_UNFINISHED)
@_execute
@output_option
@click.pass_context
def cancel(
    context: click.Context, ids: tuple[str, ...], execute: bool, output: str, **which: Unpack[asked.Which]
) -> None:
    """Ask for the end of jobs. It comes at once where they have not left yet, else by a worker within two seconds.

    By ids, at once; or by filters: these show the plan, --execute does it. Exits with 2 where some could not be ended.

    \b
    Example:
      pipeline jobs cancel 01923f6e-…
      pipeline jobs cancel --queue shop.jobs.email --tag campaign-7 --execute
    """
    _one_way(ids, which)
    settings = Settings.load()

    def end(job_id: str) -> str:
        state = stage.perform(settings, asked.cancel(job_id))
        return state if state == "cancelled" else f"{state}: a worker will end it"

    if ids:
        context.exit(_each(ids, end))
    states = [cast(State, which["state"])] if which["state"] else _UNFINISHED
    print_rows(stage.plan(settings, states, which), output, empty="no such job")
    say(f"asked: {stage.cancel_all(settings, states, which)}" if execute else _NOTHING)


@jobs.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters("dead", "cancelled")
@_execute
@output_option
@click.pass_context
def retry(
    context: click.Context, ids: tuple[str, ...], execute: bool, output: str, **which: Unpack[asked.Which]
) -> None:
    """Send dead or cancelled jobs to their queues again. They begin at their first attempt; their outbox rows must be
    there.

    By ids, at once; or by filters, of the dead ones where no state is given: these show the plan, --execute does it.
    Exits with 2 where some could not be sent.

    \b
    Example:
      pipeline jobs retry 01923f6e-…
      pipeline jobs retry --type SendReceipt --since 2026-03-01T00:00:00Z --execute
    """
    _one_way(ids, which)
    settings = Settings.load()

    def send(job_id: str) -> str:
        stage.perform(settings, asked.retry(job_id))
        return "waiting"

    if ids:
        context.exit(_each(ids, send))
    states = [cast(State, which["state"] or "dead")]
    print_rows(stage.plan(settings, states, which), output, empty="no such job")
    if not execute:
        say(_NOTHING)
        return
    sent, left = stage.retry_all(settings, states, which)
    say(f"sent again: {sent}")
    if left:
        say(f"left: {left}: another job has their unique key, or their outbox rows are gone: then enqueue them anew")
    context.exit(2 if left else 0)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--delay", type=click.FloatRange(0), help="Seconds from now; 0: at once.")
@click.option("--run-at", type=moment, metavar="TIME", help="A time with its zone.")
def reschedule(job_id: str, delay: float | None, run_at: datetime | None) -> None:
    """Give a delayed job another time. Prints it.

    \b
    Example:
      pipeline jobs reschedule 01923f6e-… --delay 0
      pipeline jobs reschedule 01923f6e-… --run-at 2031-03-01T03:00:00+01:00
    """
    if (delay is None) == (run_at is None):
        raise click.UsageError("--delay or --run-at")
    when = stage.perform(Settings.load(), asked.reschedule(job_id, run_at=run_at, delay_s=delay or 0))
    click.echo(when.astimezone(UTC).isoformat())


@jobs.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("job_id", metavar="ID")
@click.argument("arguments", metavar="JSON")
def edit(app: str, job_id: str, arguments: str) -> None:
    """Give a delayed job other arguments. All of them are given, and its model checks them.

    \b
    Example:
      pipeline jobs edit shop:app 01923f6e-… '{"order_id": "8", "address": "a@example.org"}'
    """
    stage.edit_text(load_app(app), Settings.load(), job_id, arguments)
    say("edited")


@jobs.command()
@_queue
@_schedule
def pause(queue: str | None, schedule: str | None) -> None:
    """Let no job of a queue (its full name) begin. What runs goes on. Workers obey within two seconds.

    With --schedule: make no more ticks of it.

    \b
    Example:
      pipeline jobs pause shop.jobs.email
      pipeline jobs pause --schedule shop.nightly
    """
    _one_of(queue, schedule)
    settings = Settings.load()
    stage.perform(settings, asked.pause(queue) if queue else asked.pause_schedule(schedule or ""))
    say(f"{queue or schedule} is paused")
    if queue and not stage.perform(settings, asked.counts(queue)):
        say(f"there is no tracked job of a queue {queue}: is that its full name, as shop.jobs.email?")


@jobs.command()
@_queue
@_schedule
def resume(queue: str | None, schedule: str | None) -> None:
    """Let jobs of a queue begin again, or ticks of a schedule.

    \b
    Example:
      pipeline jobs resume shop.jobs.email
      pipeline jobs resume --schedule shop.nightly
    """
    _one_of(queue, schedule)
    stage.perform(Settings.load(), asked.resume(queue) if queue else asked.resume_schedule(schedule or ""))
    say(f"{queue or schedule} goes on")


@jobs.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("name")
def tick(app: str, name: str) -> None:
    """Make a tick of a schedule now. It comes beside those that its expression makes. Prints its job's id.

    \b
    Example:
      pipeline jobs tick shop:app nightly
    """
    click.echo(stage.perform(Settings.load(), load_app(app).tick(name)))


@jobs.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option("--next", "count", type=click.IntRange(1, 1000), help="So many coming ticks of each, instead.")
@output_option
def schedules(app: str | None, count: int | None, output: str) -> None:
    """List schedules, with their last and next tick. With MODULE:APP those too that no scheduler had yet.

    \b
    Example:
      pipeline jobs schedules shop:app
      pipeline jobs schedules --next 5
    """
    settings, known = Settings.load(), load_app(app) if app else None
    rows = stage.coming(settings, known, count) if count else stage.schedule_rows(settings, known)
    print_rows(rows, output, empty="no schedule: @app.schedule(…), then pipeline scheduler run MODULE:APP")


@jobs.group()
def policy() -> None:
    """Retry policies of job types.

    \b
    Example:
      pipeline jobs policy explain shop:app SendReceipt
    """


@policy.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("name")
@output_option
def explain(app: str, name: str, output: str) -> None:
    """Print a job type's attempts. Tells when each comes, by which topic, and how long that topic keeps it.

    \b
    Example:
      pipeline jobs policy explain shop:app SendReceipt
    """
    print_rows(stage.explain(load_app(app), name), output)


def _each(ids: tuple[str, ...], act: Callable[[str], str]) -> int:
    """Do it to each, and say what came of it; return the exit code. A single one that cannot be raises its error."""
    failed = False
    for job_id in ids:
        try:
            said = act(job_id)
        except (JobError, ConfigError) as error:
            if len(ids) == 1:
                raise
            failed, said = True, error.what
        say(said if len(ids) == 1 else f"{job_id}: {said}")
    return 2 if failed else 0


def _one_way(ids: tuple[str, ...], which: asked.Which) -> None:
    if bool(ids) == any(which.values()):
        raise click.UsageError("ids, or at least one of --queue, --type, --state, --tag and --since")


def _one_of(queue: str | None, schedule: str | None) -> None:
    if bool(queue) == bool(schedule):
        raise click.UsageError("a queue, or --schedule")


def _policy(text: str | None) -> RetryPolicy | None:
    if text is None:
        return None
    wrong = ConfigError(f"--retry {text}: is not a policy", remedy="attempts=3,first_s=10,factor=2,cap_s=60,jitter=0.1")
    given: dict[str, Any] = {}
    try:
        for part in text.split(","):
            name, _, number = part.partition("=")
            given[name.strip()] = int(number) if name.strip() == "attempts" else float(number)
        return RetryPolicy(**given)
    except (ValueError, TypeError):
        raise wrong from None


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--run-at {text}: is not a time", remedy="2031-03-01T03:00:00+01:00") from None
