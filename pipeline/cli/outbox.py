"""``pipeline outbox``: the table and its slots."""

from __future__ import annotations

from typing import cast

import click

from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.runtime import database

__all__ = ["outbox"]


@click.group()
def outbox() -> None:
    """The outbox table, and the replication slots that read it."""


@outbox.command()
@output_option
@click.pass_context
def status(context: click.Context, output: str) -> None:
    """Say how much is in the outbox and how far the relay is.

    Exits with 2 when no relay reads a slot of this database, or a slot was invalidated.

    \b
    Example:
      pipeline outbox status
      pipeline outbox status -o json | jq '.slots[].lag_bytes'
    """
    found = database.outbox_status(Settings.load())
    slots = cast(list[dict[str, object]], found["slots"])
    if output == "table":
        print_object({name: value for name, value in found.items() if name != "slots"}, output)
        click.echo()
        print_rows(slots, output, empty="no slot: start the relay with pipeline connector run connectors/outbox.json")
    else:
        print_object(found, output)
    healthy = any(slot["active"] for slot in slots) and all(slot["wal_status"] != "lost" for slot in slots)
    if not healthy and output == "table":
        say("not healthy: no relay reads a slot, or a slot is lost")
    context.exit(0 if healthy else 2)
