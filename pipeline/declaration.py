"""Handlers, queues and schedules in; groups, topics and schedules of one application out.

A definition that cannot work is refused where it is made, with ConfigError: nothing waits for a worker's start to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

from pipeline.breaker import DEFAULT_BREAKER, Breaker, breaker_for
from pipeline.config import Settings
from pipeline.definition import DEFAULT_PARTITIONS, Group, Handler, Order, Queue, Rate, Start
from pipeline.errors import ConfigError
from pipeline.event import Event, Job, Message
from pipeline.foreign import Decode, EventId, Foreign, foreign
from pipeline.retry import EVENT_POLICY, JOB_POLICY, RetryPolicy
from pipeline.schedule import Missed, Overlap, Schedule, tick_handler, tick_model
from pipeline.subject import SubjectStrategy, subject_of
from pipeline.surroundings import (
    Lifespan,
    Middleware,
    PublishMiddleware,
    check_generator,
    check_handler,
    is_async,
    name_of,
)
from pipeline.terms import is_number
from pipeline.topics import Names, TopicSpec, check_name, heartbeats

__all__ = ["Declarations", "check_kind"]

F = TypeVar("F", bound=Callable[..., Any])


class Declarations:
    """What one application has declared. Its arguments are those of ``pipeline.Pipeline``."""

    def __init__(
        self,
        name: str,
        *,
        topic_prefix: str | None = None,
        partitions: int = DEFAULT_PARTITIONS,
        subject_strategy: SubjectStrategy | None = None,
    ) -> None:
        if not 1 <= partitions <= 10_000:
            raise ConfigError(f"partitions={partitions}", remedy="between 1 and 10,000")
        prefix = Settings.load().topic_prefix if topic_prefix is None else topic_prefix
        if prefix and not prefix.endswith("."):
            raise ConfigError(f"topic_prefix={prefix!r}: no dot at its end", remedy=f"{prefix + '.'!r}")
        if prefix:
            check_name(prefix[:-1])
        strategy = Settings.load().registry.subject_strategy if subject_strategy is None else subject_strategy
        if strategy not in get_args(SubjectStrategy):
            raise ConfigError(
                f"subject_strategy={strategy!r}", remedy=f"one of: {', '.join(get_args(SubjectStrategy))}"
            )
        self.names = Names(check_name(name), prefix)
        self.partitions = partitions
        self.subject_strategy: SubjectStrategy = strategy
        self._handlers: list[Handler] = []
        self._starts: dict[str, Start] = {}
        self._messages: dict[type[Message], None] = {}
        self._queues: dict[str, Queue] = {}
        self._schedules: dict[str, Schedule] = {}
        self._middleware: list[Middleware] = []
        self._publish_middleware: list[PublishMiddleware] = []
        self._lifespans: list[Lifespan] = []

    # ── declare ────────────────────────────────────────────────────────────────────────────────────────────────

    def register(self, *models: type[Message]) -> None:
        """Name messages that this application writes and that do not stand in its own module."""
        self._messages.update(dict.fromkeys(models))

    def consumer(
        self,
        model: type[Event],
        *,
        group: str,
        order: Order = "key",
        retry: RetryPolicy = EVENT_POLICY,
        on_exhausted: Literal["dlq", "retry_topic"] = "dlq",
        timeout_s: float | None = None,
        start: Start = "earliest",
        inbox: bool = False,
        topic: str | None = None,
        decoder: Decode | None = None,
        event_id: EventId | None = None,
        process: bool = False,
        breaker: Breaker | None = DEFAULT_BREAKER,
    ) -> Callable[[F], F]:
        """Declare a handler ``(event, ctx)`` for an event type, in a group; sync or async.

        ``inbox``: what it does on ``ctx.conn`` happens exactly once per event, however often that is delivered.
        ``topic`` is one that others write, taken whole: its records are read by ``decoder`` ("json", or a function of a
        ``Record`` that returns the event); ``event_id`` names the header that has their ids, or makes one of a record.
        ``process``: it runs in a child process, which is killed at ``timeout_s``, and may crash.
        ``breaker`` says when it waits as a whole because of ``retry.uncounted`` errors; None: never.
        ``start`` says where a group begins that has never run. Raises ConfigError for a definition that cannot work.
        """
        check_kind(model, Event, "consumer")
        name = self.names.group(group)
        if self._starts.setdefault(name, start) != start:
            raise ConfigError(f"group {group}: two different start=", remedy="one start for the whole group")
        theirs = foreign(model, topic, decoder, event_id)
        own = topic or self.names.events(model.message_type.stream)
        return self._handle(model, own, name, order, retry, on_exhausted, timeout_s, inbox, theirs, process, breaker)

    def job(
        self,
        model: type[Job],
        *,
        order: Order = "none",
        retry: RetryPolicy = JOB_POLICY,
        timeout_s: float | None = None,
        inbox: bool = False,
        process: bool = False,
        breaker: Breaker | None = DEFAULT_BREAKER,
    ) -> Callable[[F], F]:
        """Declare the handler ``(job, ctx)`` of a job type; sync or async. Its group is its queue.

        ``inbox``, ``process`` and ``breaker`` as for ``consumer``.
        """
        check_kind(model, Job, "job")
        topic = self.names.jobs(model.message_type.stream)
        on_exhausted: Literal["dlq", "retry_topic"] = "dlq"
        return self._handle(model, topic, topic, order, retry, on_exhausted, timeout_s, inbox, None, process, breaker)

    def middleware(self, function: F) -> F:
        """Declare what goes around every handler: a generator function ``(message, ctx)`` that yields once.

        The first that is declared is the outermost. An error of the handler comes out of the yield; one that is not
        raised again counts as handled. An async generator function goes around coroutines alone.
        """
        check_generator(function, "middleware")
        self._middleware.append(function)
        return function

    def publish_middleware(self, function: F) -> F:
        """Declare what goes around publish and enqueue: a generator function ``(messages, headers)`` that yields once.

        ``messages`` are those of one call; what it puts into ``headers`` goes with all of them. The first that is
        declared is the outermost. An error comes out of the yield, and is raised whatever becomes of it there: nothing
        was stored. A plain generator, for async connections too; not around ticks of schedules.
        """
        check_generator(function, "publish_middleware")
        if is_async(function):
            raise ConfigError(
                f"publish_middleware {name_of(function)}: is async",
                remedy="write it as a plain generator: it goes around apublish and aenqueue too",
            )
        self._publish_middleware.append(function)
        return function

    def lifespan(self, function: F) -> F:
        """Declare what workers have while they run: a generator function that yields a mapping for ``ctx.state``.

        Entered once in each process before its first record, left after its last. An async one is entered on the
        event loop of each group that has coroutines, for these.
        """
        check_generator(function, "lifespan")
        self._lifespans.append(function)
        return function

    def queue(self, name: str, *, rate: Rate | None = None, priorities: bool = False) -> None:
        """Declare what a queue has beside its jobs.

        ``rate`` bounds what all its workers begin together; ``priorities`` gives it topics for high and low priority,
        of which the low ones get a tenth while others wait. A queue without either need not be declared.
        """
        full = self.names.jobs(name)
        if full in self._queues:
            raise ConfigError(f"queue {name}: declared twice", remedy="one app.queue(…) for each")
        if rate is not None and not isinstance(rate, Rate):
            raise ConfigError(f"queue {name}: rate={rate!r}", remedy="Rate(10): ten a second")
        self._queues[full] = Queue(full, rate, priorities)

    def schedule(
        self,
        cron: str,
        *,
        name: str,
        timezone: str,
        missed: Missed = "once",
        overlap: Overlap = "allow",
        queue: str = "schedules",
        retry: RetryPolicy = JOB_POLICY,
        timeout_s: float | None = None,
        inbox: bool = False,
    ) -> Callable[[F], F]:
        """Declare what is done again and again: ``(ctx)`` or ``(tick, ctx)``, sync or async, run as a job of ``queue``.

        ``missed`` says what becomes of ticks at which no scheduler ran, ``overlap="skip"`` leaves a tick out while the
        one before is unfinished; ``inbox`` as for ``consumer``. Raises ConfigError for an expression that never fires,
        or an unknown zone.
        """
        model = tick_model(check_name(name), queue)
        full, topic = self.names.group(name), self.names.jobs(queue)
        plan = Schedule(full, cron, timezone, topic, model, missed, overlap)
        if full in self._schedules:
            raise ConfigError(f"schedule {name}: declared twice", remedy="a name of its own for each")

        def declare(function: F) -> F:
            handler = tick_handler(function, name)
            self._handle(model, topic, topic, "none", retry, "dlq", timeout_s, inbox)(handler)
            self._schedules[full] = plan
            return function

        return declare

    def _handle(
        self,
        model: type[Message],
        topic: str,
        group: str,
        order: Order,
        retry: RetryPolicy,
        on_exhausted: Literal["dlq", "retry_topic"],
        timeout_s: float | None,
        inbox: bool = False,
        theirs: Foreign | None = None,
        process: bool = False,
        breaker: Breaker | None = DEFAULT_BREAKER,
    ) -> Callable[[F], F]:
        if not isinstance(retry, RetryPolicy):
            raise ConfigError(f"{model.__name__}: retry={retry!r}", remedy="RetryPolicy(attempts=3, first_s=10)")
        breaker = breaker_for(breaker, retry, model.__name__)
        if timeout_s is not None and not (is_number(timeout_s) and 0 < timeout_s < math.inf):
            raise ConfigError(f"{model.__name__}: timeout_s={timeout_s!r}", remedy="more than 0, or None for no limit")
        if process and inbox:
            raise ConfigError(
                f"{model.__name__}: inbox=True and process=True: a transaction cannot be had by two processes",
                remedy="leave one of them out; a lifespan can give the process a connection of its own: ctx.state",
            )

        def declare(function: F) -> F:
            check_handler(function)
            name = f"{function.__module__}.{function.__qualname__}"
            if process and "<" in name:
                raise ConfigError(
                    f"process=True: {name} stands inside a function, where no process can import it",
                    remedy="let it stand at the top of its module",
                )
            handler = Handler(
                name,
                function,
                model,
                topic,
                group,
                order,
                retry,
                on_exhausted,
                timeout_s,
                inbox,
                theirs,
                process,
                breaker,
            )
            Group(group, (*(h for h in self._handlers if h.group == group), handler))  # raises for a second one
            self._handlers.append(handler)
            if theirs is None:  # its topic and schema are others' business
                self.register(model)
            return function

        return declare

    # ── what was declared ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def messages(self) -> tuple[type[Message], ...]:
        """All message classes of this application, by name."""
        return tuple(sorted(self._messages, key=lambda model: model.message_type.name))

    @property
    def groups(self) -> dict[str, Group]:
        """Full group name → group. A queue's group has the queue's topic name."""
        names = sorted({handler.group for handler in self._handlers})
        found = {}
        for name in names:
            handlers = tuple(h for h in self._handlers if h.group == name)
            for topic in self.queue_of(name).topics if name in self._queues else ():
                handlers += tuple(replace(h, topic=topic) for h in handlers if h.topic == name != topic)
            found[name] = Group(
                name,
                handlers,
                self._starts.get(name, "earliest"),
                tuple(self._middleware),
                tuple(self._lifespans),
            )
        return found

    def queue_of(self, name: str) -> Queue:
        """What was declared of a queue, by its full name."""
        return self._queues.get(name) or Queue(name)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """What comes again and again, by full name."""
        return tuple(self._schedules[name] for name in sorted(self._schedules))

    def topic_of(self, model: type[Message]) -> str:
        """Topic that a message class's rows go to."""
        kind = model.message_type
        return self.names.events(kind.stream) if kind.kind == "event" else self.names.jobs(kind.stream)

    def subject_of(self, model: type[Message]) -> str:
        """Subject of a message class's schema in the registry."""
        return subject_of(self.topic_of(model), model.message_type.name, self.subject_strategy)

    def topics(self) -> tuple[TopicSpec, ...]:
        """Every topic that this application needs, as it should be."""
        specs = {
            topic: TopicSpec(topic, self.partitions)
            for model in self.messages
            for topic in (self.queue_of(self.topic_of(model)).topics)
        }
        for group in self.groups.values():
            specs.update({spec.name: spec for spec in group.specs()})
            specs[self.names.workers] = heartbeats(self.names)
        return tuple(specs[name] for name in sorted(specs))


def check_kind(model: object, kind: type[Message], where: str) -> None:
    """Raise ConfigError, naming ``where``, unless ``model`` is a class of this kind."""
    if not (isinstance(model, type) and issubclass(model, kind)):
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        remedy = "pass an instance of a class that is declared as one"
        if isinstance(model, type) and issubclass(model, Message):
            remedy = f"{'enqueue or job' if kind is Event else 'publish or consumer'} is for the other kind"
        raise ConfigError(f"{where}: {name} is not {'an Event' if kind is Event else 'a Job'}", remedy=remedy)
