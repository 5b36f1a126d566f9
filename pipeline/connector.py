"""Connectors as they should be and as they are in, what differs out; secrets never print.

A connector is a name and a flat configuration, as Kafka Connect has it. References (``${env:NAME}``) stay as they
are written: who runs the connector resolves them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "MASK",
    "Check",
    "Connector",
    "Difference",
    "State",
    "TaskState",
    "differences",
    "is_reference",
    "is_secret",
    "masked",
    "references",
]

MASK = "•••"
_SECRET = re.compile(
    r"(^|[._-])(password|passwd|passphrase|secret|token|jaas\.config|user\.info|(api|access|private|keystore)\.?key)s?"
    r"($|[._-])",
    re.I,
)
_NOT_SECRET = re.compile(r"(^|\.)(token\.endpoint\.url|.*\.file\.path|.*\.location)$", re.I)
_REFERENCE = re.compile(r"\$\{[^{}:]+:[^{}]+\}")
_ASSIGNED = re.compile(r"""(password|passwd|passphrase|secret|token)\s*=\s*["']?[^\s"';]""", re.I)  # as in JAAS


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector as it should be. ``source`` is the file that it was read from, for messages."""

    name: str
    config: Mapping[str, str]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """What Connect says of a configuration: key → what is wrong with it, and the keys that hold secrets by their type.

    ``unknown`` are keys that no plugin reads, each with the one that may be meant ("": none is like it).
    """

    errors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """One key: what runs (None: not set) and what should (None: to be removed). Values are masked where secret."""

    key: str
    now: str | None
    wanted: str | None

    @property
    def kind(self) -> Literal["add", "change", "remove"]:
        """What would be done about it."""
        return "add" if self.now is None else "remove" if self.wanted is None else "change"


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task of a connector: RUNNING, FAILED, PAUSED …, where, and why it failed."""

    number: int
    state: str
    worker: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What a connector does. ``trace`` is of the connector itself, its tasks have their own."""

    name: str
    state: str
    worker: str
    kind: str
    tasks: tuple[TaskState, ...]
    trace: str = ""

    @property
    def healthy(self) -> bool:
        """Tell whether it runs with all its tasks, at least one."""
        return self.state == "RUNNING" and bool(self.tasks) and all(task.state == "RUNNING" for task in self.tasks)

    @property
    def rests(self) -> bool:
        """Tell whether somebody has stopped or paused it."""
        return self.state in {"STOPPED", "PAUSED"} and not self.failed

    @property
    def failed(self) -> bool:
        """Tell whether it, or any task, has failed."""
        return self.state == "FAILED" or any(task.state == "FAILED" for task in self.tasks)

    @property
    def summary(self) -> str:
        """``RUNNING, tasks: 2 RUNNING, 1 FAILED``."""
        states = [task.state for task in self.tasks]
        counted = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "none"
        return f"{self.state}, tasks: {counted}"


def differences(
    now: Mapping[str, str] | None, wanted: Mapping[str, str], secrets: Iterable[str] = ()
) -> list[Difference]:
    """Compare what runs (None: nothing does) with what should, key by key. ``name`` is the connector's own, no key.

    ``secrets`` are keys that hold secrets, whatever their names say.
    """
    before = {} if now is None else now
    hidden = frozenset(secrets)
    keys = sorted((before.keys() | wanted.keys()) - {"name"})
    return [
        Difference(key, masked(key, before.get(key), hidden), masked(key, wanted.get(key), hidden))
        for key in keys
        if before.get(key) != wanted.get(key)
    ]


def is_secret(key: str) -> bool:
    """Tell whether a key's value is a secret, by the key's name."""
    return _SECRET.search(key) is not None and _NOT_SECRET.search(key) is None


def is_reference(value: str) -> bool:
    """Tell whether a value holds a secret only by reference: ``${env:NAME}``, ``${file:path:key}``.

    One with a reference for the user and the password beside it, as JAAS has both, is none.
    """
    without, references = _REFERENCE.subn("", value)
    return references > 0 and _ASSIGNED.search(without) is None


def references(value: str) -> list[tuple[str, str, str]]:
    """Return the references in a value: provider, path (empty: it has none), key."""
    found = [one[2:-1].split(":") for one in _REFERENCE.findall(value)]
    return [(parts[0], ":".join(parts[1:-1]), parts[-1]) for parts in found]


def masked(key: str, value: str | None, secrets: Iterable[str] = ()) -> str | None:
    """Return a value as people may see it. ``secrets`` are further keys that hold secrets."""
    if value is None or is_reference(value) or not (is_secret(key) or key in set(secrets)):
        return value
    return MASK
