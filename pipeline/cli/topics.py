"""``pipeline topics``: the topics that an application needs."""

from __future__ import annotations

from typing import cast

import click

from pipeline.cli.output import output_option, print_rows, say
from pipeline.config import Settings
from pipeline.runtime import topics as stage
from pipeline.runtime.load import load_app

__all__ = ["topics"]


@click.group()
def topics() -> None:
    """Topics of events, queues, retries and dead letters."""


@topics.command()
@click.argument("app", metavar="MODULE:APP")
@output_option
@click.pass_context
def plan(context: click.Context, app: str, output: str) -> None:
    """Say what "apply" would do. Exits with 2 when a topic is missing or differs.

    \b
    Example:
      pipeline topics plan shop:app
    """
    changes = stage.plan_topics(load_app(app), Settings.load())
    print_rows(_rows(changes), output)
    context.exit(2 if any(change.open for change in changes) else 0)


@topics.command()
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["partitions", "config"]),
    help="Change topics that exist too: more partitions (breaks order per key once), or settings.",
)
@output_option
@click.pass_context
def apply(context: click.Context, app: str, allow: tuple[str, ...], output: str) -> None:
    """Create the topics that are missing. What exists is changed only with --allow; nothing is deleted.

    Exits with 2 when a difference is left.

    \b
    Example:
      pipeline topics apply shop:app
      pipeline topics apply shop:app --allow config
    """
    allowed = cast(tuple[stage.Action, ...], allow)
    changes = stage.apply_topics(load_app(app), Settings.load(), allow=allowed)
    print_rows(_rows(changes), output)
    left = [change.topic for change in changes if change.open and change.action not in {"create", *allow}]
    if left:
        say(f"left as they are: {', '.join(left)} (see --allow)")
    context.exit(2 if left else 0)


def _rows(changes: list[stage.Change]) -> list[dict[str, object]]:
    return [{"topic": change.topic, "action": change.action, "detail": change.detail} for change in changes]
