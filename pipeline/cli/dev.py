"""``pipeline dev``: an application with all that it needs, in one terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import click

from pipeline.cli.local import terminal_progress
from pipeline.cli.main import cli
from pipeline.cli.output import say
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.runtime.dev import run_dev, servers

__all__ = ["dev"]

_COLOURS = {"setup": "white", "dev": "white", "relay": "cyan", "scheduler": "yellow", "worker": "green"}
_WIDTH = max(map(len, _COLOURS))


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--reload", is_flag=True, help="Start worker and scheduler again when a file changes.")
@click.option("--keep", is_flag=True, help="Leave the servers running at the end.")
@click.option(
    "--connector",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The relay's connector file.  [default: connectors/outbox.json]",
)
@click.option("--setup", is_flag=True, hidden=True, help="Only apply migrations, schemas and topics, and end.")
@click.pass_context
def dev(context: click.Context, app: str, reload: bool, keep: bool, connector: Path | None, setup: bool) -> None:
    """Run an application with all that it needs, until Ctrl-C.

    Starts PostgreSQL, Kafka and the schema registry on this machine where none are set, applies migrations, generates
    and pushes schemas, creates topics, and runs relay, scheduler and all groups and queues. At the end handlers finish
    what they have begun, and servers stop that were started here; their data stays.

    \b
    Example:
      pipeline dev shop:app --reload

    Exit codes: 0 stopped by you, 1 a part could not go on, and why.
    """
    if setup:
        context.exit(_set_up(app))
    changes = _python_files() if reload else None
    until, at_once = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        (at_once if until.is_set() else until).set()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while servers start
    with servers(Settings.load(), terminal_progress(), keep=keep):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        well = run_dev(app, connector=connector, show=_show, until=until, at_once=at_once, changes=changes)
    context.exit(0 if well else 1)


def _set_up(app: str) -> int:
    """Do what needs the application's newest code, in this process alone: it is imported once. Return the exit code."""
    for words in (["db", "migrate"], ["schema", "generate", app], ["schema", "push", app], ["topics", "apply", app]):
        if code := cli.main(words, standalone_mode=False):
            return int(code)
    return 0


def _show(name: str, line: str) -> None:
    moment = click.style(f"{datetime.now().astimezone():%H:%M:%S}", dim=True)
    say(f"{moment} {click.style(f'{name:<{_WIDTH}}', fg=_COLOURS.get(name))} {line}")


def _python_files() -> Callable[[threading.Event], Iterator[object]]:
    """Return what tells of changed Python files below the working directory. Raises ConfigError without its extra."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError as error:
        raise ConfigError("--reload needs watchfiles", remedy="pip install 'outbox-pipeline[dev-server]'") from error
    return lambda until: watch(Path.cwd(), watch_filter=PythonFilter(), stop_event=until, raise_interrupt=False)
