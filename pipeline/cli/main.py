"""The command ``pipeline``: one group for each noun, one place where errors become exit codes.

Exit codes: 0 done, 1 error, 2 a difference was found or not all is healthy (also wrong usage, as click has it), 130
interrupted.
"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from pipeline.errors import ConfigError, PipelineError

__all__ = ["cli", "main"]

_PACKAGE = Path(__file__).parents[1]

_COMMANDS = {
    "up": "local",
    "down": "local",
    "status": "local",
    "demo": "demo",
    "dev": "dev",
    "doctor": "doctor",
    "db": "db",
    "schema": "schema",
    "topics": "topics",
    "connector": "connector",
    "consumer": "consumer",
    "scheduler": "scheduler",
    "jobs": "jobs",
    "outbox": "outbox",
    "inbox": "inbox",
    "dlq": "dlq",
}
"""Command → its module in ``pipeline.cli``. Imported when called: a command needs only its own extra."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 — click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 — click's signature
        if cmd_name not in _COMMANDS:
            return None
        try:
            module = import_module(f"pipeline.cli.{_COMMANDS[cmd_name]}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("pipeline"):
                raise
            return _missing(cmd_name, error.name)
        return getattr(module, cmd_name)  # type: ignore[no-any-return]


_EXTRAS = {"confluent_kafka": "worker", "prometheus_client": "worker", "psutil": "local", "watchfiles": "dev-server"}


def _missing(name: str, package: str) -> click.Command:
    """Return what stands for a command whose extra is not installed: listed, and an error when it is called."""
    extra = f"outbox-pipeline[{_EXTRAS.get(package.partition('.')[0], 'all')}]"

    def fail(arguments: object) -> None:
        del arguments
        raise ConfigError(
            f"pipeline {name} needs the package {package}, which is not installed", remedy=f"pip install '{extra}'"
        )

    rest = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True, "help_option_names": []}
    return click.Command(name, settings, fail, [rest], short_help=f"(Needs {extra}.)")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="outbox-pipeline")
def cli() -> None:
    """Transactional outbox, Avro events on Kafka, consumers and background jobs.

    Servers come from PIPELINE_POSTGRES__DSN, PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_REGISTRY__URL, or from the
    local stack (pipeline up).
    """


def main() -> None:
    """Run the command line and exit."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except PipelineError as error:
        click.echo(f"error: {error}", err=True)
        code = 1
    except BrokenPipeError:
        code = 0  # who reads has enough: head, less
    except Exception as error:  # noqa: BLE001 — the last resort
        click.echo(_unexpected(error), err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception) -> str:
    """Tell where in the user's own code an error came from; all of it where it is our code's alone."""
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((str(_PACKAGE), "<")) and "site-packages" not in frame.filename
        and not frame.filename.endswith(("/importlib/__init__.py", "/bin/pipeline"))
    ]  # fmt: skip
    if not theirs and not isinstance(error, SyntaxError):
        return "".join(traceback.format_exception(error))
    last = "".join(traceback.format_exception_only(error)).strip()
    return f"{''.join(traceback.format_list(theirs))}error: {last}"
