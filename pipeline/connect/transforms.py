"""``transforms`` and ``predicates`` of a connector file in, the chain of what is done with a change out.

A change record is told from others by its topic, that of its table, and by the headers of its connector: so what a
predicate says of a table's rows is known before the first of them. Each table has one router, the first that takes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.connect.converters import Refuse
from pipeline.connect.java import java_regex
from pipeline.connect.messages import DECODE
from pipeline.connect.options import PREDICATES, ROUTER
from pipeline.errors import ConfigError

__all__ = ["Transform", "chain", "names"]

_ROUTERS = ROUTER["type"][0]
_NAMING, _NAMED = "topic.naming.strategy", "io.debezium.schema.SchemaTopicNamingStrategy"

Takes = Callable[[str], bool]
Names = Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Transform:
    """``prefix`` is how its keys begin; ``decodes``: logical messages, else it routes; ``takes`` tells of a topic."""

    prefix: str
    decodes: bool
    takes: Takes


def names(config: Mapping[str, str], key: str) -> list[str]:
    """Return the items of a list."""
    return [name.strip() for name in config.get(key, "").split(",") if name.strip()]


def chain(path: Path, config: Mapping[str, str], headers: Names, refuse: Refuse) -> list[Transform]:
    """Return the transforms in their order; ``headers`` names those of a topic's change records.

    Raises ConfigError, also by ``refuse``, for what the native relay does not know, and where there is no router.
    """
    predicates = {name: _predicate(path, config, name, headers, refuse) for name in names(config, "predicates")}
    made = []
    for name in names(config, "transforms"):
        prefix = f"transforms.{name}."
        kind = config.get(f"{prefix}type")
        if kind is None:
            raise ConfigError(f"{path}: {prefix}type: is missing", remedy="name the transform")
        if kind not in {*_ROUTERS, DECODE}:
            refuse(f"{prefix}type", kind, (*_ROUTERS, DECODE))
        made.append(Transform(prefix, kind == DECODE, _condition(path, config, prefix, predicates)))
    kinds = [one.decodes for one in made]
    if False not in kinds or kinds.count(True) > 1 or kinds[-1]:
        accepted = "an Event Router, or several, behind one DecodeLogicalDecodingMessageContent at most"
        refuse("transforms", config["transforms"], (accepted,))
    return made


def _condition(path: Path, config: Mapping[str, str], prefix: str, predicates: Mapping[str, Takes]) -> Takes:
    """Return what tells of which topics a transform takes the records."""
    name = config.get(f"{prefix}predicate", "").strip()
    negated = config.get(f"{prefix}negate", "false").strip().lower() == "true"
    if not name:
        if negated:
            raise ConfigError(f"{path}: {prefix}negate: there is no predicate", remedy=f"add {prefix}predicate")
        return lambda _topic: True
    if name not in predicates:
        raise ConfigError(
            f"{path}: {prefix}predicate: {name!r} is not in predicates", remedy="add it there, with its type"
        )
    holds = predicates[name]
    return (lambda topic: not holds(topic)) if negated else holds


def _predicate(path: Path, config: Mapping[str, str], name: str, headers: Names, refuse: Refuse) -> Takes:
    """Return what tells of a topic whether a predicate holds for its change records."""
    prefix = f"predicates.{name}."
    kind = config.get(f"{prefix}type")
    if kind is None:
        raise ConfigError(f"{path}: {prefix}type: is missing", remedy=f"add {prefix}type")
    if kind not in PREDICATES:
        refuse(f"{prefix}type", kind, tuple(PREDICATES))
    needed = PREDICATES[kind]
    for key in config:
        if key.startswith(prefix) and key.removeprefix(prefix) not in {"type", "plugin.version", needed}:
            raise ConfigError(
                f"{path}: {key}: unknown key", remedy=f"remove it{needed and f', or use {prefix}{needed}'}"
            )
    value = config.get(f"{prefix}{needed}", "")
    if needed and not value:
        raise ConfigError(f"{path}: {prefix}{needed}: is missing", remedy=f"add {prefix}{needed}")
    if needed == "pattern":
        if (strategy := config.get(_NAMING, _NAMED)) != _NAMED:
            refuse(_NAMING, strategy, (_NAMED,))
        try:
            pattern = java_regex(value)
        except re.error as error:
            raise ConfigError(f"{path}: {prefix}pattern: {error}", remedy="correct the regular expression") from error
        return lambda topic: pattern.fullmatch(topic) is not None
    if needed == "name":
        return lambda topic: value in headers(topic)
    return lambda _topic: False  # a change that is routed is no tombstone
