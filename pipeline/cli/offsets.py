"""A connector's name in, its offsets on Kafka Connect out, or others put in their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from pipeline.cli.output import print_rows, say
from pipeline.config import Settings
from pipeline.connector import State
from pipeline.errors import ConfigError
from pipeline.runtime import connect as stage

__all__ = ["offsets"]

_name = click.argument("name", metavar="NAME|FILE")


@click.group()
def offsets() -> None:
    """Offsets of a connector: how far it is. They can be changed only while it is stopped.

    \b
    Example:
      pipeline connector offsets get outbox
    """


@offsets.command("get")
@_name
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), default="json", help="Form of the output.")
def get(name: str, output: str) -> None:
    """Print a connector's offsets, as ``set`` takes them.

    \b
    Example:
      pipeline connector offsets get outbox > offsets.json
      pipeline connector offsets get connectors/outbox.json
    """
    with stage.open_connect(Settings.load()) as connect:
        print_rows(connect.offsets(_one(name)), output)


@offsets.command("set")
@_name
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--execute", is_flag=True, help="Do it. Without this nothing is done.")
def set_(name: str, file: Any, execute: bool) -> None:
    """Replace offsets of a stopped connector by those of FILE (or -). FILE is as from "offsets get" or Connect's own
    API.

    \b
    Example:
      pipeline connector offsets set outbox offsets.json --execute
    """
    name = _one(name)
    try:
        wanted = json.load(file)
    except ValueError as error:
        raise ConfigError(f"{file.name}: {error}", remedy="write what offsets get prints") from None
    if isinstance(wanted, dict) and wanted.keys() == {"offsets"}:
        wanted = wanted["offsets"]
    if not isinstance(wanted, list) or not all(_is_offset(one) for one in wanted):
        raise ConfigError(
            f'{file.name}: is not a list of {{"partition": …, "offset": …}}', remedy="write what offsets get prints"
        )
    if not wanted:
        raise ConfigError(
            f"{file.name}: has no offset", remedy=f"to forget all: pipeline connector offsets reset {name}"
        )
    with stage.open_connect(Settings.load()) as connect:
        _stopped(stage.states(connect, (name,)))
        say(f"now: {json.dumps(connect.offsets(name))}\nthen: {json.dumps(wanted)}")
        say(connect.set_offsets(name, wanted) if execute else "nothing was changed: add --execute")


@offsets.command()
@_name
@click.option("--execute", is_flag=True, help="Do it. Without this nothing is done.")
def reset(name: str, execute: bool) -> None:
    """Forget all offsets of a stopped connector. It begins as its snapshot.mode says.

    \b
    Example:
      pipeline connector offsets reset outbox --execute
    """
    name = _one(name)
    with stage.open_connect(Settings.load()) as connect:
        _stopped(stage.states(connect, (name,)))
        say(f"now: {json.dumps(connect.offsets(name))}")
        say(connect.reset_offsets(name) if execute else "nothing was changed: add --execute")


def _one(word: str) -> str:
    """Return the name of the one connector that a word names, or that a file holds. Raises ConfigError."""
    found = stage.names((word,))
    if len(found) != 1:
        raise ConfigError(f"{word}: holds {len(found)} connectors", remedy=f"name one: {', '.join(sorted(found))}")
    return found[0]


def _is_offset(one: object) -> bool:
    return isinstance(one, dict) and one.keys() == {"partition", "offset"} and isinstance(one["partition"], dict)


def _stopped(found: Sequence[State]) -> None:
    for state in found:
        if state.state != "STOPPED":
            raise ConfigError(
                f"connector {state.name}: {state.state}: offsets can be changed only while it is STOPPED",
                remedy=f"pipeline connector stop {state.name}",
            )
