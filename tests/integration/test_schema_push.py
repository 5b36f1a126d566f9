from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from confluent_kafka.schema_registry import SchemaRegistryClient
from servers import Database

from pipeline.avro import schema_of
from pipeline.runtime.load import load_app

APP = '''
from pipeline import Event, Job, Money, Pipeline
from pydantic import BaseModel
app = Pipeline({name!r})
class Line(BaseModel):
    sku: str
    {line}
class Placed(Event, aggregate={name!r}, key="order_id"):
    """{doc}"""
    order_id: str
    total: Money
    lines: list[Line] = []
    {extra}
class Mail(Job, queue="email"):
    order_id: str
class Ping(Job, queue="ping", format="json"):
    n: int
'''


@pytest.fixture
def write(tmp_path: Path, prefix: str) -> Callable[..., None]:
    """Write the application ``app.py`` with some of its lines changed."""

    def write(*, line: str = "count: int", extra: str = "note: str | None = None", doc: str = "Words.") -> None:
        (tmp_path / "app.py").write_text(APP.format(name=prefix, line=line, extra=extra, doc=doc))

    write()
    return write


def stored(database: Database) -> dict[tuple[str, bytes], int]:
    with psycopg.connect(database.dsn) as conn:
        rows = conn.execute("SELECT subject, fingerprint, schema_id FROM pipeline.schema_id").fetchall()
    return {(subject, bytes(fingerprint)): schema_id for subject, fingerprint, schema_id in rows}


def subject(prefix: str) -> str:
    return f"outbox.event.{prefix}-Placed"


def test_generate_check_push_and_push_again(
    write: Callable[..., None],
    pipeline: CommandLine,
    prefix: str,
    database: Database,
    registry_client: SchemaRegistryClient,
    tmp_path: Path,
) -> None:
    assert pipeline("schema", "generate", "app:app", "--check").code == 2
    assert not (tmp_path / "schemas").exists()
    made = pipeline("schema", "generate", "app:app")
    assert made.code == 0
    assert "JSON, without schema: Ping" in made.stderr
    assert sorted(p.name for p in (tmp_path / "schemas").iterdir()) == [
        f"outbox.event.{prefix}-Placed.avsc",
        f"{prefix}.jobs.email-Mail.avsc",
    ]
    assert pipeline("schema", "check", "app:app").code == 0
    assert pipeline("schema", "check", "app:app", "--registry").code == 2  # not pushed yet

    dry = pipeline("schema", "push", "app:app", "--dry-run")
    assert (dry.code, stored(database)) == (0, {})
    assert subject(prefix) not in registry_client.get_subjects()

    assert pipeline("schema", "push", "app:app").code == 0
    found = stored(database)
    for (name, _), schema_id in found.items():
        assert registry_client.get_compatibility(name) == "BACKWARD"
        assert registry_client.get_version(name, 1).schema_id == schema_id
    assert {name for name, _ in found} == {subject(prefix), f"{prefix}.jobs.email-Mail"}

    again = pipeline("schema", "push", "app:app", "-o", "json")
    assert [step["action"] for step in json.loads(again.stdout)] == ["none", "none"]
    assert "nothing to do" in again.stderr
    assert stored(database) == found
    assert pipeline("schema", "check", "app:app", "--registry").code == 0


