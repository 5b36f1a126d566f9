"""``pipeline jobs``: look at background jobs, and command them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from pipeline import jobs as asked
from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.job import EnqueueOptions, Unique
from pipeline.retry import RetryPolicy
from pipeline.runtime import jobs as stage
from pipeline.runtime.load import load_app

__all__ = ["jobs"]

_STATES = ["blocked", "delayed", "waiting", "running", "retrying", "done", "dead", "cancelled"]
_SHOWN = ("id", "queue", "type", "state", "attempts", "created_at", "due_at", "finished_at", "error")
_queue = click.argument("queue")


@click.group()
def jobs() -> None:
    """Background jobs: those that are tracked, of this database."""


@jobs.command("list")
@click.option("--queue", default="", help="Full name of a queue.")
@click.option("--type", "type_name", default="", help="Name of a job type.")
@click.option("--state", type=click.Choice(_STATES), help="Only in this state.")
@click.option("--tag", default="", help="Only with this tag.")
@click.option("--before", help="The next page: id of the last job of the one before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--counts", is_flag=True, help="How many there are, instead of which.")
@output_option
def list_(
    queue: str, type_name: str, state: str | None, tag: str, before: str | None, limit: int, counts: bool, output: str
) -> None:
    """List jobs, the newest first.

    \b
    Example:
      pipeline jobs list --queue shop.jobs.email --state dead
      pipeline jobs list --counts
    """
    if counts:
        found = stage.perform(Settings.load(), asked.counts(queue))
        print_rows([dict(zip(("queue", "type", "state", "count"), row, strict=True)) for row in found], output)
        return
    steps = asked.listing(queue=queue, type_name=type_name, state=state or "", tag=tag, before=before, limit=limit)
    rows = [asdict(row) for row in stage.perform(Settings.load(), steps)]
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
    """Enqueue a job by its name, with arguments that its model checks. Prints its id.

    \b
    Example:
      pipeline jobs enqueue shop:app SendReceipt '{"order_id": "7", "address": "a@example.org"}' --delay 60
    """
    options: EnqueueOptions = {"delay_s": delay, "tags": tags, "priority": priority, "run_at": _time(run_at)}  # type: ignore[typeddict-item]  # click has checked it
    options |= {"timeout_s": timeout, "retry": _policy(retry), "expires_s": expires}
    if unique_key:
        options["unique"] = Unique(key=unique_key)
    click.echo(stage.enqueue_text(load_app(app), Settings.load(), name, arguments, options))


@jobs.command()
@click.argument("job_id", metavar="ID")
def cancel(job_id: str) -> None:
    """Ask for the end of a job: at once where it has not left yet, else by a worker within two seconds.

    \b
    Example:
      pipeline jobs cancel 01923f6e-…
    """
    state = stage.perform(Settings.load(), asked.cancel(job_id))
    say(state if state == "cancelled" else f"{state}: a worker will end it")


@jobs.command()
@click.argument("job_id", metavar="ID")
def retry(job_id: str) -> None:
    """Send a dead or cancelled job to its queue again, from its first attempt.

    \b
    Example:
      pipeline jobs retry 01923f6e-…
    """
    stage.perform(Settings.load(), asked.retry(job_id))
    say("waiting")


@jobs.command()
@_queue
def pause(queue: str) -> None:
    """Let no job of a queue (its full name) begin; what runs goes on. Workers obey within two seconds.

    \b
    Example:
      pipeline jobs pause shop.jobs.email
    """
    stage.perform(Settings.load(), asked.pause(queue))
    say(f"{queue} is paused")


@jobs.command()
@_queue
def resume(queue: str) -> None:
    """Let jobs of a queue begin again.

    \b
    Example:
      pipeline jobs resume shop.jobs.email
    """
    stage.perform(Settings.load(), asked.resume(queue))
    say(f"{queue} goes on")


@jobs.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@output_option
def schedules(app: str | None, output: str) -> None:
    """List schedules, with their last and next tick.

    \b
    Example:
      pipeline jobs schedules shop:app
    """
    rows = stage.schedule_rows(Settings.load(), load_app(app) if app else None)
    print_rows(rows, output, empty="no schedule: @app.schedule(…), then pipeline scheduler run MODULE:APP")


@jobs.group()
def policy() -> None:
    """Retry policies of job types.

    
    Example:
      pipeline jobs policy explain shop:app SendReceipt
    """


@policy.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("name")
@output_option
def explain(app: str, name: str, output: str) -> None:
    """Print a job type's attempts: when, by which topic, and how long that topic keeps them.

    \b
    Example:
      pipeline jobs policy explain shop:app SendReceipt
    """
    print_rows(stage.explain(load_app(app), name), output)


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
