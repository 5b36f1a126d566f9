"""``pipeline doctor``: the servers that a connector needs in, what is wrong with them and how to mend it out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.output import output_option, print_rows, say
from pipeline.config import Settings
from pipeline.runtime.doctor import PROVIDERS, diagnose
from pipeline.runtime.load import load_app

__all__ = ["doctor"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("connectors/outbox.json"))
@click.option("--provider", type=click.Choice(PROVIDERS), help="Managed PostgreSQL; else told by the host's name.")
@click.option("--app", metavar="MODULE:APP", help="Look at the topics that this application declares, too.")
@output_option
@click.pass_context
def doctor(context: click.Context, file: Path, provider: str | None, app: str | None, output: str) -> None:
    """Look at the servers that a connector FILE needs. PostgreSQL, Kafka, the registry and Kafka Connect; nothing is
    changed.

    Each finding comes with the SQL or command that mends it. Exits with 2 where there is a problem; warnings are no
    problem yet.

    \b
    Example:
      pipeline doctor connectors/outbox.json --app shop:app --provider rds
    """
    loaded = load_app(app) if app else None
    found = list(diagnose(Settings.load(), file, provider=provider or "", app=loaded, app_name=app or ""))
    print_rows([asdict(one) for one in found], output)
    problems = sum(one.level == "problem" for one in found)
    say(f"{problems} problems, {sum(one.level == 'warning' for one in found)} warnings")
    context.exit(2 if problems else 0)
