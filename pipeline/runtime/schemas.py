"""An application and settings in; its schema files, their checks and their registration out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import push
from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.contract import Contract, Difference, compare, contract_of, lint, read_files, write_files
from pipeline.endpoints import registry_address
from pipeline.errors import SchemaError
from pipeline.postgres.schema_ids import SchemaIdTable
from pipeline.registry.subjects import Subjects
from pipeline.runtime.database import connect

__all__ = ["DEFAULT_FOLDER", "Check", "check", "generate", "get", "list_subjects", "push_schemas"]

DEFAULT_FOLDER = Path("schemas")


@dataclass(frozen=True, slots=True)
class Check:
    """Models against files, and against the registry where that was asked.

    ``steps`` is what a push would do; None where the registry was not asked. ``problems`` are reasons against a push.
    """

    contract: Contract
    differences: list[Difference]
    problems: list[str]
    steps: list[push.Step] | None

    @property
    def clean(self) -> bool:
        """Whether models, files and (where asked) registry and stored ids agree."""
        pushed = all(step.action == "none" for step in self.steps or ())
        return not self.differences and not self.problems and pushed


def generate(app: Pipeline, folder: Path, *, write: bool = True) -> tuple[Contract, list[Difference]]:
    """Write the files that differ from the models; return the contract and what differed before."""
    contract = contract_of(app, app.names.prefix)
    _refuse_unusable(contract)
    differences = compare(contract, read_files(folder))
    if write:
        write_files(contract, folder, differences)
    return contract, differences


def check(app: Pipeline, settings: Settings, folder: Path, *, with_registry: bool, mode: str = "BACKWARD") -> Check:
    """Compare the models with the files; with registry and stored ids too where ``with_registry`` is set."""
    contract = contract_of(app, app.names.prefix)
    differences = compare(contract, read_files(folder))
    problems = [problem for entry in contract.entries for problem in lint(entry)]
    steps = None
    if with_registry and not problems:
        with connect(settings) as conn, _subjects(settings) as registry:
            try:
                steps = push.plan(contract, None, registry, SchemaIdTable(conn), mode=mode)
            except push.PushRefused as error:
                problems.append(error.what)
    return Check(contract, differences, problems, steps)


def push_schemas(
    app: Pipeline,
    settings: Settings,
    folder: Path | None = DEFAULT_FOLDER,
    *,
    mode: str = "BACKWARD",
    dry_run: bool = False,
    planned: Callable[[Contract, Sequence[push.Step]], None] = lambda _contract, _steps: None,
) -> dict[str, int]:
    """Register what is new and store the ids for the writers; return subject → id (empty on a dry run).

    ``folder`` None: there are no files to agree with (a demo, a test). ``planned`` hears the plan before it is done.
    """
    contract = contract_of(app, app.names.prefix)
    with _subjects(settings) as registry, connect(settings) as conn:
        store = SchemaIdTable(conn)
        files = None if folder is None else read_files(folder)
        steps = push.plan(contract, files, registry, store, mode=mode)
        planned(contract, steps)
        return {} if dry_run else push.execute(steps, registry, store)


def list_subjects(settings: Settings, containing: str = "") -> list[dict[str, object]]:
    """Return the registry's subjects whose name contains a text, with their versions and compatibility."""
    with _subjects(settings) as registry:
        return [
            {"subject": subject, "versions": versions, "compatibility": registry.compatibility(subject) or "not set"}
            for subject in registry.names()
            if containing in subject and (versions := registry.versions(subject))
        ]


def get(settings: Settings, subject: str, version: int | None) -> dict[str, object]:
    """Return one version of a subject, the newest where ``version`` is None. Raises SchemaError for an unknown one."""
    with _subjects(settings) as registry:
        versions = registry.versions(subject)
        wanted = version if version is not None else max(versions, default=0)
        if wanted not in versions:
            known = f"its versions: {', '.join(map(str, versions))}" if versions else "pipeline schema list has all"
            raise SchemaError(f"registry: no {subject}{f' version {version}' if version else ''}", remedy=known)
        schema_id, text = registry.schema(subject, wanted)
    return {"subject": subject, "version": wanted, "id": schema_id, "schema": text}


@contextmanager
def _subjects(settings: Settings) -> Iterator[Subjects]:
    address = registry_address(settings)
    with closing(Subjects(address.url, address.username, address.password)) as subjects:
        yield subjects


def _refuse_unusable(contract: Contract) -> None:
    problems = [problem for entry in contract.entries for problem in lint(entry)]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise SchemaError(f"schemas that no client could use:{listed}", remedy="correct the models")
