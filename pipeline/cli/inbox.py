"""``pipeline inbox``: what handlers with ``inbox=True`` have done."""

from __future__ import annotations

import click

from pipeline.cli.duration import seconds
from pipeline.cli.output import output_option, print_object
from pipeline.config import Settings
from pipeline.runtime import inbox as stage

__all__ = ["inbox"]


@click.group()
def inbox() -> None:
    """The inbox: what handlers with inbox=True have done."""


@inbox.command()
@click.option(
    "--older-than", default="30d", show_default=True, type=seconds, metavar="TIME", help="Retention: 12h, 30d …"
)
@click.option("--batch", default=5000, show_default=True, type=click.IntRange(1, 100_000), help="Rows a transaction.")
@click.option("--execute", is_flag=True, help="Delete. Without it, only say how many rows would go.")
@output_option
def prune(older_than: float, batch: int, execute: bool, output: str) -> None:
    """Delete rows that are past their retention. An event that comes again after that has its effects again.

    Keep them longer than the topics keep their records, which consumer reset can go back over, and than dead letters
    wait for a redrive. Runs as pipeline_pruner.

    \b
    Example:
      pipeline inbox prune
      pipeline inbox prune --older-than 60d --execute
    """
    rows = stage.prune_inbox(Settings.load(), retention_s=older_than, batch=batch, execute=execute)
    print_object({"deleted" if execute else "would_delete": rows}, output)
