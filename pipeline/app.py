"""The application's messages and handlers in; outbox rows and consumer groups out.

What a service imports. Publishing needs the small core only; workers, relay and tools are built elsewhere
(``pipeline.runtime``) from what is declared here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, TypeVar, Unpack, cast, overload
from uuid import UUID

from pipeline.breaker import DEFAULT_BREAKER, Breaker, breaker_for
from pipeline.config import Settings
from pipeline.definition import DEFAULT_PARTITIONS, Group, Handler, Order, Queue, Rate, Start
from pipeline.endpoints import postgres_dsn
from pipeline.errors import ConfigError
from pipeline.event import Event, Job, Message
from pipeline.flow import Flow
from pipeline.foreign import Decode, EventId, Foreign, foreign
from pipeline.job import EnqueueOptions, Options, Wanted, replace_payload, store_jobs
from pipeline.jobs import tick as make_tick
from pipeline.outbox import Envelope, Outbox, SchemaIds, Steps, adrive, drive, uuid7
from pipeline.retry import EVENT_POLICY, JOB_POLICY, RetryPolicy
from pipeline.schedule import Missed, Overlap, Schedule, tick_handler, tick_model
from pipeline.surroundings import Lifespan, Middleware, check_generator
from pipeline.topics import Names, TopicSpec, check_name
from pipeline.trace import current_traceparent
from pipeline.writers import AsyncConnection, Connection, async_executor, executor

__all__ = ["Pipeline"]

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
M = TypeVar("M", bound=Message)
Headers = Mapping[str, str]


class Pipeline:
    """One application: its name, its outbox, its handlers.

    ``name`` goes before groups, job topics and internal topics. ``topic_prefix`` (environment, tenant; ends with a
    dot) goes before all names; by default PIPELINE_TOPIC_PREFIX. ``partitions`` counts those of new topics.
    """

    def __init__(
        self,
        name: str,
        *,
        outbox: Outbox | None = None,
        topic_prefix: str | None = None,
        partitions: int = DEFAULT_PARTITIONS,
    ) -> None:
        if not 1 <= partitions <= 10_000:
            raise ConfigError(f"partitions={partitions}", remedy="between 1 and 10,000")
        prefix = Settings.load().topic_prefix if topic_prefix is None else topic_prefix
        if prefix and not prefix.endswith("."):
            raise ConfigError(f"topic_prefix={prefix!r}: no dot at its end", remedy=f"{prefix + '.'!r}")
        if prefix:
            check_name(prefix[:-1])
        self.names = Names(check_name(name), prefix)
        self.outbox = outbox or Outbox()
        self.partitions = partitions
        self._handlers: list[Handler] = []
        self._starts: dict[str, Start] = {}
        self._messages: dict[type[Message], None] = {}
        self._queues: dict[str, Queue] = {}
        self._schedules: dict[str, Schedule] = {}
        self._middleware: list[Middleware] = []
        self._lifespans: list[Lifespan] = []
        self._schema_ids = SchemaIds()

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
        _check_kind(model, Event, "consumer")
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
        _check_kind(model, Job, "job")
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
        breaker = breaker_for(breaker, retry, model.__name__)
        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"{model.__name__}: timeout_s={timeout_s}", remedy="more than 0, or None for no limit")
        if process and inbox:
            raise ConfigError(
                f"{model.__name__}: inbox=True and process=True: a transaction cannot be had by two processes",
                remedy="leave one of them out; a lifespan can give the process a connection of its own: ctx.state",
            )

        def declare(function: F) -> F:
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

    def topics(self) -> tuple[TopicSpec, ...]:
        """Every topic that this application needs, as it should be."""
        specs = {
            topic: TopicSpec(topic, self.partitions)
            for model in self.messages
            for topic in (self.queue_of(self.topic_of(model)).topics)
        }
        for group in self.groups.values():
            specs.update({spec.name: spec for spec in group.specs()})
        return tuple(specs[name] for name in sorted(specs))

    # ── write ──────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(
        self, conn: Connection, event: Event, *, headers: Headers | None = None, traceparent: str | None = None
    ) -> UUID:
        """Store an event in the caller's transaction and return its id.

        ``headers`` travel with the record; ``traceparent`` is W3C's, by default that of OpenTelemetry's current span.
        Raises SchemaError when its schema was never pushed or it does not fit, ConfigError outside a transaction or
        for an async connection, SourceError for what the database refuses. Nothing is half written.
        """
        return self.publish_many(conn, [event], headers=headers, traceparent=traceparent)[0]

    def publish_many(
        self,
        conn: Connection,
        events: Iterable[Event],
        *,
        headers: Headers | None = None,
        traceparent: str | None = None,
    ) -> list[UUID]:
        """Store many events in one go (by COPY where the driver is psycopg); their ids come back in the same order."""
        return drive(self._store(events, Event, headers, traceparent), executor(conn))

    async def apublish(
        self, conn: AsyncConnection, event: Event, *, headers: Headers | None = None, traceparent: str | None = None
    ) -> UUID:
        """Do what ``publish`` does, on an async connection."""
        return (await self.apublish_many(conn, [event], headers=headers, traceparent=traceparent))[0]

    async def apublish_many(
        self,
        conn: AsyncConnection,
        events: Iterable[Event],
        *,
        headers: Headers | None = None,
        traceparent: str | None = None,
    ) -> list[UUID]:
        """Do what ``publish_many`` does, on an async connection."""
        return await adrive(self._store(events, Event, headers, traceparent), async_executor(conn))

    @overload
    def enqueue(self, conn: Connection, job: Job, **options: Unpack[EnqueueOptions]) -> UUID: ...
    @overload
    def enqueue(self, conn: Job, **options: Unpack[EnqueueOptions]) -> UUID: ...
    def enqueue(self, conn: Connection | Job, job: Job | None = None, **options: Unpack[EnqueueOptions]) -> UUID:
        """Store a job in the caller's transaction and return its id: it exists exactly when that commits.

        Options are those of ``pipeline.job.Options``: ``delay_s`` or ``run_at`` (with a zone) for later, ``unique``,
        ``tags``, ``priority``, ``timeout_s``, ``retry``, ``expires_s``, ``track``; ``headers`` and ``traceparent`` as
        for ``publish``. ``enqueue(job)``, without a connection, opens and commits a short transaction on
        PIPELINE_POSTGRES__DSN (or the local stack's). Raises what ``publish`` raises, and JobError where a unique key
        is taken.
        """
        if job is not None:
            return self.enqueue_many(cast(Connection, conn), [job], **options)[0]
        _check_kind(type(conn), Job, "enqueue")
        import psycopg  # a driver of its own is needed on this path alone

        from pipeline.writers.dbapi import translated

        try:
            with psycopg.connect(postgres_dsn(Settings.load()), connect_timeout=10) as own:
                return self.enqueue_many(own, [cast(Job, conn)], **options)[0]
        except psycopg.Error as error:
            raise translated(error) from error

    def enqueue_many(self, conn: Connection, jobs: Iterable[Job], **options: Unpack[EnqueueOptions]) -> list[UUID]:
        """Store many jobs in one go; their ids come back in the same order."""
        return drive(self._store_jobs(jobs, options), executor(conn))

    async def aenqueue(self, conn: AsyncConnection, job: Job, **options: Unpack[EnqueueOptions]) -> UUID:
        """Do what ``enqueue`` does, on an async connection."""
        return (await self.aenqueue_many(conn, [job], **options))[0]

    async def aenqueue_many(
        self, conn: AsyncConnection, jobs: Iterable[Job], **options: Unpack[EnqueueOptions]
    ) -> list[UUID]:
        """Do what ``enqueue_many`` does, on an async connection."""
        return await adrive(self._store_jobs(jobs, options), async_executor(conn))

    def enqueue_flow(self, conn: Connection, flow: Flow, **options: Unpack[EnqueueOptions]) -> UUID:
        """Store a flow, children first and then their parent with their results; return the id of its last job.

        Options are those of ``enqueue``, for all its jobs, without delay and unique; those of a ``Flow`` hold for its
        job. Raises ConfigError for a cycle.
        """
        return self.run(conn, self._store_flow(flow, options))

    def edit(self, job_id: UUID | str, job: Job) -> Steps[None]:
        """Give a delayed job other arguments: ``app.run(conn, app.edit(job_id, job))``. Raises JobError if it left."""
        return replace_payload(job_id, self._wanted(job, Options()), self._schema_ids)

    def tick(self, name: str) -> Steps[UUID]:
        """Make a tick of a schedule now: ``app.run(conn, app.tick("nightly"))``. Raises ConfigError for none."""
        full = name if name in self._schedules else self.names.group(name)
        plan = self._schedules.get(full)
        if plan is None:
            known = ", ".join(self._schedules)
            raise ConfigError(f"no schedule {name}", remedy=f"schedules are: {known or 'none'}")

        def make(at: datetime) -> Wanted:
            return self._wanted(plan.model(schedule=full, at=at), _options({}))

        return make_tick(full, make, self.outbox, self._schema_ids)

    def run(self, conn: Connection, steps: Steps[R]) -> R:
        """Do what ``pipeline.jobs`` has, in the caller's transaction: ``app.run(conn, jobs.cancel(job_id))``."""
        return drive(steps, executor(conn))

    async def arun(self, conn: AsyncConnection, steps: Steps[R]) -> R:
        """Do what ``run`` does, on an async connection."""
        return await adrive(steps, async_executor(conn))

    def _store_flow(self, flow: Flow, given: EnqueueOptions) -> Steps[UUID]:
        def make(job: Job, own: EnqueueOptions) -> Wanted:
            return self._wanted(job, _options({**given, **own}))

        wanted = flow.wanted(make)
        ids = yield from store_jobs(wanted, self.outbox, self._schema_ids)
        return ids[-1]

    def _store_jobs(self, jobs: Iterable[Job], given: EnqueueOptions) -> Steps[list[UUID]]:
        options = _options(given)
        wanted = [self._wanted(job, options) for job in _several(jobs, "enqueue")]
        return store_jobs(wanted, self.outbox, self._schema_ids)

    def _wanted(self, job: Job, options: Options) -> Wanted:
        _check_kind(type(job), Job, "enqueue")
        queue = self.topic_of(type(job))
        if options.priority != "normal" and not self.queue_of(queue).priorities:
            raise ConfigError(
                f"queue {queue} has no priorities",
                remedy=f"app.queue({job.message_type.stream!r}, priorities=True), then pipeline topics apply",
            )
        return Wanted(uuid7(), job, queue, options)

    def _store(
        self, messages: Iterable[Message], kind: type[Message], headers: Headers | None, traceparent: str | None
    ) -> Steps[list[UUID]]:
        trace = traceparent or current_traceparent()
        envelopes = []
        topics: dict[type[Message], str] = {}
        for message in _several(messages, "publish"):
            model = type(message)
            if model not in topics:
                _check_kind(model, kind, "publish" if kind is Event else "enqueue")
                topics[model] = self.topic_of(model)
            envelopes.append(Envelope(message, topics[model], headers or {}, trace))
        return self.outbox.store(envelopes, self._schema_ids, uuid7)


def _options(given: EnqueueOptions) -> Options:
    options = Options(**given)
    return options if options.traceparent is not None else replace(options, traceparent=current_traceparent())


def _check_kind(model: object, kind: type[Message], where: str) -> None:
    if not (isinstance(model, type) and issubclass(model, kind)):
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        remedy = "pass an instance of a class that is declared as one"
        if isinstance(model, type) and issubclass(model, Message):
            remedy = f"{'enqueue or job' if kind is Event else 'publish or consumer'} is for the other kind"
        raise ConfigError(f"{where}: {name} is not {'an Event' if kind is Event else 'a Job'}", remedy=remedy)


def _several(messages: Iterable[M] | Message, where: str) -> Iterable[M]:
    """Return the messages. Raises ConfigError for a single one, whose fields it would be to go through."""
    if isinstance(messages, Message):
        raise ConfigError(f"{where}_many: one {type(messages).__name__}", remedy=f"{where}, or a list")
    return messages
