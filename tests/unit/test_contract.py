from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline import Event, Job, Pipeline
from pipeline.avro import Schema
from pipeline.contract import Entry, compare, contract_of, lint, pretty, read_files, write_files
from pipeline.errors import ConfigError
from pipeline.subject import SubjectStrategy


class Line(BaseModel):
    sku: str
    count: int


class Placed(Event, aggregate="order", key="order_id"):
    """An order was placed."""

    order_id: str
    lines: tuple[Line, ...] = ()


class Mail(Job, queue="email"):
    order_id: str


class Ping(Job, queue="ping", format="json"):
    n: int


def shop(prefix: str = "") -> Pipeline:
    app = Pipeline("shop", topic_prefix=prefix)
    app.register(Mail, Placed, Ping)
    return app


def test_files_are_shared_by_all_environments_and_subjects_are_not() -> None:
    plain, staging = contract_of(shop()), contract_of(shop("staging."), "staging.")
    assert [e.file for e in plain.entries] == [e.file for e in staging.entries]
    assert [e.file for e in plain.entries] == ["outbox.event.order-Placed.avsc", "shop.jobs.email-Mail.avsc"]
    assert [e.subject for e in staging.entries] == ["staging.outbox.event.order-Placed", "staging.shop.jobs.email-Mail"]


def test_json_messages_are_skipped_and_said_so() -> None:
    assert contract_of(shop()).skipped == ("Ping",)


def test_two_models_with_one_subject_are_refused() -> None:
    class Other(Event, aggregate="order", key="id", name="Placed"):
        id: str

    app = shop()
    app.register(Other)
    with pytest.raises(ConfigError, match=r"subject outbox\.event\.order-Placed: 2 models"):
        contract_of(app)


@pytest.mark.parametrize(
    ("strategy", "subjects"),
    [
        ("TopicNameStrategy", ["staging.outbox.event.order-value", "staging.shop.jobs.email-value"]),
        ("RecordNameStrategy", ["Mail", "Placed"]),
    ],
)
def test_subjects_and_files_are_those_of_the_strategy(strategy: SubjectStrategy, subjects: list[str]) -> None:
    app = Pipeline("shop", topic_prefix="staging.", subject_strategy=strategy)
    app.register(Mail, Placed, Ping)
    contract = contract_of(app, "staging.")
    assert [entry.subject for entry in contract.entries] == subjects
    assert [entry.file for entry in contract.entries] == [f"{one.removeprefix('staging.')}.avsc" for one in subjects]


def test_one_name_is_one_subject_where_topics_do_not_tell_them_apart() -> None:
    class Other(Event, aggregate="parcel", key="id", name="Placed"):
        id: str

    app = Pipeline("shop", topic_prefix="", subject_strategy="RecordNameStrategy")
    app.register(Placed, Other)
    with pytest.raises(ConfigError, match=r"subject Placed: 2 models, .*Placed and .*Other[\s\S]*name= of its own"):
        contract_of(app)


def test_a_strategy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"subject_strategy='TopicName'[\s\S]*TopicNameStrategy"):
        Pipeline("shop", topic_prefix="", subject_strategy="TopicName")  # type: ignore[arg-type]


def test_writing_twice_gives_the_same_bytes_and_nothing_differs_then(tmp_path: Path) -> None:
    contract = contract_of(shop())
    assert [d.kind for d in compare(contract, read_files(tmp_path / "schemas"))] == ["missing", "missing"]
    write_files(contract, tmp_path / "schemas", compare(contract, {}))
    first = read_files(tmp_path / "schemas")
    write_files(contract, tmp_path / "schemas", compare(contract, {}))
    assert read_files(tmp_path / "schemas") == first
    assert compare(contract, first) == []
    assert sorted(p.name for p in (tmp_path / "schemas").iterdir()) == sorted(first)  # no temporary file is left


def test_layout_of_a_file_does_not_count_and_order_of_fields_does() -> None:
    contract = contract_of(shop())
    files = {e.file: e.schema.text for e in contract.entries}
    assert compare(contract, files) == []
    name = contract.entries[0].file
    turned = json.loads(files[name])
    turned["fields"].reverse()
    (difference,) = compare(contract, {**files, name: json.dumps(turned)})
    assert (difference.file, difference.kind) == (name, "changed")


def test_a_changed_default_of_another_json_type_is_a_difference() -> None:
    contract = contract_of(shop())
    files = {e.file: e.schema.text for e in contract.entries}
    name = contract.entries[1].file
    changed = json.loads(files[name])
    changed["fields"][0]["default"] = 0
    assert compare(contract, {**files, name: json.dumps(changed)})[0].kind == "changed"


def test_the_diff_shows_the_field() -> None:
    contract = contract_of(shop())
    files = {e.file: pretty(e.schema.text.replace('"count"', '"number"')) for e in contract.entries}
    (difference,) = compare(contract, files)
    changed = [line for line in difference.diff.splitlines() if line[0] in "+-" and line[:3] not in {"+++", "---"}]
    assert len(changed) == 2
    assert '"number"' in changed[0]
    assert '"count"' in changed[1]


def test_unreadable_and_left_over_files_are_named() -> None:
    contract = contract_of(shop())
    files = {e.file: e.schema.text for e in contract.entries}
    broken = {**files, contract.entries[0].file: "{", "gone-Event.avsc": "{}"}
    assert [d.kind for d in compare(contract, broken)] == ["unreadable", "left over"]


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ({"name": "note", "type": ["null", "string"], "default": "x"}, "note"),
        ({"name": "note", "type": ["string", "null"], "default": None}, "note"),
        ({"name": "not a name", "type": "string"}, "not a name"),
        ({"name": "note", "type": "strung"}, "strung"),
    ],
)
def test_lint_names_what_other_clients_could_not_use(field: dict[str, object], word: str) -> None:
    text = json.dumps({"type": "record", "name": "Odd", "fields": [field]})
    (problem, *_) = lint(Entry("s-Odd", "s-Odd.avsc", Schema("Odd", text, b"", dict)))
    assert problem.startswith("s-Odd: ")
    assert word in problem


def test_lint_has_nothing_against_sound_schemas() -> None:
    assert [problem for entry in contract_of(shop()).entries for problem in lint(entry)] == []
