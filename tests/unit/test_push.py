from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel

from pipeline import Event, Pipeline
from pipeline.compatibility import explain
from pipeline.contract import Contract, contract_of, pretty
from pipeline.errors import ConfigError, SchemaError
from pipeline.push import PushRefused, execute, plan


@dataclass
class Registry:
    """Keeps what it is told, by meaning as Apicurio does; compares as its mode says."""

    versions_of: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    modes: dict[str | None, str] = field(default_factory=lambda: {None: "NONE"})
    next_id: int = 1
    writes: list[str] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    wrong_id: int | None = None
    fails: str = ""

    def versions(self, subject: str) -> list[int]:
        return list(range(1, len(self.versions_of.get(subject, [])) + 1))

    def schema(self, subject: str, version: int) -> tuple[int, str]:
        return self.versions_of[subject][version - 1]

    def compatibility(self, subject: str | None = None) -> str | None:
        return self.modes.get(subject)

    def accepts(self, subject: str, text: str, version: int) -> bool:
        self.tested.append(version)
        old = json.loads(self.versions_of[subject][version - 1][1])
        return not explain(self.modes.get(subject, "NONE"), json.loads(text), old)

    def set_compatibility(self, subject: str, mode: str) -> None:
        self.writes.append(f"mode {subject}")
        self.modes[subject] = mode

    def register(self, subject: str, text: str) -> int:
        if subject == self.fails:
            raise SchemaError("registry: down", retryable=True)
        self.writes.append(f"register {subject}")
        self.versions_of.setdefault(subject, []).append((self.next_id, text))
        self.next_id += 1
        return self.wrong_id or self.next_id - 1

    def text(self, schema_id: int) -> str:
        return next(text for found in self.versions_of.values() for one, text in found if one == schema_id)


@dataclass
class Store:
    ids: dict[tuple[str, bytes], int] = field(default_factory=dict)
    puts: int = 0

    def find(self, keys: Iterable[tuple[str, bytes]]) -> dict[tuple[str, bytes], int]:
        return {key: self.ids[key] for key in keys if key in self.ids}

    def put(self, ids: Mapping[tuple[str, bytes], int]) -> None:
        self.puts += 1
        self.ids.update(ids)


def contract(*models: type[Event]) -> Contract:
    app = Pipeline("shop", topic_prefix="")
    app.register(*models)
    return contract_of(app)


def files(of: Contract) -> dict[str, str]:
    return {entry.file: pretty(entry.schema.text) for entry in of.entries}


class First(Event, aggregate="a", key="id"):
    id: str


class Second(Event, aggregate="b", key="id"):
    id: str


class Wider(Event, aggregate="a", key="id", name="First"):
    id: str
    more: str | None = None


class Documented(Event, aggregate="a", key="id", name="First"):
    """The same, with words."""

    id: str


class Breaking(Event, aggregate="a", key="id", name="First"):
    id: str
    must: int


def push(of: Contract, registry: Registry, store: Store, **options: str) -> dict[str, int]:
    return execute(plan(of, files(of), registry, store, **options), registry, store)


def test_a_new_subject_gets_its_compatibility_before_its_first_version() -> None:
    registry, store = Registry(), Store()
    assert push(contract(First), registry, store) == {"outbox.event.a-First": 1}
    assert registry.writes == ["mode outbox.event.a-First", "register outbox.event.a-First"]
    assert registry.modes["outbox.event.a-First"] == "BACKWARD"


def test_ids_are_stored_for_the_exact_text() -> None:
    registry, store = Registry(), Store()
    of = contract(First)
    push(of, registry, store)
    assert store.ids == {(entry.subject, entry.schema.fingerprint): 1 for entry in of.entries}


def test_pushing_again_writes_nothing() -> None:
    registry, store = Registry(), Store()
    push(contract(First, Second), registry, store)
    registry.writes.clear()
    steps = plan(contract(First, Second), None, registry, store)
    assert {step.action for step in steps} == {"none"}
    execute(steps, registry, store)
    assert registry.writes == []
    assert store.puts == 1


def test_planning_writes_nothing() -> None:
    registry, store = Registry(), Store()
    plan(contract(First), None, registry, store)
    assert (registry.writes, store.puts) == ([], 0)


def test_a_schema_that_differs_in_words_alone_keeps_the_id_under_its_own_text() -> None:
    registry, store = Registry(), Store()
    push(contract(First), registry, store)
    registry.writes.clear()
    of = contract(Documented)
    (step,) = plan(of, None, registry, store)
    assert (step.action, step.schema_id) == ("store id", 1)
    push(of, registry, store)
    assert registry.writes == []
    assert store.ids[of.entries[0].subject, of.entries[0].schema.fingerprint] == 1


