"""One record on its way through a worker: which assignment it came with, who handles it, how far it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

from pipeline.definition import Handler
from pipeline.headers import RetryState
from pipeline.record import Record
from pipeline.report import Entry
from pipeline.watermark import Watermark
from pipeline.worker.settlement import Decision

__all__ = ["Assigned", "Delivery", "Engine", "Outcome", "Route"]


class Route:
    """A handler as a worker calls it. ``seconds`` and ``ages_s`` collect what was measured until it is counted."""

    __slots__ = ("ages_s", "call", "failed", "handler", "key_of", "seconds", "type_name")

    def __init__(self, handler: Handler, call: Callable[..., Any]) -> None:
        self.handler = handler
        self.call = call
        self.type_name = handler.model.message_type.name
        self.seconds: deque[float] = deque()
        self.ages_s: deque[float] = deque()
        self.failed: deque[None] = deque()


class Assigned:
    """A partition while it is ours. A later assignment of the same partition is another object: that is the fence.

    ``closed`` is set when it is being taken away: what was not begun is dropped then. ``lost`` is set when it is gone:
    what ends later counts for nothing. ``whole`` is the key of order="partition".
    """

    __slots__ = ("closed", "committed", "lost", "partition", "paused", "tier_s", "topic", "watermark", "whole")

    def __init__(self, topic: str, partition: int, start: int, tier_s: float | None) -> None:
        self.topic = topic
        self.partition = partition
        self.whole = (topic, partition)
        self.watermark = Watermark(start)
        self.committed = -1
        self.tier_s = tier_s
        self.paused: set[str] = set()
        self.closed = False
        self.lost = False


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

    def tend(self) -> None:
        """Called now and then by the poll thread."""

    def running(self) -> list[tuple[Delivery, float]]:
        """What is in a handler now, and since when (the engine's clock)."""

    def cancel(self, delivery: Delivery) -> None:
        """End the handler of a delivery, where that can be done."""

    def stop(self) -> None:
        """Begin nothing more; do not wait for what runs."""
