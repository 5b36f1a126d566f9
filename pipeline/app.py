"""The application's messages and handlers in; outbox rows and consumer groups out.

What a service imports. Publishing needs the small core only; workers, relay and tools are built elsewhere
(``pipeline.runtime``) from what is declared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypeVar, Unpack, cast, overload
from uuid import UUID

from pipeline.config import Settings
from pipeline.declaration import Declarations, check_kind
from pipeline.definition import DEFAULT_PARTITIONS
from pipeline.endpoints import postgres_dsn
from pipeline.errors import ConfigError
from pipeline.event import Event, Job, Message
from pipeline.flow import Flow
from pipeline.job import EnqueueOptions, Options, Wanted, replace_payload, store_jobs
from pipeline.jobs import tick as make_tick
from pipeline.outbox import Envelope, Outbox, SchemaIds, Steps, adrive, drive, uuid7, uuids7
from pipeline.subject import SubjectStrategy
from pipeline.surroundings import stored_within
from pipeline.trace import current_traceparent
from pipeline.writers import AsyncConnection, Connection, async_executor, executor

__all__ = ["Pipeline"]

R = TypeVar("R")
M = TypeVar("M", bound=Message)
Headers = Mapping[str, str]


class Pipeline(Declarations):
    """One application: its name, its outbox, its handlers.

    ``name`` goes before groups, job topics and internal topics. ``topic_prefix`` (environment, tenant; ends with a
    dot) goes before all names; by default PIPELINE_TOPIC_PREFIX. ``partitions`` counts those of new topics.
    ``subject_strategy`` says which subject a schema has; by default PIPELINE_REGISTRY__SUBJECT_STRATEGY.
    """

    def __init__(
        self,
        name: str,
        *,
        outbox: Outbox | None = None,
        topic_prefix: str | None = None,
        partitions: int = DEFAULT_PARTITIONS,
        subject_strategy: SubjectStrategy | None = None,
    ) -> None:
        super().__init__(name, topic_prefix=topic_prefix, partitions=partitions, subject_strategy=subject_strategy)
        self.outbox = outbox or Outbox()
        self._schema_ids = SchemaIds(strategy=self.subject_strategy)

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
        check_kind(type(conn), Job, "enqueue")
        import psycopg  # a driver of its own is needed on this path alone

        from pipeline.postgres.liveness import alive
        from pipeline.writers.dbapi import translated

        try:
            with psycopg.connect(alive(postgres_dsn(Settings.load()), "pipeline")) as own:
                return self.enqueue_many(own, [cast(Job, conn)], **options)[0]
        except psycopg.Error as error:
            raise translated(error) from error

    def enqueue_many(self, conn: Connection, jobs: Iterable[Job], **options: Unpack[EnqueueOptions]) -> list[UUID]:
        """Store many jobs in one go; their ids come back in the same order."""
        return drive(self._store_jobs(jobs, options), executor(conn))

    @overload
    async def aenqueue(self, conn: AsyncConnection, job: Job, **options: Unpack[EnqueueOptions]) -> UUID: ...
    @overload
    async def aenqueue(self, conn: Job, **options: Unpack[EnqueueOptions]) -> UUID: ...
    async def aenqueue(
        self, conn: AsyncConnection | Job, job: Job | None = None, **options: Unpack[EnqueueOptions]
    ) -> UUID:
        """Do what ``enqueue`` does, on an async connection, or without one."""
        if job is not None:
            return (await self.aenqueue_many(cast(AsyncConnection, conn), [job], **options))[0]
        check_kind(type(conn), Job, "aenqueue")
        import psycopg

        from pipeline.postgres.liveness import alive
        from pipeline.writers.dbapi import translated

        try:
            address = alive(postgres_dsn(Settings.load()), "pipeline")
            async with await psycopg.AsyncConnection.connect(address) as own:
                return (await self.aenqueue_many(own, [cast(Job, conn)], **options))[0]
        except psycopg.Error as error:
            raise translated(error) from error

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
        if not isinstance(flow, Flow):
            raise ConfigError(
                f"enqueue_flow: {type(flow).__name__} is not a Flow", remedy="Flow(…), chain(…), batch(…)"
            )
        return self.run(conn, self._store_flow(flow, options))

    def edit(self, job_id: UUID | str, job: Job) -> Steps[None]:
        """Give a delayed job other arguments: ``app.run(conn, app.edit(job_id, job))``. Raises JobError if it left."""
        return replace_payload(job_id, self._wanted(job, Options()), self.outbox, self._schema_ids)

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
        def wanted(headers: Headers) -> list[Wanted]:
            added = dict(headers.items() - (given.get("headers") or {}).items())

            def make(job: Job, own: EnqueueOptions) -> Wanted:
                mine = {**added, **(own["headers"] or {})} if "headers" in own else headers
                return self._wanted(job, _options({**given, **own, "headers": mine}))

            return flow.wanted(make)

        def store(headers: Headers) -> Steps[UUID]:
            ids = yield from store_jobs(wanted(headers), self.outbox, self._schema_ids)
            return ids[-1]

        headers = given.get("headers") or {}
        jobs = [one.job for one in wanted(headers)] if self._publish_middleware else []
        return stored_within(self._publish_middleware, jobs, headers, store)

    def _store_jobs(self, jobs: Iterable[Job], given: EnqueueOptions) -> Steps[list[UUID]]:
        def store(headers: Headers) -> Steps[list[UUID]]:
            options = _options({**given, "headers": headers})
            return store_jobs([self._wanted(job, options) for job in jobs], self.outbox, self._schema_ids)

        jobs = list(_several(jobs, "enqueue"))
        return stored_within(self._publish_middleware, jobs, given.get("headers"), store)

    def _wanted(self, job: Job, options: Options) -> Wanted:
        check_kind(type(job), Job, "enqueue")
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
        def store(headers: Headers) -> Steps[list[UUID]]:
            trace = traceparent or current_traceparent()
            envelopes = []
            topics: dict[type[Message], str] = {}
            for message in messages:
                model = type(message)
                if model not in topics:
                    check_kind(model, kind, "publish" if kind is Event else "enqueue")
                    topics[model] = self.topic_of(model)
                envelopes.append(Envelope(message, topics[model], headers, trace))
            return self.outbox.store(envelopes, self._schema_ids, uuids7)

        messages = list(_several(messages, "publish"))
        return stored_within(self._publish_middleware, messages, headers, store)


def _options(given: EnqueueOptions) -> Options:
    unknown = [name for name in given if name not in EnqueueOptions.__annotations__]
    if unknown:
        raise ConfigError(
            f"enqueue: no option {unknown[0]!r}", remedy=f"options are: {', '.join(EnqueueOptions.__annotations__)}"
        )
    options = Options(**given)
    return options if options.traceparent is not None else replace(options, traceparent=current_traceparent())


def _several(messages: Iterable[M] | Message, where: str) -> Iterable[M]:
    """Return the messages. Raises ConfigError for a single one, whose fields it would be to go through."""
    if isinstance(messages, Message):
        raise ConfigError(f"{where}_many: one {type(messages).__name__}", remedy=f"{where}, or a list")
    return messages