def test_a_name_with_dots_is_the_one_that_a_registry_writes_as_name_and_namespace() -> None:
    class Line(BaseModel):
        sku: str

    class Dotted(Event, aggregate="c", key="id", name="shop.sales.Dotted"):
        id: str
        first: Line
        others: tuple[Line, ...] = ()
        last: Line | None = None

    def parted(text: str, space: str) -> str:
        schema = json.loads(text)
        return json.dumps({**schema, "name": schema["name"].rpartition(".")[2], "namespace": space})

    of, key = contract(Dotted), "outbox.event.c-shop.sales.Dotted"
    for space, action in (("shop.sales", "store id"), ("shop.other", "new version")):
        registry = Registry(versions_of={key: [(7, parted(of.entries[0].schema.text, space))]})
        (step,) = plan(of, None, registry, Store())
        assert step.action == action
    elsewhere = of.entries[0].schema.text.replace('"Line"', '"other.Line"')
    (step,) = plan(of, None, Registry(versions_of={key: [(7, parted(elsewhere, "shop.sales"))]}), Store())
    assert step.action == "new version"
    named = of.entries[0].schema.text.replace('"Line"', '"shop.sales.Line"')
    (step,) = plan(of, None, Registry(versions_of={key: [(7, named)]}), Store())
    assert step.action == "store id"


def test_a_breaking_schema_is_refused_with_its_field_and_nothing_is_written_for_any() -> None:
    registry, store = Registry(), Store()
    push(contract(First), registry, store)
    registry.writes.clear()
    with pytest.raises(PushRefused, match=r"(?s)BACKWARD against version 1.*field must.*nothing was written"):
        push(contract(Breaking, Second), registry, store)
    assert (registry.writes, store.puts) == ([], 1)


@pytest.mark.parametrize(("mode", "tested"), [("BACKWARD", [2]), ("BACKWARD_TRANSITIVE", [1, 2])])
def test_all_versions_that_the_mode_asks_for_are_tested(mode: str, tested: list[int]) -> None:
    registry, store = Registry(), Store()
    subject = "outbox.event.a-First"
    registry.versions_of[subject] = [
        (1, contract(First).entries[0].schema.text),
        (2, contract(Wider).entries[0].schema.text),
    ]
    registry.modes[subject] = mode
    with pytest.raises(PushRefused):
        push(contract(Breaking), registry, store)
    assert registry.tested == tested


def test_the_mode_of_a_subject_that_exists_is_left_as_it_is() -> None:
    registry, store = Registry(), Store()
    push(contract(First), registry, store, mode="FULL")
    registry.writes.clear()
    push(contract(Wider), registry, store, mode="BACKWARD")
    assert registry.writes == ["register outbox.event.a-First"]
    assert registry.modes["outbox.event.a-First"] == "FULL"


def test_files_that_do_not_agree_stop_a_push() -> None:
    of = contract(First)
    with pytest.raises(PushRefused, match=r"(?s)missing: outbox\.event\.a-First\.avsc.*schema generate"):
        plan(of, {}, Registry(), Store())


def test_left_over_files_do_not_stop_a_push() -> None:
    of = contract(First)
    assert plan(of, {**files(of), "old.avsc": "{}"}, Registry(), Store())


def test_an_id_of_another_schema_is_never_stored() -> None:
    registry, store = Registry(), Store()
    push(contract(Second), registry, store)
    registry.wrong_id = 1
    wider = contract(Wider)
    with pytest.raises(SchemaError, match="another schema"):
        push(wider, registry, store)
    assert all(subject != wider.entries[0].subject for subject, _ in store.ids)


def test_a_registry_that_goes_down_halfway_leaves_no_id_and_the_next_push_goes_on() -> None:
    registry, store = Registry(fails="outbox.event.b-Second"), Store()
    with pytest.raises(SchemaError, match="down"):
        push(contract(First, Second), registry, store)
    assert store.ids == {}
    registry.fails = ""
    assert len(push(contract(First, Second), registry, store)) == 2
    assert registry.writes.count("register outbox.event.a-First") == 1
    assert len(store.ids) == 2


def test_an_unknown_mode_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"(?s)SIDEWAYS.*BACKWARD"):
        plan(contract(First), None, Registry(), Store(), mode="SIDEWAYS")
