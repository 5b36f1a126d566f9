"""Names of aggregates, queues and groups in, names and settings of Kafka topics out.

The one place where topic names are put together. A name is never parsed back: what a record needs to know stands in
its headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigError

__all__ = [
    "BEATS",
    "DAY_MS",
    "PRIORITIES",
    "Names",
    "Priority",
    "TopicSpec",
    "check_name",
    "dead_letters",
    "delay_label",
    "heartbeats",
    "is_topic",
    "priority_topic",
    "retry_tier",
]

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

DAY_MS = 86_400_000
BEATS = ".pipeline.workers"
_NAME = re.compile(r"[a-z0-9-]{1,60}")
_LONGEST = 249
_TOPIC = re.compile(rf"[a-zA-Z0-9._-]{{1,{_LONGEST}}}")


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be. ``partitions`` counts; ``config`` holds Kafka's own topic settings."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.name) > _LONGEST:
            raise ConfigError(f"topic {self.name}: longer than {_LONGEST} characters", remedy="shorten its parts")


@dataclass(frozen=True, slots=True)
class Names:
    """The names that belong to one application. ``prefix`` (environment, tenant) goes before all of them."""

    app: str
    prefix: str = ""

    def __post_init__(self) -> None:
        check_name(self.app)

    def events(self, aggregate: str) -> str:
        """Topic of an aggregate's events: shared by all applications."""
        return f"{self.prefix}outbox.event.{check_name(aggregate)}"

    def jobs(self, queue: str) -> str:
        """Topic of a queue, and name of the group that consumes it."""
        return f"{self.prefix}{self.app}.jobs.{check_name(queue)}"

    def group(self, group: str) -> str:
        """Full name of a consumer group."""
        return f"{self.prefix}{self.app}.{check_name(group)}"

    @property
    def workers(self) -> str:
        """Topic of the workers' heartbeats."""
        return f"{self.prefix}{self.app}{BEATS}"


def check_name(name: str) -> str:
    """Return ``name`` if it may be an aggregate, queue, group or application; raise ConfigError if not."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r} is not allowed", remedy="1 to 60 of a-z, 0-9 and -")
    return name


def is_topic(name: str) -> bool:
    """Tell whether Kafka takes ``name`` for a topic."""
    return _TOPIC.fullmatch(name) is not None and name not in {".", ".."}


def priority_topic(queue: str, priority: Priority) -> str:
    """Topic of a queue's jobs of a priority."""
    return queue if priority == "normal" else f"{queue}.{priority}"


def retry_tier(group: str, delay_s: float) -> str:
    """Topic where a full group name's records wait ``delay_s`` seconds."""
    return f"{group}.retry.{delay_label(delay_s)}"


def dead_letters(owner: str) -> str:
    """Topic of the dead letters of a full group name, or of a connector."""
    return f"{owner}.dlq"


def heartbeats(names: Names) -> TopicSpec:
    """The topic of an application's heartbeats: the last one of each worker, for a day.

    Only closed segments are compacted: they are small, so that what is read to see all workers stays small too. The
    broker's clock says when a worker was heard.
    """
    return TopicSpec(
        names.workers,
        1,
        {
            "cleanup.policy": "compact,delete",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": str(DAY_MS),
            "segment.bytes": str(8 * 1024 * 1024),
            "segment.ms": str(DAY_MS // 24),
        },
    )


def delay_label(delay_s: float) -> str:
    """``20s``, ``600s``; ``500ms`` where it is not a whole number of seconds."""
    return f"{int(delay_s)}s" if delay_s == int(delay_s) else f"{round(delay_s * 1000)}ms"
