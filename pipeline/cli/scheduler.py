"""``pipeline scheduler``: delayed jobs and schedules."""

from __future__ import annotations

import click

from pipeline import log
from pipeline.cli.ending import ending
from pipeline.cli.running import log_level_option, probe_options, say_port
from pipeline.config import Settings
from pipeline.runtime.load import load_app
from pipeline.runtime.scheduler import run_scheduler

__all__ = ["scheduler"]

_WITHIN_S = 15.0  # longer than a database may take to let us in


@click.group()
def scheduler() -> None:
    """Delayed jobs and schedules: what is enqueued in its time."""


@scheduler.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option("--keep-days", type=click.IntRange(1, 3650), default=7, show_default=True, help="Of finished jobs.")
@probe_options
@log_level_option
def run(app: str | None, keep_days: int, metrics_port: int | None, metrics_host: str, log_level: str) -> None:
    """Move jobs to the outbox when they are due, and make schedules' ticks. Ends at SIGTERM.

    Run as many as you like: there is no leader, and no tick is made twice. Without MODULE:APP only delayed jobs are
    moved. Finished jobs, and their results, are deleted after --keep-days.

    Exit codes: 0 stopped, 1 it cannot go on, and why, 2 ended 15 s after SIGTERM, as the database did not answer.

    \b
    Example:
      pipeline scheduler run shop:app --metrics-port 9103
    """
    log.configure(log_level)
    with ending(_WITHIN_S) as (until, _):
        run_scheduler(
            load_app(app) if app else None,
            Settings.load(),
            until=until,
            keep_days=keep_days,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            on_port=say_port,
        )
