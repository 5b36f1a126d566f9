"""``pipeline schema``: the data contract, from models over files to the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.cli.output import output_option, print_object, print_rows, say
from pipeline.compatibility import MODES
from pipeline.config import Settings
from pipeline.contract import Contract, Difference, pretty
from pipeline.push import Step
from pipeline.runtime import schemas as stage
from pipeline.runtime.load import load_app

__all__ = ["schema"]

_app = click.argument("app", metavar="MODULE:APP")
_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=stage.DEFAULT_FOLDER,
    show_default=True,
    help="Folder of the schema files.",
)
_mode = click.option(
    "--compatibility",
    "mode",
    type=click.Choice(MODES, case_sensitive=False),
    default="BACKWARD",
    show_default=True,
    help="For subjects that are new. Others keep theirs.",
)


@click.group()
def schema() -> None:
    """Avro schemas: generated, reviewed as files, pushed."""


@schema.command()
@_app
@_folder
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit with 2 when a file differs.")
@click.pass_context
def generate(context: click.Context, app: str, folder: Path, only_check: bool) -> None:
    """Write schemas/<subject>.avsc for each message of an application.

    The subject stands without the topic prefix: all environments share the file. Files that no model stands for are
    named and left alone.

    \b
    Example:
      pipeline schema generate shop:app
      pipeline schema generate shop:app --check
    """
    contract, differences = stage.generate(load_app(app), folder, write=not only_check)
    words = {"missing": "would write", "changed": "would change", "unreadable": "would replace"}
    if not only_check:
        words = {"missing": "wrote", "changed": "changed", "unreadable": "replaced"}
    _say_differences(folder, differences, words)
    _say_skipped(contract)
    if not differences:
        say(f"{len(contract.entries)} schemas, all files as the models say")
    context.exit(2 if only_check and differences else 0)


@schema.command()
@_app
@_folder
@_mode
@click.option("--registry", is_flag=True, help="Against the registry too: compatible, registered, ids stored?")
@click.pass_context
def check(context: click.Context, app: str, folder: Path, mode: str, registry: bool) -> None:
    """Compare models with files, and with the registry on request. Exits with 2 on a difference, shown as a diff.

    \b
    Example:
      pipeline schema check shop:app
      pipeline schema check shop:app --registry
    """
    found = stage.check(load_app(app), Settings.load(), folder, with_registry=registry, mode=mode.upper())
    for difference in found.differences:
        click.echo(difference.diff)
    for problem in found.problems:
        say(problem)
    if found.steps is not None:
        print_rows(_rows(found.steps), "table", empty="no Avro messages")
    _say_differences(folder, found.differences, {})
    _say_skipped(found.contract)
    say(f"{len(found.contract.entries)} schemas: {'all agree' if found.clean else 'not all agree'}")
    context.exit(0 if found.clean else 2)


@schema.command()
@_app
@_folder
@_mode
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@output_option
def push(app: str, folder: Path, mode: str, dry_run: bool, output: str) -> None:
    """Register what is new, and store the ids for the writers.

    Files and models must agree, every schema must be usable and compatible; else nothing is done. The plan is printed
    first. Pushing again changes nothing.

    \b
    Example:
      pipeline schema push shop:app --dry-run
      pipeline schema push shop:app
    """

    changes = 0

    def planned(contract: Contract, steps: Sequence[Step]) -> None:
        nonlocal changes
        changes = sum(step.action != "none" for step in steps)
        print_rows(_rows(steps), output, empty="no Avro messages")
        _say_skipped(contract)
        for step in steps:
            if step.mode == "NONE":
                say(f"warning: {step.entry.subject} has compatibility NONE: nothing is checked against old versions")

    stage.push_schemas(load_app(app), Settings.load(), folder, mode=mode.upper(), dry_run=dry_run, planned=planned)
    done = f"pushed {changes}; the ids are stored for the writers" if changes else "nothing to do: all is pushed"
    say("dry run: nothing was changed" if dry_run else done)


@schema.command("list")
@click.option("--contains", default="", help="Only subjects with this text in their name.")
@output_option
def list_(contains: str, output: str) -> None:
    """List the registry's subjects, with versions and compatibility.

    \b
    Example:
      pipeline schema list --contains order
    """
    print_rows(stage.list_subjects(Settings.load(), contains), output, empty="no subjects")


@schema.command()
@click.argument("subject")
@click.option("--version", type=click.IntRange(min=1), help="Which one; the newest by default.")
@output_option
def get(subject: str, version: int | None, output: str) -> None:
    """Print one schema of the registry.

    \b
    Example:
      pipeline schema get outbox.event.order-OrderPlaced
    """
    found = stage.get(Settings.load(), subject, version)
    if output == "table":
        say(f"{subject} version {found['version']}, id {found['id']}")
        click.echo(pretty(str(found["schema"])), nl=False)
    else:
        print_object(found, output)


def _rows(steps: Sequence[Step]) -> list[dict[str, object]]:
    return [
        {
            "subject": step.entry.subject,
            "action": step.action,
            "compatibility": f"{step.mode} (to be set)" if step.sets_mode else step.mode,
            "version": step.version,
            "id": step.schema_id,
        }
        for step in steps
    ]


def _say_differences(folder: Path, differences: Sequence[Difference], words: dict[str, str]) -> None:
    for difference in differences:
        say(f"{words.get(difference.kind, difference.kind)}: {folder / difference.file}")


def _say_skipped(contract: Contract) -> None:
    if contract.skipped:
        say(f"JSON, without schema: {', '.join(contract.skipped)}")
