"""Handlers as the application declares them in, consumer groups as workers run them out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline.breaker import Breaker
from pipeline.errors import ConfigError
from pipeline.event import Message
from pipeline.foreign import Foreign
from pipeline.retry import RetryPolicy
from pipeline.surroundings import Lifespan, Middleware, is_async, name_of
from pipeline.terms import is_number
from pipeline.topics import DAY_MS, PRIORITIES, TopicSpec, dead_letters, priority_topic, retry_tier

__all__ = ["DEFAULT_PARTITIONS", "Group", "Handler", "Order", "Queue", "Rate", "Start"]

Order = Literal["key", "none", "partition"]
Start = Literal["earliest", "latest"] | datetime

DEFAULT_PARTITIONS = 6
_RETRY_PARTITIONS = 3


@dataclass(frozen=True, slots=True)
class Handler:
    """One function for one message type in one group.

    ``order="key"``: a failing record is tried again in place and holds back only its key; ``on_exhausted`` says what
    comes after the last attempt. ``order="none"``: a failing record moves to the retry topics at once. ``inbox``: its
    effects happen once, in the transaction of an inbox row. ``foreign``: its topic's records are others', and all are
    its own, whatever their headers say. ``process``: it runs in a process of its own.
    ``breaker``: when it waits for what it depends on.
    """

    name: str
    function: Callable[..., Any]
    model: type[Message]
    topic: str
    group: str
    order: Order
    retry: RetryPolicy
    on_exhausted: Literal["dlq", "retry_topic"] = "dlq"
    timeout_s: float | None = None
    inbox: bool = False
    foreign: Foreign | None = None
    process: bool = False
    breaker: Breaker | None = None

    @property
    def in_place(self) -> bool:
        """Whether failing attempts are repeated while the key (or partition) waits."""
        return self.order != "none"

    @property
    def uses_tiers(self) -> bool:
        """Whether its records can go to the retry topics of the policy."""
        return not self.in_place or self.on_exhausted == "retry_topic"


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` attempts in ``per_s`` seconds, by all workers of a queue together.

    Spread evenly: what a second allows may come at once, and no more.
    """

    count: int
    per_s: float = 1.0

    def __post_init__(self) -> None:
        whole = isinstance(self.count, int) and not isinstance(self.count, bool) and 1 <= self.count <= 1_000_000
        if not whole or not is_number(self.per_s) or not 0.001 <= self.per_s <= 86_400:
            raise ConfigError(
                f"Rate(count={self.count!r}, per_s={self.per_s!r})",
                remedy="a whole count from 1 to 1,000,000, per_s from 0.001 to 86,400; no rate at all: leave it out",
            )

    @property
    def per_second(self) -> float:
        """Attempts a second."""
        return self.count / self.per_s

    @property
    def burst(self) -> float:
        """How many may come at once."""
        return float(max(1, min(self.count, round(self.per_second))))

    @property
    def block(self) -> int:
        """How many one worker takes at once: those of a tenth of a second."""
        return max(1, round(self.per_second / 10))


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of jobs: its full name, a rate, and whether it has topics for high and low priority."""

    name: str
    rate: Rate | None = None
    priorities: bool = False

    @property
    def topics(self) -> tuple[str, ...]:
        """Where its jobs are."""
        return tuple(priority_topic(self.name, one) for one in PRIORITIES) if self.priorities else (self.name,)


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: its full name and its handlers, one for each topic and message type."""

    name: str
    handlers: tuple[Handler, ...] = ()
    start: Start = "earliest"
    middleware: tuple[Middleware, ...] = ()
    lifespans: tuple[Lifespan, ...] = ()
    _by_type: dict[tuple[str, str], Handler] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for handler in self.handlers:
            for one in self.middleware:
                if is_async(one) and not inspect.iscoroutinefunction(handler.function):
                    raise ConfigError(
                        f"group {self.name}: middleware {name_of(one)} is async, {handler.name} a plain function",
                        remedy="write the middleware as a plain generator: it goes around coroutines too",
                    )
            key = (handler.topic, handler.model.message_type.name)
            if key in self._by_type:
                raise ConfigError(
                    f"group {self.name}: two handlers for {key[1]}: {self._by_type[key].name} and {handler.name}",
                    remedy="one group handles an event once: put the second into a group of its own",
                )
            self._by_type[key] = handler
        for handler in self.handlers:
            others = [h.name for h in self.handlers if h.topic == handler.topic and h is not handler]
            if handler.foreign is not None and others:
                raise ConfigError(
                    f"group {self.name}: {handler.name} and {others[0]} both take topic {handler.topic}",
                    remedy="a topic of others has one handler in a group: put the second into a group of its own",
                )

    def handler(self, topic: str, type_name: str) -> Handler | None:
        """The handler of a record by its *original* topic and its type; None for a type nobody here handles."""
        return self._by_type.get((topic, type_name))

    @property
    def foreign(self) -> dict[str, Handler]:
        """Topic of others → its handler."""
        return {handler.topic: handler for handler in self.handlers if handler.foreign is not None}

    @property
    def topics(self) -> tuple[str, ...]:
        """The original topics, without retries."""
        return tuple(sorted({handler.topic for handler in self.handlers}))

    @property
    def tiers_s(self) -> tuple[float, ...]:
        """Delays of the retry tiers, shortest first. 0 is always there: redrive and replay send to it."""
        delays = {delay for handler in self.handlers if handler.uses_tiers for delay in handler.retry.delays_s()}
        return tuple(sorted({0.0, *delays}))

    @property
    def retry_topics(self) -> dict[str, float]:
        """Retry topic → delay in seconds."""
        return {retry_tier(self.name, delay): delay for delay in self.tiers_s}

    @property
    def dlq(self) -> str:
        """Topic of the dead letters."""
        return dead_letters(self.name)

    def specs(self) -> Iterable[TopicSpec]:
        """The topics that belong to this group alone, as they should be."""
        longest_ms = int(max(self.tiers_s) * 1000)
        # a record must outlive its wait, and the days until somebody has mended what is wrong
        keep = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(max(14 * DAY_MS, 4 * longest_ms))}
        for topic in self.retry_topics:
            yield TopicSpec(topic, _RETRY_PARTITIONS, keep)
        yield TopicSpec(self.dlq, 1, {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"})
