"""What a worker knows of itself in, the heartbeat that people see it by out, and back; and which of them are silent.

A heartbeat is the last thing that a worker said: its key is the worker's own, so that a compacted topic keeps one of
each. It names jobs by id, type and age; never a record's key or payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from heapq import nlargest
from typing import Literal

from pydantic import TypeAdapter, ValidationError

__all__ = [
    "EVERY_S",
    "SLOW_S",
    "Beat",
    "GroupBeat",
    "RunningJob",
    "Seen",
    "Standing",
    "Worker",
    "group_beat",
    "standing",
]

EVERY_S = 5.0
SLOW_S = 10.0
"""A job that is in its handler for longer is slow."""

_FORMAT = 1
_NAMED = 10  # jobs of a group: the oldest
_TEXTS = 20
_CHARS = 300
_MISSED = 3  # heartbeats in a row
_LATE_S = 2.0


@dataclass(frozen=True, slots=True)
class RunningJob:
    """What is in a handler: an event or a job."""

    id: str
    type: str
    attempt: int
    age_s: float


@dataclass(frozen=True, slots=True)
class GroupBeat:
    """One group of a worker. Counters are since its start, ``retried`` those that went to a retry topic.

    ``failed`` counts attempts. ``in_flight`` are records that are not settled, ``running`` those in a handler, ``slow``
    those of them that are there for more than ``SLOW_S``; ``jobs`` has the oldest.
    """

    group: str
    handled: int
    retried: int
    dead: int
    failed: int
    in_flight: int
    running: int
    slow: int
    oldest_s: float
    jobs: tuple[RunningJob, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process. ``supervisor`` is the process that starts it again when it ends, as its ``number``."""

    app: str
    host: str
    pid: int
    started: datetime
    mode: str = "consumer"
    number: int = 1
    supervisor: int | None = None

    @property
    def name(self) -> str:
        """What a job's row calls it."""
        return f"{self.host}:{self.pid}"

    @property
    def key(self) -> bytes:
        """What one worker has at a time: who takes a killed one's place takes back what that said last."""
        return (self.name if self.supervisor is None else f"{self.host}:{self.supervisor}/{self.number}").encode()


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker says, each ``every_s`` seconds. ``sent`` is by its own clock."""

    worker: Worker
    sent: datetime
    every_s: float
    ready: bool
    reasons: Mapping[str, str]
    notes: Mapping[str, str]
    groups: tuple[GroupBeat, ...]
    version: int = _FORMAT

    @classmethod
    def of(
        cls,
        worker: Worker,
        groups: Iterable[GroupBeat],
        state: Mapping[str, object],
        *,
        now_s: float,
        every_s: float,
    ) -> Beat:
        """Build it of what the readiness probe says and of each group; two sides of one group become one."""
        together: dict[str, GroupBeat] = {}
        for one in groups:
            known = together.get(one.group)
            together[one.group] = one if known is None else _sum(known, one)
        reasons, notes = state["reasons"], state["notes"]
        assert isinstance(reasons, Mapping)
        assert isinstance(notes, Mapping)
        return cls(
            worker,
            datetime.fromtimestamp(now_s, UTC),
            every_s,
            bool(state["ready"]),
            _bounded(reasons),
            _bounded(notes),
            tuple(together[name] for name in sorted(together)),
        )

    def value(self) -> bytes:
        """Return it as a record has it: JSON."""
        return json.dumps(asdict(self), default=datetime.isoformat, ensure_ascii=False).encode()

    @classmethod
    def read(cls, value: bytes) -> Beat | None:
        """Return what a record says, without what only a newer version knows; None for what is no heartbeat."""
        try:
            return _adapter().validate_json(value)
        except ValidationError:
            return None


@dataclass(frozen=True, slots=True)
class Seen:
    """A heartbeat, and when the broker got it (seconds since 1970)."""

    beat: Beat
    at_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker stands: its last heartbeat, and how long ago that was."""

    beat: Beat
    state: Literal["ready", "not ready", "silent"]
    heard_s: float


def group_beat(
    group: str, counts: Mapping[str, int], *, failed: int, in_flight: int, jobs: Sequence[RunningJob]
) -> GroupBeat:
    """Build the part of one group. ``counts`` are its settled records by outcome, ``jobs`` all that is in a handler."""
    oldest = nlargest(_NAMED, jobs, key=lambda job: job.age_s)
    return GroupBeat(
        group,
        counts.get("done", 0),
        counts.get("retry", 0),
        counts.get("dead", 0),
        failed,
        in_flight,
        len(jobs),
        sum(job.age_s > SLOW_S for job in jobs),
        oldest[0].age_s if oldest else 0.0,
        tuple(oldest),
    )


def standing(seen: Iterable[Seen], *, now_s: float, within_s: float) -> list[Standing]:
    """Say of each worker how it stands, but of those that were heard longer ago than ``within_s``."""
    return [
        _standing(one.beat, max(0.0, now_s - one.at_s))
        for one in sorted(seen, key=lambda one: (one.beat.worker.app, one.beat.worker.name))
        if now_s - one.at_s <= within_s
    ]


def _standing(beat: Beat, heard_s: float) -> Standing:
    if heard_s > _MISSED * beat.every_s + _LATE_S:
        return Standing(beat, "silent", heard_s)
    return Standing(beat, "ready" if beat.ready else "not ready", heard_s)


def _sum(one: GroupBeat, other: GroupBeat) -> GroupBeat:
    return GroupBeat(
        one.group,
        one.handled + other.handled,
        one.retried + other.retried,
        one.dead + other.dead,
        one.failed + other.failed,
        one.in_flight + other.in_flight,
        one.running + other.running,
        one.slow + other.slow,
        max(one.oldest_s, other.oldest_s),
        tuple(nlargest(_NAMED, (*one.jobs, *other.jobs), key=lambda job: job.age_s)),
    )


def _bounded(texts: Mapping[str, str]) -> dict[str, str]:
    return {part[:_CHARS]: text[:_CHARS] for part, text in list(texts.items())[:_TEXTS]}


@cache
def _adapter() -> TypeAdapter[Beat]:
    return TypeAdapter(Beat)
