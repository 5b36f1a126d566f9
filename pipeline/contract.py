"""Declared messages in, the data contract out: one Avro schema for each subject, and its file in review.

Deterministic: the same models give the same files, byte for byte. A file's text is the schema laid out to be read;
what is registered and fingerprinted is the exact text that writers use.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import fastavro
from fastavro.schema import SchemaParseException

from pipeline.avro import Schema, schema_of
from pipeline.errors import ConfigError, SchemaError
from pipeline.event import Message
from pipeline.subject import SubjectStrategy, subject_of

__all__ = ["Contract", "Difference", "Entry", "compare", "contract_of", "lint", "pretty", "read_files", "write_files"]

SUFFIX = ".avsc"


class Declaration(Protocol):
    """What is asked of an application: its message classes, where each goes, and under which subject."""

    @property
    def messages(self) -> tuple[type[Message], ...]:
        """All message classes."""

    @property
    def subject_strategy(self) -> SubjectStrategy:
        """How subjects are named."""

    def topic_of(self, model: type[Message]) -> str:
        """Topic of a class, prefix included."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One subject. ``file`` is its name in the folder: without the topic prefix, as all environments share it."""

    subject: str
    file: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class Contract:
    """All subjects of an application, by name. ``skipped`` names the JSON messages: they have no schema."""

    entries: tuple[Entry, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not what the models say. ``diff`` is unified, from the file to the model."""

    file: str
    kind: Literal["missing", "changed", "unreadable", "left over"]
    diff: str


def contract_of(app: Declaration, prefix: str = "") -> Contract:
    """Return the contract. ``prefix`` is the topic prefix, which file names leave out.

    Raises ConfigError for a model that Avro cannot hold, and for models that share a subject.
    """
    entries: dict[str, Entry] = {}
    owners: dict[str, list[type[Message]]] = {}
    strategy = app.subject_strategy
    for model in app.messages:
        if model.message_type.format == "json":
            continue
        schema = schema_of(model)
        topic = app.topic_of(model)
        subject = subject_of(topic, schema.name, strategy)
        owners.setdefault(subject, []).append(model)
        file = subject_of(topic.removeprefix(prefix), schema.name, strategy) + SUFFIX
        entries[subject] = Entry(subject, file, schema)
    _check_owners(owners, strategy)
    skipped = tuple(m.message_type.name for m in app.messages if m.message_type.format == "json")
    return Contract(tuple(entries[subject] for subject in sorted(entries)), skipped)


def _check_owners(owners: Mapping[str, Sequence[type[Message]]], strategy: SubjectStrategy) -> None:
    for subject, models in sorted(owners.items()):
        if len(models) == 1:
            continue
        remedy = "give each a name= of its own"
        if strategy == "TopicRecordNameStrategy":
            remedy += ", or another aggregate= or queue="
        elif strategy == "TopicNameStrategy":
            remedy = (
                "TopicNameStrategy has one record type for each topic: give each an aggregate= or queue= of its own, "
                'or format="json"; or let the registry know TopicRecordNameStrategy'
            )
        raise ConfigError(
            f"subject {subject}: {len(models)} models, {' and '.join(_place(model) for model in models)}",
            remedy=remedy,
        )


def lint(entry: Entry) -> list[str]:
    """Return what makes a schema unusable for other clients, as sentences: names, unions, defaults."""
    try:
        fastavro.parse_schema(entry.schema.parsed())
    except (SchemaParseException, ValueError) as error:
        return [f"{entry.subject}: {' '.join(str(error).split())}"]
    schema = entry.schema.parsed()
    return [f"{entry.subject}: {problem}" for problem in (*_bad_names(schema), *_bad_defaults(schema))]


def compare(contract: Contract, files: Mapping[str, str]) -> list[Difference]:
    """Return how files (name → text) differ from the models. Layout does not count, order of fields does."""
    found: list[Difference] = []
    for entry in contract.entries:
        wanted = pretty(entry.schema.text)
        text = files.get(entry.file)
        if text is None:
            found.append(Difference(entry.file, "missing", _diff("", wanted, entry.file)))
            continue
        try:
            same = _items(json.loads(text)) == _items(entry.schema.parsed())
        except ValueError:
            found.append(Difference(entry.file, "unreadable", _diff(text, wanted, entry.file)))
            continue
        if not same:
            found.append(Difference(entry.file, "changed", _diff(pretty(text), wanted, entry.file)))
    known = {entry.file for entry in contract.entries}
    found += [
        Difference(name, "left over", _diff(text, "", name))
        for name, text in sorted(files.items())
        if name not in known
    ]
    return found


def read_files(folder: Path) -> dict[str, str]:
    """Return name → text of the folder's ``.avsc`` files; nothing where there is no folder."""
    try:
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{SUFFIX}"))}
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{folder}: {error}", remedy="schema files are UTF-8 text that you may read") from error


def write_files(contract: Contract, folder: Path, differences: Sequence[Difference]) -> list[str]:
    """Write the files that differ, each whole or not at all, and return their names. Left-over files stay."""
    wanted = {entry.file: pretty(entry.schema.text) for entry in contract.entries}
    names = [difference.file for difference in differences if difference.file in wanted]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            new = folder / f".{name}.new"
            new.write_text(wanted[name], encoding="utf-8")
            os.replace(new, folder / name)  # noqa: PTH105 — atomic on every system, which Path.rename is not
    except OSError as error:
        raise SchemaError(f"{folder}: {error}", remedy="give a folder that you may write to: --dir") from error
    return names


def pretty(text: str) -> str:
    """Lay a schema's JSON out for reading: one line for each field that fits on one."""
    return _lay_out(json.loads(text), "") + "\n"


_WIDTH = 110
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def _lay_out(value: Any, indent: str) -> str:  # a JSON value
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + len(indent) <= _WIDTH and not (isinstance(value, dict) and "fields" in value):
        return flat
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inner = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_lay_out(v, deeper)}" for key, v in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"{deeper}{_lay_out(v, deeper)}" for v in value) + f"\n{indent}]"
    return flat


