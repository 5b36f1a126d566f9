"""A contract in, registered schemas and their ids for the writers out.

Everything that can refuse is asked before anything is written: files, lint, the registry's compatibility, the
database. The ids are stored last, in one transaction. A crash between leaves registered schemas that nobody uses yet;
the same push again finds them and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.compatibility import MODES, explain, is_transitive
from pipeline.contract import Contract, Entry, compare, lint
from pipeline.errors import ConfigError, SchemaError

__all__ = ["PushRefused", "Reader", "Step", "Store", "Writer", "execute", "plan"]

Key = tuple[str, bytes]
"""Subject and fingerprint of the exact text."""


class PushRefused(SchemaError):
    """What was to be pushed must not be: not usable, not as the files say, or not compatible."""


class Reader(Protocol):
    """What the registry knows."""

    def versions(self, subject: str) -> list[int]:
        """Version numbers, lowest first; none where the subject is not there."""

    def schema(self, subject: str, version: int) -> tuple[int, str]:
        """Id and text of a version."""

    def compatibility(self, subject: str | None = None) -> str | None:
        """A subject's own mode, or that of all subjects; None where it is not set."""

    def accepts(self, subject: str, text: str, version: int) -> bool:
        """Whether the mode allows a text beside a version."""


class Writer(Protocol):
    """What changes the registry."""

    def set_compatibility(self, subject: str, mode: str) -> None:
        """Set a subject's own mode."""

    def register(self, subject: str, text: str) -> int:
        """Register a text and return its id."""

    def text(self, schema_id: int) -> str:
        """Text of an id."""


class Store(Protocol):
    """Where writers find their ids."""

    def find(self, keys: Iterable[Key]) -> dict[Key, int]:
        """Stored ids."""

    def put(self, ids: Mapping[Key, int]) -> None:
        """Store ids, all or none."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a push does for one subject.

    ``new subject`` and ``new version`` register; ``store id`` only stores the id for the writers; ``none``: all is
    there. ``mode`` is the compatibility that holds, ``sets_mode`` that the push sets it.
    """

    entry: Entry
    action: Literal["new subject", "new version", "store id", "none"]
    mode: str
    sets_mode: bool
    schema_id: int | None
    version: int | None

    @property
    def key(self) -> Key:
        """Under what the id is stored."""
        return self.entry.subject, self.entry.schema.fingerprint


def plan(
    contract: Contract, files: Mapping[str, str] | None, registry: Reader, store: Store, *, mode: str = "BACKWARD"
) -> list[Step]:
    """Ask everybody, write nothing, and return what is to be done.

    ``files`` are the contract's files, None where there is no folder to agree with; ``mode`` is for subjects that
    have none and are new. Raises ConfigError for an unknown mode, SchemaError for what must not be pushed, with all
    reasons at once.
    """
    if mode not in MODES:
        raise ConfigError(f"compatibility {mode!r} is unknown", remedy=f"one of: {', '.join(MODES)}")
    _refuse("schemas that no client could use", [text for entry in contract.entries for text in lint(entry)])
    if files is not None:
        differing = [f"{d.kind}: {d.file}" for d in compare(contract, files) if d.kind != "left over"]
        _refuse("the files are not what the models say", differing, "pipeline schema generate, and review the change")
    stored = store.find([(entry.subject, entry.schema.fingerprint) for entry in contract.entries])
    steps, refused = [], []
    for entry in contract.entries:
        step, reasons = _step(entry, registry, stored, mode)
        steps.append(step)
        refused += reasons
    _refuse("the registry's compatibility forbids it", refused, "follow the rule, or publish a new type beside the old")
    return steps


def execute(steps: Sequence[Step], registry: Writer, store: Store) -> dict[str, int]:
    """Do what was planned and return subject → id. Raises SchemaError; ids are stored for all subjects or none."""
    ids: dict[Key, int] = {}
    for step in steps:
        if step.sets_mode:
            registry.set_compatibility(step.entry.subject, step.mode)
        known = step.schema_id
        ids[step.key] = known if known is not None else _registered(step.entry, registry)
    if any(step.action != "none" for step in steps):
        store.put(ids)
    return {subject: schema_id for (subject, _), schema_id in ids.items()}


def _step(entry: Entry, registry: Reader, stored: Mapping[Key, int], mode: str) -> tuple[Step, list[str]]:
    subject = entry.subject
    versions = registry.versions(subject)
    own = registry.compatibility(subject)
    holds = own or (registry.compatibility() if versions else None) or ("NONE" if versions else mode)
    sets_mode = own is None and not versions
    for number in reversed(versions):
        schema_id, text = registry.schema(subject, number)
        if _meaning(text) == _meaning(entry.schema.text):
            done = stored.get((subject, entry.schema.fingerprint)) == schema_id
            return Step(entry, "none" if done else "store id", holds, sets_mode, schema_id, number), []
    reasons = []
    for number in versions if is_transitive(holds) else versions[-1:]:
        if registry.accepts(subject, entry.schema.text, number):
            continue
        _, text = registry.schema(subject, number)
        why = explain(holds, entry.schema.parsed(), json.loads(text)) or ["the registry gives no reason"]
        reasons += [f"{subject}: {holds} against version {number}: {reason}" for reason in why]
    action: Literal["new version", "new subject"] = "new version" if versions else "new subject"
    return Step(entry, action, holds, sets_mode, None, None), reasons


def _registered(entry: Entry, registry: Writer) -> int:
    """Register, and make sure that the id's text reads what our text writes."""
    schema_id = registry.register(entry.subject, entry.schema.text)
    if _meaning(registry.text(schema_id)) != _meaning(entry.schema.text):
        raise SchemaError(
            f"{entry.subject}: the registry answered with id {schema_id}, which is another schema",
            remedy="switch off normalisation of schemas for this subject; no id was stored",
        )
    return schema_id


def _meaning(text: str) -> Any:  # a JSON value
    """Return a schema without layout and ``doc``, its names in full: registries do not tell schemas apart by these."""
    try:
        return _plain(json.loads(text), "")
    except ValueError:
        return text


def _plain(schema: Any, space: str) -> Any:  # JSON values; ``space`` is the namespace around it
    if isinstance(schema, str):
        return schema if schema in _PRIMITIVE or "." in schema or not space else f"{space}.{schema}"
    if isinstance(schema, list):
        return [_plain(branch, space) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key not in {"doc", "namespace"}}
    if "name" in schema:
        own = str(schema["name"])
        space = own.rpartition(".")[0] if "." in own else schema.get("namespace", space)
        found["name"] = own if "." in own or not space else f"{space}.{own}"
    elif schema.get("type") not in ("array", "map"):
        found["type"] = _plain(schema.get("type"), space)
    for key in {"items", "values"} & schema.keys():
        found[key] = _plain(schema[key], space)
    if "fields" in schema:
        found["fields"] = [
            {**{key: value for key, value in field.items() if key != "doc"}, "type": _plain(field.get("type"), space)}
            for field in schema["fields"]
        ]
    return found


_PRIMITIVE = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


def _refuse(why: str, reasons: Sequence[str], remedy: str = "correct the models") -> None:
    if reasons:
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        raise PushRefused(f"{why}:{listed}", remedy=f"{remedy}; nothing was written")
