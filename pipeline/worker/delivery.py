"""One record on its way through a worker: which assignment it came with, who handles it, how far it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

from pipeline.definition import Handler
from pipeline.headers import RetryState
from pipeline.progress import Mark, Progress
from pipeline.record import Record
from pipeline.report import Entry
from pipeline.terms import Terms
from pipeline.watermark import Watermark
from pipeline.worker.circuit import Circuit
from pipeline.worker.settlement import Decision

__all__ = ["Assigned", "Delivery", "Engine", "InFlight", "Outcome", "Route"]


class Route:
    """A handler as a worker calls it. ``seconds`` and ``ages_s`` collect what was measured until it is counted."""

    __slots__ = ("ages_s", "call", "circuit", "failed", "handler", "seconds", "type_name")

    def __init__(self, handler: Handler, call: Callable[..., Any], circuit: Circuit | None = None) -> None:
        self.handler = handler
        self.call = call
        self.circuit = circuit
        self.type_name = handler.model.message_type.name
        self.seconds: deque[float] = deque()
        self.ages_s: deque[float] = deque()
        self.failed: deque[None] = deque()

    def on(self, terms: Terms) -> Route:
        """Return the same route for a job with terms of its own; what is measured goes into this one."""
        other = copy(self)
        declared = self.handler
        timeout_s = declared.timeout_s if terms.timeout_s is None else terms.timeout_s
        other.handler = replace(declared, retry=terms.policy(declared.retry), timeout_s=timeout_s)
        return other


class Assigned:
    """A partition while it is ours. A later assignment of the same partition is another object: that is the fence.

    ``closed`` is set when it is being taken away: what was not begun is dropped then. ``lost`` is set when it is gone:
    what ends later counts for nothing. ``whole`` is the key of order="partition". ``named`` says that the group's
    commit tells that this worker has it; ``careful`` that its records pass by the watch: until that is committed, below
    ``watched_until``, where a worker before may have died of one, and while such wait. ``begun`` has the offsets of
    those that were begun with care, ``alone`` that of one beside which nothing runs.
    """

    __slots__ = (
        "_before",
        "alone",
        "begun",
        "careful",
        "closed",
        "committed",
        "lost",
        "named",
        "partition",
        "paused",
        "suspects",
        "tier_s",
        "topic",
        "watched_until",
        "watermark",
        "whole",
    )

    def __init__(self, topic: str, partition: int, before: Progress, tier_s: float | None, reach: int = 0) -> None:
        """``reach`` is how far above what it had committed a worker's records in flight may be."""
        self.topic = topic
        self.partition = partition
        self.whole = (topic, partition)
        self.watermark = Watermark(before.offset)
        self.committed: Mark | None = None
        self.tier_s = tier_s
        self.paused: set[str] = set()
        self.closed = False
        self.lost = False
        self.named = False
        self.careful = True
        self.begun: set[int] = set()
        self.alone: int | None = None
        self.suspects = before.suspects_now()
        self.watched_until = before.watched_until
        self._before = before
        if before.in_hand:
            self.watched_until = max(before.watched_until, before.end + reach)

    @property
    def careful_until(self) -> int:
        """The offset from which on nothing is known of an earlier owner."""
        return max(self._before.end, self.watched_until)

    def settled_before(self, offset: int) -> bool:
        """Whether a record was settled by an earlier owner."""
        return self._before.settled(offset)

    def progress(self, *, in_hand: bool) -> Progress:
        """Return what to commit; ``in_hand`` is False when the partition is given back in good order."""
        mark, before = self.watermark, self._before
        runs = mark.open
        if mark.end < before.end:  # what an earlier owner knew of records that did not come yet
            runs += tuple((max(first, mark.end), last) for first, last in before.open if last >= mark.end)
        end = max(before.end, mark.end)
        offset = runs[0][0] if runs else end
        self.suspects = {suspect: what for suspect, what in self.suspects.items() if suspect >= offset}
        return Progress(
            offset,
            end,
            runs,
            in_hand,
            self.watched_until if self.watched_until > offset else 0,
            frozenset(self.begun) if in_hand else frozenset(),
            self.suspects,
            self.alone if in_hand else None,
        )


class Delivery:
    """A record that is being handled.

    ``key`` is what order is kept by; None where it is not kept. ``state`` is None at a first attempt of a record that
    was not retried before. ``waited`` counts waits in a row that burnt no attempt. ``entry`` is what the present
    attempt tells of a tracked job.
    """

    __slots__ = ("assigned", "entry", "headers", "key", "record", "route", "state", "waited")

    def __init__(
        self,
        assigned: Assigned,
        record: Record,
        headers: Mapping[str, bytes | None],
        route: Route | None,
        key: Hashable,
        state: RetryState | None,
    ) -> None:
        self.assigned = assigned
        self.record = record
        self.headers = headers
        self.route = route
        self.key = key
        self.state = state
        self.waited = 0
        self.entry: Entry | None = None


class InFlight:
    """What was delivered to a worker and is not settled."""

    __slots__ = ("bytes", "records")

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0

    def enter(self, delivery: Delivery) -> None:
        """Count one in."""
        self.records += 1
        self.bytes += len(delivery.record.value or b"")

    def leave(self, delivery: Delivery) -> None:
        """Count one off."""
        self.records -= 1
        self.bytes -= len(delivery.record.value or b"")


Outcome = tuple[Delivery, Decision | None]
"""What an attempt came to; None: handled."""


class Engine(Protocol):
    """Runs attempts off the poll thread, and puts each outcome where it was told to."""

    def submit(self, deliveries: list[Delivery]) -> None:
        """Take new deliveries; those of one key one after another, in this order."""

    def again(self, delivery: Delivery) -> None:
        """Take one again whose key is still held back for it."""

    def release(self, delivery: Delivery) -> None:
        """Let the next of its key go on."""

    def behind(self, key: Hashable) -> int:
        """How many wait behind the one of a key whose turn it is."""

    def tend(self) -> None:
        """Called now and then by the poll thread."""

    def idle(self) -> bool:
        """Whether nothing is in a handler or about to be; may say no for a moment though it is so."""

    def running(self) -> list[tuple[Delivery, float]]:
        """What is in a handler now, and since when (the engine's clock)."""

    def cancel(self, delivery: Delivery) -> None:
        """End the handler of a delivery, where that can be done."""

    def stop(self) -> None:
        """Begin nothing more; do not wait for what runs."""
