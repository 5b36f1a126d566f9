"""An application's declared topics in, the broker's topics made so.

What is missing is created. What exists is changed only where that was allowed by name; a topic is never deleted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.endpoints import kafka_options
from pipeline.kafka.admin import Topics
from pipeline.topics import TopicSpec

__all__ = ["Change", "apply_topics", "plan_topics"]

Action = Literal["create", "partitions", "config", "keep", "fewer"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a topic needs. ``fewer``: the broker has more partitions than declared, which cannot be undone."""

    topic: str
    action: Action
    detail: str
    spec: TopicSpec = field(repr=False)

    @property
    def open(self) -> bool:
        """Whether the topic is not yet as declared."""
        return self.action in {"create", "partitions", "config"}


def plan_topics(app: Pipeline, settings: Settings) -> list[Change]:
    """Compare what the application needs with what the broker has. Raises BrokerError."""
    return _plan(app, Topics(kafka_options(settings)))


def apply_topics(app: Pipeline, settings: Settings, *, allow: Collection[Action] = ()) -> list[Change]:
    """Create what is missing, change what ``allow`` names, and return the plan that was followed."""
    topics = Topics(kafka_options(settings))
    changes = _plan(app, topics)
    topics.create([c.spec for c in changes if c.action == "create"], settings.kafka.replication_factor)
    for change in changes:
        if change.action == "partitions" and change.action in allow:
            topics.add_partitions(change.topic, change.spec.partitions)
        elif change.action == "config" and change.action in allow:
            topics.configure(change.topic, change.spec.config)
    return changes


def _plan(app: Pipeline, topics: Topics) -> list[Change]:
    specs = app.topics()
    partitions = topics.partitions()
    topics.look_for(spec.name for spec in specs if spec.name not in partitions)
    configs = topics.configs(spec.name for spec in specs if spec.name in partitions)
    waits_s = {topic: wait_s for group in app.groups.values() for topic, wait_s in group.retry_topics.items()}
    return [
        change
        for spec in specs
        for change in _changes(
            spec, partitions.get(spec.name), configs.get(spec.name, {}), wait_s=waits_s.get(spec.name, 0)
        )
    ]


def _changes(spec: TopicSpec, partitions: int | None, config: dict[str, str], *, wait_s: float) -> list[Change]:
    """Return what a topic needs: one change, or two where partitions and settings differ.

    ``wait_s`` is how long a record waits on it before it is due.
    """
    settings = " ".join(f"{key}={value}" for key, value in spec.config.items())
    if partitions is None:
        return [Change(spec.name, "create", f"{spec.partitions} partitions {settings}".strip(), spec)]
    found = []
    if partitions < spec.partitions:
        detail = f"{partitions} → {spec.partitions}: keys move to other partitions, their order is broken once"
        found.append(Change(spec.name, "partitions", detail, spec))
    differing = [f"{k}: {config.get(k)} → {v}" for k, v in spec.config.items() if config.get(k) != v]
    if differing:
        detail = ", ".join(differing)
        if 0 <= int(config.get("retention.ms", "-1")) <= wait_s * 1000:
            detail += (
                f": records wait here for {wait_s:g} s and may be deleted before they are due, which loses them; "
                "pipeline topics apply --allow config"
            )
        found.append(Change(spec.name, "config", detail, spec))
    if partitions > spec.partitions:
        detail = f"has {partitions} partitions, declared are {spec.partitions}"
        found.append(Change(spec.name, "fewer", detail, spec))
    return found or [Change(spec.name, "keep", f"{partitions} partitions", spec)]
