"""The command ``pipeline``: one group for each noun, one place where errors become exit codes.

Exit codes: 0 done, 1 error, 2 a difference was found or not all is healthy (also wrong usage, as click has it), 130
interrupted.
"""

from __future__ import annotations

import sys

import click

from pipeline.cli.connector import connector
from pipeline.cli.consumer import consumer
from pipeline.cli.db import db
from pipeline.cli.demo import demo
from pipeline.cli.dlq import dlq
from pipeline.cli.local import down, status, up
from pipeline.cli.outbox import outbox
from pipeline.cli.schema import schema
from pipeline.cli.topics import topics
from pipeline.errors import PipelineError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="outbox-pipeline")
def cli() -> None:
    """Transactional outbox, Avro events on Kafka, consumers and background jobs.

    Servers come from PIPELINE_POSTGRES__DSN, PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_REGISTRY__URL, or from the
    local stack (pipeline up).
    """


for command in (up, down, status, demo, db, schema, topics, connector, consumer, outbox, dlq):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit: the one place where an error becomes an exit code."""
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
    sys.exit(code if isinstance(code, int) else 0)
