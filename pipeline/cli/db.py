"""``pipeline db``: the database schema ``pipeline``."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.output import output_option, print_rows, say
from pipeline.config import Settings
from pipeline.runtime import database
from pipeline.runtime import shards as stage

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


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--execute", is_flag=True, help="Run the SQL. Without it, only print it.")
def shards(file: Path, execute: bool) -> None:
    """Print, or make, publications and slots of shards.

    Those that a connector FILE with pipeline.shards lacks, as SQL. Each publication takes the keys of one part of their
    hashes. The user has to own the table, and to have REPLICATION.

    \b
    Example:
      pipeline db shards connectors/outbox-sharded.json | psql
      pipeline db shards connectors/outbox-sharded.json --execute
    """
    made = stage.make_shards(file, Settings.load(), execute=execute)
    for statement in made:
        click.echo(f"{statement};")
    if not made:
        say("nothing to do: publications and slots are there")
    elif execute:
        say("done: run a relay for each shard, as the slots keep WAL from now on")