def _items(value: Any) -> Any:  # a JSON value
    """Return a value in which 1, 1.0 and true differ, as they do in a schema."""
    if isinstance(value, dict):
        return {key: _items(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_items(inner) for inner in value]
    return type(value), value


def _diff(old: str, new: str, name: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), f"{name} (file)", f"{name} (model)", lineterm="")
    return "\n".join(lines)


def _bad_names(schema: Any) -> list[str]:  # a JSON value
    """Return names that Avro does not allow, at any depth; Python allows more of them."""
    if isinstance(schema, list):
        return [problem for inner in schema for problem in _bad_names(inner)]
    if not isinstance(schema, dict):
        return []
    name = schema.get("name", "a")
    bad = [] if _NAME.fullmatch(name) else [f"{name!r} is no name in Avro: letters of English, digits and _"]
    return bad + [problem for key in ("type", "fields", "items", "values") for problem in _bad_names(schema.get(key))]


def _bad_defaults(schema: Any) -> list[str]:  # a JSON value
    """Return fields whose default does not fit the first branch of their union, as Avro 1.8 to 1.11 want it."""
    problems = []
    for field in schema.get("fields", ()):
        kind = field["type"]
        if "default" not in field or not isinstance(kind, list) or not kind:
            continue
        if (kind[0] == "null") != (field["default"] is None):
            problems.append(
                f"field {field['name']!r}: a default of {json.dumps(field['default'])} needs its type first in the "
                f"union, which begins with {json.dumps(kind[0])}; use None as the default, or no optional type"
            )
    return problems


def _place(model: type[Message]) -> str:
    return f"{model.__module__}.{model.__qualname__}"
