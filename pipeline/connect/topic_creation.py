"""``topic.creation.…`` of a connector file in, how missing topics are created out: as Kafka Connect has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.connect.filters import split
from pipeline.connect.java import java_regex
from pipeline.errors import ConfigError

__all__ = ["PREFIX", "TopicGroup", "group_of", "topic_groups"]

PREFIX = "topic.creation."
_DEFAULT = "default"
_COUNTS = ("partitions", "replication.factor")


@dataclass(frozen=True, slots=True)
class TopicGroup:
    """Topics whose whole name ``include`` matches, and ``exclude`` does not. -1: what the broker has by default."""

    include: re.Pattern[str]
    exclude: re.Pattern[str]
    partitions: int
    replication: int
    config: Mapping[str, str]


def group_of(groups: Sequence[TopicGroup], topic: str) -> TopicGroup:
    """Return the first group that a topic belongs to; the last one takes any."""
    return next(group for group in groups if group.include.fullmatch(topic) and not group.exclude.fullmatch(topic))


def topic_groups(path: Path, config: Mapping[str, str]) -> tuple[TopicGroup, ...]:
    """Return the groups, the default one last; none where the file has no such keys. Raises ConfigError."""
    keys = [key for key in config if key.startswith(PREFIX)]
    if not keys:
        return ()
    names = [*split(config.get(f"{PREFIX}groups", "")), _DEFAULT]
    for key in keys:
        if key != f"{PREFIX}groups" and not key.startswith(tuple(f"{PREFIX}{name}." for name in names)):
            raise ConfigError(f"{path}: {key}: its group is unknown", remedy=f"name it in {PREFIX}groups, or remove it")
    counts = {name: _count(path, f"{PREFIX}{_DEFAULT}.{name}", config, "") for name in _COUNTS}
    return tuple(_group(path, name, config, counts) for name in names)


def _group(path: Path, name: str, config: Mapping[str, str], counts: Mapping[str, int]) -> TopicGroup:
    prefix = f"{PREFIX}{name}."
    own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    made = {count: _count(path, prefix + count, config, str(default)) for count, default in counts.items()}
    patterns = {part: _pattern(path, prefix + part, own.pop(part, "")) for part in ("include", "exclude")}
    if name == _DEFAULT:
        patterns = {"include": re.compile(".*", re.DOTALL), "exclude": re.compile(r"(?!)")}
    return TopicGroup(
        patterns["include"],
        patterns["exclude"],
        made["partitions"],
        made["replication.factor"],
        {key: value for key, value in own.items() if key not in _COUNTS},
    )


def _count(path: Path, key: str, config: Mapping[str, str], default: str) -> int:
    text = config.get(key, default).strip()
    if not re.fullmatch(r"-1|[1-9][0-9]{0,5}", text):
        what = f"{text!r} is not a count" if text else "is missing"
        raise ConfigError(f"{path}: {key}: {what}", remedy="use 1 or more, or -1 for what the broker has by default")
    return int(text)


def _pattern(path: Path, key: str, text: str) -> re.Pattern[str]:
    """Return what matches any item of a list; nothing where it is empty."""
    try:
        return re.compile("|".join(f"(?:{java_regex(item).pattern})" for item in split(text)) or r"(?!)")
    except re.error as error:
        raise ConfigError(f"{path}: {key}: {error}", remedy="correct the regular expression") from error
