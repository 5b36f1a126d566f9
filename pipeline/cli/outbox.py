"""``pipeline outbox``: the table, its rows and its slots."""

from __future__ import annotations

import json
from typing import cast

import click

from pipeline.cli.duration import seconds
from pipeline.cli.output import output_option, plain, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.runtime import database
from pipeline.runtime import outbox as stage
from pipeline.runtime.load import load_app

__all__ = ["outbox"]


@click.group()
def outbox() -> None:
    """The outbox table, and the replication slots that read it."""


@outbox.command()
@output_option
@click.pass_context
def status(context: click.Context, output: str) -> None:
    """Say how much is in the outbox and how far the relay is.

    A write transaction that is open for long holds back what may be pruned, and the WAL that is kept for a slot.
    Exits with 2 when no relay reads a slot of this database or polls, or a slot was invalidated.

    \b
    Example:
      pipeline outbox status
      pipeline outbox status -o json | jq '.slots[].lag_bytes'
    """
    found = database.outbox_status(Settings.load())
    slots, pollers = (cast(list[dict[str, object]], found[name]) for name in ("slots", "pollers"))
    if output == "table":
        print_object({name: value for name, value in found.items() if name not in {"slots", "pollers"}}, output)
        click.echo()
        if pollers:
            print_rows(pollers, output)
        if slots or not pollers:
            empty = "no slot: start the relay with pipeline connector run connectors/outbox.json"
            print_rows(slots, output, empty=empty)
    else:
        print_object(found, output)
    lost = any(slot["wal_status"] == "lost" for slot in slots)
    healthy = any(reader["active"] for reader in (*slots, *pollers)) and not lost
    if not healthy and output == "table":
        say("not healthy: no relay reads a slot or polls, or a slot is lost")
    if found["refused_rows"] and output == "table":
        say(f"{found['refused_rows']} rows no topic takes are in pipeline.refused_row: docs/dead-letters.md")
    context.exit(0 if healthy else 2)


@outbox.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option("-n", "--last", default=10, show_default=True, type=click.IntRange(0, 10_000), help="Rows to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is committed from now on.")
@click.option("--reveal", is_flag=True, help="Show personal data too.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Lines, or JSON lines.")
def tail(app: str | None, last: int, follow: bool, reveal: bool, output: str) -> None:
    """Show the newest rows, oldest first. Columns are id, time (UTC), topic, key, type and payload.

    Personal fields are masked unless --reveal. A JSON payload needs MODULE:APP to know which these are; without it all
    of its values are masked.

    \b
    Example:
      pipeline outbox tail -f
      pipeline outbox tail shop:app -n 100 -o json | jq .payload
    """
    models = {model.message_type.name: model for model in load_app(app).messages} if app else {}
    for row in stage.tail_outbox(Settings.load(), last=last, follow=follow, reveal=reveal, models=models):
        shown = {
            "id": row.id, "at": row.at.isoformat(), "topic": row.topic, "key": row.key, "type": row.type,
            "payload": row.payload.data, "problem": row.payload.problem,
        }  # fmt: skip
        if output == "json":
            click.echo(json.dumps(shown, default=str, ensure_ascii=False))
        else:
            data = row.payload.problem or json.dumps(row.payload.data, default=str, ensure_ascii=False)
            click.echo(plain(f"{row.at:%Y-%m-%d %H:%M:%S}  {row.id}  {row.topic}  {row.key}  {row.type}  {data}"))


@outbox.command()
@click.option(
    "--older-than", default="7d", show_default=True, type=seconds, metavar="TIME", help="Retention: 30m, 12h, 7d …"
)
@click.option("--batch", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="Rows a transaction.")
@click.option(
    "--wait", default=10.0, show_default=True, type=click.FloatRange(0), help="Seconds to wait for the relay."
)
@click.option("--execute", is_flag=True, help="Delete. Without it, only say how many rows would go.")
@output_option
def prune(older_than: float, batch: int, wait: float, execute: bool, output: str) -> None:
    """Delete rows that are proven to be published. Only those that are past their retention.

    A row goes once every relay's stored position is past a point that was taken after the row's transaction had ended;
    of a slot for which none is stored, as Debezium's, what it has confirmed to the server counts.
    Each run takes such a point; run it from cron, and what is ripe goes at the next run at the latest. While the
    identity of a slot is in doubt, nothing goes. Runs as the role pipeline_pruner.

    \b
    Example:
      pipeline outbox prune
      pipeline outbox prune --older-than 3d --execute
    """
    done = stage.prune_outbox(Settings.load(), retention_s=older_than, batch=batch, execute=execute, wait_s=wait)
    print_object({"deleted" if execute else "would_delete": done.rows, "slots": ", ".join(done.slots)}, output)
    if not done.passed:
        say("no relay has passed a point of an earlier run yet: run again with --execute once it has caught up")
