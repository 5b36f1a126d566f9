"""Rows in, a table or JSON or YAML on stdout out. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["as_yaml", "output_option", "plain", "print_object", "print_rows", "say"]

F = TypeVar("F", bound=Callable[..., Any])
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_TEXT = re.compile(r"[-+.]?[0-9].*|[yn]", re.IGNORECASE | re.DOTALL)  # numbers to YAML 1.2 or Go that PyYAML leaves


def output_option(function: F) -> F:
    """Add ``-o table|json|yaml`` to a command, as its argument ``output``."""
    option = click.option(
        "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", help="Form of the output."
    )
    return option(function)


def print_rows(rows: Sequence[Mapping[str, object]], output: str, *, empty: str = "nothing") -> None:
    """Print rows that all have the keys of the first one. ``empty`` is said, on stderr, where there are none."""
    if output != "table":
        click.echo(_dump([dict(row) for row in rows], output))
    elif not rows:
        say(empty)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, value in rows[0].items():
            table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text("-" if value is None else plain(str(value))) for value in row.values()))
        console = Console()
        # a line per row for grep and cut; folded only where a person reads
        (console if console.is_terminal else Console(width=10_000)).print(table)


def print_object(data: Mapping[str, object], output: str) -> None:
    """Print one object: in a table, a line for each key."""
    if output != "table":
        click.echo(_dump(dict(data), output))
        return
    width = max(map(len, data), default=0)
    for name, value in data.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        click.echo(f"{name:<{width}}  {'-' if value is None else plain(str(text))}")


def plain(text: str) -> str:
    """Return text of whoever wrote a record as one line that does nothing to a terminal: control characters escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Tell the person at the terminal something that is not data."""
    click.echo(text, err=True)


def _dump(data: object, output: str) -> str:
    if output == "json":
        return json.dumps(data, indent=2, default=str, ensure_ascii=False)
    return as_yaml(data)


def as_yaml(data: object) -> str:
    """Return YAML without an end of line. Text that any reader of YAML may take for something else is quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if _NO_TEXT.fullmatch(value) else None)

    Dumper.add_representer(str, text)
    same = json.loads(json.dumps(data, default=str))
    return str(yaml.dump(same, Dumper=Dumper, sort_keys=False, allow_unicode=True)).rstrip()
