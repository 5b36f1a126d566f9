"""``pipeline connector reconcile``: what the outbox has and the topics have not."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from pipeline.cli.moment import moment, utc
from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.postgres.retained import Range
from pipeline.runtime.reconcile import open_reconciliation

__all__ = ["reconcile"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--since", type=moment, metavar="TIME", help="Rows of then or later, with a zone: 2026-03-01T09:30:00Z.")
@click.option("--until", type=moment, metavar="TIME", help="Rows before.")
@click.option(
    "--wait", default=75.0, show_default=True, type=click.FloatRange(0), help="Seconds for the relay to pass the rows."
)
@click.option("--despite-retention", is_flag=True, help="Also where a topic may have deleted records of these rows.")
@click.option("--execute", is_flag=True, help="Publish what is missing. Without it, only say what is.")
@output_option
@click.pass_context
def reconcile(
    context: click.Context,
    file: Path,
    since: datetime | None,
    until: datetime | None,
    wait: float,
    despite_retention: bool,
    execute: bool,
    output: str,
) -> None:
    """Find retained rows that are not on their topics. They are compared by event id, and published with --execute.

    While the relay (or Debezium) runs: what it has not passed yet is waited for, not called missing. A row on the
    connector's DLQ is not missing. What is published is stamped now, its own time is in __pipeline.origin.timestamp.ms.
    Exits with 2 when something is missing, and with 0 once --execute has published it.

    \b
    Example:
      pipeline connector reconcile connectors/outbox.json
      pipeline connector reconcile connectors/outbox.json --since 2026-03-01T09:00:00Z --execute
    """
    with open_reconciliation(file, Settings.load(), Range(since, until), step=say) as run:
        counts = run.compare(wait_s=wait, despite_retention=despite_retention)
        rows: list[dict[str, object]] = [
            {
                "topic": count.topic or "(none that Kafka allows)",
                "rows": count.rows,
                "missing": count.missing,
                "oldest_missing": count.oldest_ms and utc(count.oldest_ms),
                "newest_missing": count.newest_ms and utc(count.newest_ms),
            }
            for count in counts
        ]
        missing = sum(count.missing for count in counts)
        published = pruned = 0
        if execute and missing:
            published, pruned = run.publish(lambda _done: None)
    if output == "table":
        print_rows(rows, output, empty="no rows are retained")
    else:
        print_object({"topics": rows, "missing": missing, "published": published}, output)
    if execute:
        say(f"published: {published}" + (f"; pruned meanwhile: {pruned}" if pruned else ""))
    elif missing:
        say(f"would publish {missing} rows: add --execute")
    context.exit(2 if missing and not execute else 0)