def test_ids_are_found_by_whoever_writes(
    write: Callable[..., None],
    pipeline: CommandLine,
    prefix: str,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline("schema", "generate", "app:app")
    pipeline("schema", "push", "app:app")
    (tmp_path / "app.py").rename(tmp_path / f"app_{prefix}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    app = load_app(f"app_{prefix}:app")
    (model,) = [model for model in app.messages if model.__name__ == "Placed"]
    with psycopg.connect(database.dsn) as conn:
        app.publish(conn, model(order_id="o1", total="1.50"))  # type: ignore[arg-type, call-arg]  # of the file
        payload = conn.execute("SELECT payload FROM pipeline.outbox").fetchone()
    assert payload is not None
    schema_id = stored(database)[subject(prefix), schema_of(model).fingerprint]
    assert bytes(payload[0])[:5] == b"\0" + schema_id.to_bytes(4, "big")


def test_an_incompatible_schema_is_refused_before_anything_is_written(
    write: Callable[..., None],
    pipeline: CommandLine,
    prefix: str,
    database: Database,
    registry_client: SchemaRegistryClient,
) -> None:
    pipeline("schema", "generate", "app:app")
    pipeline("schema", "push", "app:app")
    before = stored(database)
    write(line="count: str", extra="must: int")
    stale = pipeline("schema", "push", "app:app")
    assert (stale.code, stale.stdout) == (1, "")
    assert "the files are not what the models say" in stale.stderr
    diff = pipeline("schema", "check", "app:app")
    assert diff.code == 2
    assert '+    {"name": "must", "type": "long"}' in diff.stdout

    pipeline("schema", "generate", "app:app")
    refused = pipeline("schema", "push", "app:app")
    assert refused.code == 1
    for words in ("BACKWARD against version 1", "field lines[].count: its type was long and is string", "field must"):
        assert words in refused.stderr
    assert pipeline("schema", "check", "app:app", "--registry").code == 2
    assert stored(database) == before
    assert registry_client.get_versions(subject(prefix)) == [1]


def test_a_compatible_change_becomes_a_version_with_an_id_of_its_own(
    write: Callable[..., None],
    pipeline: CommandLine,
    prefix: str,
    database: Database,
    registry_client: SchemaRegistryClient,
) -> None:
    pipeline("schema", "generate", "app:app")
    pipeline("schema", "push", "app:app")
    write(extra="note: str | None = None\n    more: int = 7")
    pipeline("schema", "generate", "app:app")
    assert pipeline("schema", "push", "app:app").code == 0
    assert registry_client.get_versions(subject(prefix)) == [1, 2]
    ids = {schema_id for (name, _), schema_id in stored(database).items() if name == subject(prefix)}
    assert len(ids) == 2  # old writers go on with theirs


def test_other_words_alone_get_an_id_for_their_exact_text(
    write: Callable[..., None], pipeline: CommandLine, prefix: str, database: Database
) -> None:
    pipeline("schema", "generate", "app:app")
    pipeline("schema", "push", "app:app")
    write(doc="Other words.")
    pipeline("schema", "generate", "app:app")
    assert pipeline("schema", "push", "app:app").code == 0
    rows = [one for (name, _), one in stored(database).items() if name == subject(prefix)]
    assert len(rows) == 2


def test_transitive_modes_look_at_every_version(
    write: Callable[..., None], pipeline: CommandLine, prefix: str, registry_client: SchemaRegistryClient
) -> None:
    for extra in ("gone: str = ''", "note: str | None = None"):
        write(extra=extra)
        pipeline("schema", "generate", "app:app")
        assert pipeline("schema", "push", "app:app", "--compatibility", "BACKWARD_TRANSITIVE").code == 0
    write(extra="gone: int = 0")  # version 2 has no such field, version 1 has it as text
    pipeline("schema", "generate", "app:app")
    refused = pipeline("schema", "push", "app:app")
    assert refused.code == 1
    assert "BACKWARD_TRANSITIVE against version 1" in refused.stderr
    assert "against version 2" not in refused.stderr
    registry_client.set_compatibility(subject(prefix), "BACKWARD")
    assert pipeline("schema", "push", "app:app").code == 0


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PIPELINE_REGISTRY__PASSWORD": "wrong"}, ["HTTP 401", "PIPELINE_REGISTRY__PASSWORD"]),
        ({"PIPELINE_REGISTRY__URL": "http://127.0.0.1:9/apis/ccompat/v7"}, ["refused", "PIPELINE_REGISTRY__URL"]),
        ({"PIPELINE_REGISTRY__URL": "nowhere"}, ["PIPELINE_REGISTRY__URL"]),
    ],
)
def test_a_registry_that_cannot_be_asked_is_said_and_nothing_is_stored(
    write: Callable[..., None], pipeline: CommandLine, database: Database, environment: dict[str, str], words: list[str]
) -> None:
    pipeline("schema", "generate", "app:app")
    failed = pipeline("schema", "push", "app:app", **environment)
    assert (failed.code, failed.stdout) == (1, "")
    assert all(word in failed.stderr for word in words)
    assert "Traceback" not in failed.stderr
    assert stored(database) == {}


def test_a_database_without_the_table_is_said_before_anything_is_registered(
    write: Callable[..., None],
    pipeline: CommandLine,
    prefix: str,
    empty_database: Database,
    registry_client: SchemaRegistryClient,
) -> None:
    pipeline("schema", "generate", "app:app")
    failed = pipeline("schema", "push", "app:app", PIPELINE_POSTGRES__DSN=empty_database.dsn)
    assert failed.code == 1
    assert "pipeline db migrate" in failed.stderr
    assert subject(prefix) not in registry_client.get_subjects()


def test_get_and_list_show_what_is_registered(write: Callable[..., None], pipeline: CommandLine, prefix: str) -> None:
    pipeline("schema", "generate", "app:app")
    pipeline("schema", "push", "app:app")
    listed = json.loads(pipeline("schema", "list", "--contains", prefix, "-o", "json").stdout)
    assert {"subject": subject(prefix), "versions": [1], "compatibility": "BACKWARD"} in listed
    assert json.loads(pipeline("schema", "get", subject(prefix)).stdout)["name"] == "Placed"
    unknown = pipeline("schema", "get", subject(prefix), "--version", "9")
    assert unknown.code == 1
    assert "its versions: 1" in unknown.stderr
