"""``pipeline connector``: a connector file in, the native relay or Debezium on Kafka Connect at work out."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline import log
from pipeline.cli.connect import COMMANDS
from pipeline.cli.ending import ending
from pipeline.cli.reconcile import reconcile
from pipeline.cli.running import client_option, client_settings, log_level_option, probe_options, say_port
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.runtime.connect import check
from pipeline.runtime.relay import check_connectors, run_relay

__all__ = ["connector"]

_FILE = click.Path(path_type=Path)
_WITHIN_S = 28.0  # the relay drains for 25 s; a kubelet kills after 30


@click.group()
def connector() -> None:
    """Connector files: run by the native relay, or on Kafka Connect."""


for _command in (*COMMANDS, reconcile):
    connector.add_command(_command)


@connector.command()
@click.argument("file", type=_FILE)
@click.option("--shard", type=click.IntRange(0), help="Which one, of a file with pipeline.shards.")
@probe_options
@click.option("--ignore-unknown", is_flag=True, help="Warn about unknown keys of the file instead of refusing it.")
@client_option
@log_level_option
def run(
    file: Path,
    shard: int | None,
    metrics_port: int | None,
    metrics_host: str,
    ignore_unknown: bool,
    options: tuple[str, ...],
    log_level: str,
) -> None:
    """Publish the outbox to Kafka, natively, until SIGTERM. SIGTERM and SIGINT drain, a second one ends at once.

    Example: pipeline connector run connectors/outbox.json --metrics-port 9101

    Logs are JSON on stderr. Exit codes: 0 stopped, 1 it cannot go on, and why, 2 ended 28 s after SIGTERM, as a server
    did not answer.
    """
    log.configure(log_level)
    with ending(_WITHIN_S) as (until, at_once):
        run_relay(
            file,
            Settings.load(),
            until=until,
            at_once=at_once,
            shard=shard,
            ignore_unknown=ignore_unknown,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            options=client_settings(options),
            on_port=say_port,
        )


@connector.command()
@click.argument("paths", metavar="FILE|FOLDER|- …", nargs=-1, required=True)
@click.option("--ignore-unknown", is_flag=True, help="Warn about unknown keys instead of refusing the file.")
@click.option("--connect", "by_connect", is_flag=True, help="Let Kafka Connect check them, as its plugins see them.")
@click.pass_context
def validate(context: click.Context, paths: tuple[str, ...], ignore_unknown: bool, by_connect: bool) -> None:
    """Check connector files for the native relay, without any server. Every key, every value, every reference.

    All files are looked at, also where one is wrong.

    \b
    Example:
      pipeline connector validate connectors/outbox.json
      pipeline connector validate --connect connectors/
    """
    settings = Settings.load()
    if by_connect:
        for one in check(settings, paths, ignore_unknown=ignore_unknown):
            click.echo(f"{one.source}: ok: {one.config['connector.class']}")
        return
    wrong = 0
    for source, found in check_connectors(paths, settings, ignore_unknown=ignore_unknown):
        if isinstance(found, ConfigError):
            click.echo(f"error: {found}", err=True)
            wrong += 1
            continue
        for notice in found.notices:
            click.echo(f"{source}: {notice}", err=True)
        click.echo(f"{source}: ok: slot {found.slot}, publication {found.publication}, tables {found.tables_text}")
    context.exit(1 if wrong else 0)
