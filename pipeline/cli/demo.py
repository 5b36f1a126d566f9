"""``pipeline demo``: the whole pipeline on this machine, in one command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from pipeline.cli.local import terminal_progress
from pipeline.cli.output import output_option, print_object, say
from pipeline.config import Settings

if TYPE_CHECKING:
    from pipeline.demo.run import Counts

__all__ = ["demo"]


@click.command()
@click.option("--orders", type=click.IntRange(100, 1_000_000), default=3000, show_default=True, help="How many orders.")
@click.option("--keep", is_flag=True, help="Leave the servers running, to look around.")
@click.option("--data", type=click.Path(path_type=Path), help="Where its state is kept.  [default: .pipeline/demo]")
@output_option
@click.pass_context
def demo(context: click.Context, orders: int, keep: bool, data: Path | None, output: str) -> None:
    """Place orders, break things, and show that nothing is lost.

    Starts PostgreSQL, Kafka and the schema registry on this machine, then relay and worker as processes of their own.
    Leaves nothing running unless --keep. Exits with 1 when an event was lost or a rolled-back one appeared.

    \b
    Example:
      pipeline demo
      pipeline demo -o json | jq .lost
    """
    from pipeline.demo.run import run  # needs the extra "local"

    where = data or Settings.load().data_dir / "demo"
    summary = asdict(run(where.absolute(), orders, _Terminal(), terminal_progress(), keep=keep))
    look_next = summary.pop("look_next")
    print_object(summary, output)
    say("\nwhere to look next:\n  " + "\n  ".join(look_next))
    context.exit(1 if summary["lost"] or summary["invented"] else 0)


class _Terminal:
    """Steps as lines, counts as one line that is rewritten on a terminal and said now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._last = ""

    def step(self, text: str) -> None:
        """Begin another step."""
        self._end_line()
        self._console.print(f"[bold cyan]▸[/] {text}")

    def counts(self, counts: Counts, orders: int) -> None:
        """Show the counts."""
        line = (
            f"  placed {counts.placed}/{orders}  paid {counts.payments}  "
            f"receipts {counts.receipts}  dead letters {counts.dead}"
        )
        if self._console.is_terminal:
            self._console.print(line, end="\r")
            self._last = line
        elif line != self._last and (counts.placed % 500 == 1 or counts.placed == orders):
            self._console.print(line)
            self._last = line

    def _end_line(self) -> None:
        if self._last and self._console.is_terminal:
            self._console.print(self._last)
        self._last = ""
