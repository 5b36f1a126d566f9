"""``pipeline db``: the database schema ``pipeline``."""

from __future__ import annotations

import click

from pipeline.cli.output import output_option, print_rows, say
from pipeline.config import Settings
from pipeline.runtime import database

__all__ = ["db"]


@click.group()
def db() -> None:
    """The database schema that outbox, relay and workers need."""


@db.command()
@click.option("--sql", is_flag=True, help="Print the SQL (with roles and grants) instead of running it.")
def migrate(sql: bool) -> None:
    """Bring the schema "pipeline" to the newest version. All of it happens in one transaction.

    \b
    Example:
      pipeline db migrate
      pipeline db migrate --sql | less
    """
    if sql:
        click.echo(database.migration_script(), nl=False)
        return
    done = database.migrate(Settings.load())
    for migration in done:
        say(f"applied {migration.number:04} {migration.name}")
    say(f"{len(done)} applied" if done else "nothing to do: the schema is at its newest version")


@db.command()
@output_option
@click.pass_context
def status(context: click.Context, output: str) -> None:
    """List the migrations. Exits with 2 while one is pending.

    \b
    Example:
      pipeline db status -o json
    """
    rows = database.migrations_of(Settings.load())
    print_rows(rows, output)
    context.exit(0 if all(row["state"] == "applied" for row in rows) else 2)
