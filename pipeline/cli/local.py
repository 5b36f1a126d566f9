"""``pipeline up``, ``down`` and ``status``: the servers on this machine."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from pipeline.cli.output import output_option, print_rows, say
from pipeline.config import Settings
from pipeline.errors import LocalStackError

if TYPE_CHECKING:
    from pipeline.local import Endpoints, LocalStack, ServerStatus
    from pipeline.local.progress import Progress

__all__ = ["down", "status", "terminal_progress", "up"]

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    help="Where the servers keep their state.  [default: .pipeline]",
)


@click.command()
@click.option("--connect", is_flag=True, help="Start Kafka Connect with Debezium too.")
@data_option
@output_option
def up(connect: bool, data: Path | None, output: str) -> None:
    """Start PostgreSQL, Kafka and a schema registry, without Docker.

    They listen on loopback only, and run on after this command. What already runs is left alone. The first time
    215 MB are downloaded.

    \b
    Example:
      pipeline up
      eval "$(pipeline status --env)"; psql "$PIPELINE_POSTGRES__DSN"
    """
    stack = _stack(data, terminal_progress())
    with _terminated_as_interrupted():
        stack.up(connect=connect)
    _print(stack, stack.status(), output)


@click.command()
@click.option("--delete", is_flag=True, help="Delete all their data too.")
@data_option
def down(delete: bool, data: Path | None) -> None:
    """Stop the servers that "pipeline up" started. Their data stays, unless --delete.

    \b
    Example:
      pipeline down
    """
    stack = _stack(data, terminal_progress())
    stack.down(delete=delete)
    say(f"stopped, and deleted {stack.data}" if delete else f"stopped; data is in {stack.data}")


@click.command()
@click.option("--env", is_flag=True, help="Print settings for a shell instead, passwords included.")
@data_option
@output_option
@click.pass_context
def status(context: click.Context, env: bool, data: Path | None, output: str) -> None:
    """Show the servers, each asked something real. Exits with 2 when not all are healthy.

    \b
    Example:
      pipeline status -o json
    """
    stack = _stack(data, terminal_progress())
    servers = stack.status()
    found = stack.endpoints() if env else None
    if found is not None:
        click.echo(_exports(found))
    elif env:
        say(f"nothing to print: not all servers in {stack.data} run; pipeline up starts them")
    else:
        _print(stack, servers, output)
    context.exit(0 if servers and all(server.state == "healthy" for server in servers) else 2)


def terminal_progress() -> Progress:
    """Return a progress that shows a bar on a terminal, and lines elsewhere; all on stderr."""
    console = Console(stderr=True, highlight=False)
    return _Terminal(console) if console.is_terminal else _Lines()


def _stack(data: Path | None, progress: Progress) -> LocalStack:
    try:
        from pipeline.local import LocalStack  # an extra: not in the small core
    except ImportError as error:
        raise LocalStackError(
            f"the local servers are not installed ({error.name} is missing)",
            remedy="pip install 'outbox-pipeline[local]'",
        ) from error
    return LocalStack(data or Settings.load().data_dir, progress=progress)


def _print(stack: LocalStack, servers: Sequence[ServerStatus], output: str) -> None:
    rows = [asdict(server) for server in servers]
    if output == "table":
        rows = [{name: row[name] for name in ("name", "state", "pid", "address")} for row in rows]
    print_rows(rows, output, empty=f"no server was ever started in {stack.data}: pipeline up")
    for server in servers:
        if server.state == "unhealthy":
            say(f"{server.name}: {server.detail}; see {server.log}")
    if servers:
        say(f"data and logs are in {stack.data}")


def _exports(found: Endpoints) -> str:
    values = {
        "PIPELINE_POSTGRES__DSN": found.postgres_dsn,
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": found.kafka,
        "PIPELINE_REGISTRY__URL": found.registry,
        "PIPELINE_REGISTRY__USERNAME": found.registry_username,
        "PIPELINE_REGISTRY__PASSWORD": found.registry_password,
        "PIPELINE_CONNECT__URL": found.connect,
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items() if value)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a termination stop what was started, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Lines:
    """Steps as lines, a download as a line every tenth of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total_bytes = self._done_bytes = self._told = 0

    def say(self, text: str) -> None:
        """Print one line."""
        say(text)

    def expect(self, total_bytes: int) -> None:
        """Begin to count."""
        self._total_bytes, self._done_bytes, self._told = total_bytes, 0, 0

    def advance(self, done_bytes: int) -> None:
        """Count, and print a line when another tenth is there."""
        with self._lock:
            self._done_bytes += done_bytes
            tenths = self._done_bytes * 10 // max(1, self._total_bytes)
            if tenths <= self._told:
                return
            self._told = tenths
        say(f"  {tenths * 10} % of {self._total_bytes / 1e6:.0f} MB")


class _Terminal:
    """Steps as lines, a download as a bar."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("  downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
        )
        self._console = console
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line, above the bar."""
        self._console.print(text, markup=False)

    def expect(self, total_bytes: int) -> None:
        """Show the bar; put it away where nothing is downloaded any more."""
        if not total_bytes:
            self._bar.stop()
            return
        self._task = self._bar.add_task("", total=total_bytes)
        self._bar.start()

    def advance(self, done_bytes: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.advance(self._task, done_bytes)
