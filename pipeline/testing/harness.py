"""An application's events and jobs in; what its handlers did with them out, in milliseconds and without servers.

The settlement is that of production (``pipeline.worker``, ``pipeline.redrive``, the codec), on a broker in memory and
a clock that jumps. The same seed gives the same run, faults among it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any, TypeVar, Unpack
from uuid import UUID

from pipeline.app import Pipeline
from pipeline.deadletter import Selection
from pipeline.event import Event, Job, Message
from pipeline.flow import Flow
from pipeline.job import EnqueueOptions, Wanted, store_jobs
from pipeline.jobs import JobRow, find
from pipeline.metrics import SilentMeter
from pipeline.outbox import SchemaIds, Steps
from pipeline.record import Header
from pipeline.redrive import Redrive
from pipeline.scheduler import Scheduler
from pipeline.surroundings import State
from pipeline.testing.arrivals import Arrivals
from pipeline.testing.assertions import rows_of
from pipeline.testing.broker import Broker
from pipeline.testing.clock import Clock
from pipeline.testing.commands import Commands
from pipeline.testing.connection import AsyncFakeConnection, FakeConnection
from pipeline.testing.faults import Faults, Misfortune
from pipeline.testing.fleet import Fleet, chosen
from pipeline.testing.inbox import Inbox
from pipeline.testing.jobs import Jobs
from pipeline.testing.letters import Letters
from pipeline.testing.loop import Course
from pipeline.testing.producer import AckProducer
from pipeline.testing.recorder import Recorder
from pipeline.testing.schemas import Schemas
from pipeline.testing.seen import Dead, Handled, Retry
from pipeline.testing.stored import Row, Tables
from pipeline.testing.ticks import Ticks
from pipeline.topics import TopicSpec
from pipeline.worker import Limits
from pipeline.worker.delivery import Outcome
from pipeline.writers import Connection

__all__ = ["Harness", "NotIdle"]

M = TypeVar("M", bound=Message)
R = TypeVar("R")
_LIMIT_S = 30 * 86_400.0
_SOON_S = 0.25  # what has settled is committed within this
_QUIET_TURNS = 6
_MOST_TURNS = 300_000  # some ten seconds: what circulates for ever must end before its time does
_OUTAGE_S = 5.0
_NONE = Faults()
_NEVER = 1 << 30
_LIMITS = Limits(concurrency=8, records=200, backlog=20, drain_s=5)


class NotIdle(AssertionError):
    """Work was left when the time was over."""


class Harness:
    """One application, its broker and its workers.

    ``groups`` are names, short or full, of the groups and queues that run here; all where none is given. ``workers``
    is how many share each group at the beginning. ``state`` is what handlers find in ``ctx.state``: lifespans are not
    entered, as what they open is what tests replace. ``schedules`` lets their ticks come by the clock; while
    ``scheduler_down`` is set none comes, and nothing that is delayed leaves.
    """

    def __init__(
        self,
        app: Pipeline,
        *,
        groups: Sequence[str] = (),
        seed: int = 0,
        faults: Faults = _NONE,
        workers: int = 1,
        limits: Limits = _LIMITS,
        start: datetime | None = None,
        state: Mapping[str, object] | None = None,
        schedules: bool = False,
    ) -> None:
        self.app = app
        self.clock = Clock(start) if start else Clock()
        self.broker = Broker(self.clock.wall, lambda key: self._arrivals.place(key))
        self._chance = Random(seed)  # noqa: S311 — a run that can be repeated is what is wanted
        self._misfortune = Misfortune(faults, self._chance)
        self._schemas = Schemas()
        self._letters = Letters(self.broker)
        self._jobs = Jobs(lambda: self.clock.now)
        self._arrivals = Arrivals(self.broker, self._jobs, self._misfortune, self._chance, app.partitions)
        self._groups = chosen(app, groups)
        self._recorder = Recorder(self._groups, self._schemas.decoder, lambda: self.clock.now)
        self.scheduler_down = False
        self._down_until: float | None = None
        self._course = Course(self.clock, self._run)
        self.inbox = Inbox(self.connection, self._jobs.settle)
        self._fleet = Fleet(
            self.broker,
            self.clock,
            self._schemas.decoder,
            chance=self._chance,
            misfortune=self._misfortune,
            # a crash that chance wanted is no record's fault
            limits=replace(limits, unclean_ends=_NEVER) if faults.crash or faults.expel else limits,
            ended=self._recorder.ended,
            call_of=self.inbox.around,
            state=State(**(state or {})),
            jobs=self._jobs,
            queue_of=app.queue_of,
        )
        self._ticks = Ticks(self._jobs, self._arrivals.append, self._store)
        self._scheduler = Scheduler(
            self._ticks,
            app.schedules if schedules else (),
            tidy=lambda: False,
            meter=SilentMeter(),
            health=self._fleet.health,
            clock=self.clock.monotonic,
        )
        self.broker.create(app.topics())
        theirs = {topic for group in self._groups.values() for topic in group.foreign}
        self.broker.create(TopicSpec(topic, app.partitions) for topic in sorted(theirs))
        for group in self._groups.values():
            for _ in range(workers):
                self._fleet.start(group)

    # ── what a test does ───────────────────────────────────────────────────────────────────────────────────────

    def publish(self, event: Event, **options: Any) -> UUID:
        """Publish an event in a transaction of its own; ``options`` as for ``Pipeline.publish``."""
        with self.connection() as conn:
            return self.app.publish(conn, event, **options)

    def enqueue(self, job: Job, **options: Unpack[EnqueueOptions]) -> UUID:
        """Enqueue a job in a transaction of its own; ``options`` as for ``Pipeline.enqueue``."""
        with self.connection() as conn:
            return self.app.enqueue(conn, job, **options)

    def enqueue_flow(self, flow: Flow, **options: Unpack[EnqueueOptions]) -> UUID:
        """Enqueue a flow in a transaction of its own; return the id of its last job."""
        with self.connection() as conn:
            return self.app.enqueue_flow(conn, flow, **options)

    def run(self, steps: Steps[R]) -> R:
        """Do what ``pipeline.jobs`` has, in a transaction of its own: ``harness.run(jobs.pause(queue))``."""
        with self.connection() as conn:
            return self.app.run(conn, steps)

    def job(self, job_id: UUID | str) -> JobRow:
        """Return the row of a tracked job. Raises JobError where there is none."""
        return self.run(find(job_id))

    def tick(self, name: str) -> UUID:
        """Make a tick of a schedule, for now; return its job's id."""
        return self.run(self.app.tick(name))

    def receive(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Sequence[Header] = ()
    ) -> None:
        """Let a record that others wrote arrive on a topic of theirs."""
        self.broker.append(topic, key, value, headers)

    def connection(self) -> FakeConnection:
        """Return a connection for code that publishes by itself: what it commits arrives here."""
        return FakeConnection(
            self.app,
            schemas=self._schemas,
            now=lambda: self.clock.now,
            on_commit=self._committed,
            keys=self._jobs.keys,
            commands=Commands(
                self._jobs,
                sent=self._arrivals.sent,
                send=self._arrivals.append,
                redriven=self._forget,
                ticks=self._ticks,
                look=self._fleet.look,
            ),
        )

    def aconnection(self) -> AsyncFakeConnection:
        """Return the same for ``await app.apublish(conn, …)``."""
        return AsyncFakeConnection(self.connection())

    def take(self, conn: Connection) -> int:
        """Take what a real connection's open transaction has published, as if it committed; return how many it was.

        What was taken before is not taken again. A delayed job keeps its delay, by this clock.
        """
        known, ahead = {row.id for row in self.published}, self.clock.now - datetime.now(UTC)
        fresh = [
            replace(
                row,
                payload=self._schemas.reframed(self.app, row.message, row.payload),
                due_at=None if row.due_at is None else row.due_at + ahead,
            )
            for row in rows_of(self.app, conn)
            if row.id not in known
        ]
        self._arrivals.take(fresh)
        return len(fresh)

    def run_until_idle(self, *, limit_s: float = _LIMIT_S) -> None:
        """Let everything be handled: every retry, every delayed job. The clock jumps to whatever comes next.

        What is in a paused queue stays there, and what is delayed while there is no scheduler.

        Raises NotIdle where something is left after ``limit_s`` seconds of the test's time.
        """
        self._until_s, self._idle = self.clock.passed_s + limit_s, True
        if not self._course.drive(self._until_s):
            raise self._not_idle()

    async def arun_until_idle(self, *, limit_s: float = _LIMIT_S) -> None:
        """Do the same on the running event loop: handlers share it with the test."""
        self._until_s, self._idle = self.clock.passed_s + limit_s, True
        await self._course.adrive()

    def run_for(self, seconds: float) -> None:
        """Let so much time pass, and handle what comes in it. A coroutine that takes longer is left in the middle.

        The next run goes on with it first; ``close`` ends it.
        """
        self._until_s, self._idle = self.clock.passed_s + seconds, False
        self._course.drive(self._until_s)

    def close(self) -> None:
        """End a handler that is in the middle."""
        self._course.close()

    def redrive(self, *, error: str | None = None, type_name: str | None = None, event_ids: Sequence[str] = ()) -> int:
        """Send open dead letters back to their groups' retry topics, as ``pipeline dlq redrive``; return how many."""
        producer = AckProducer(self.broker, self._chance)
        run = Redrive(
            self._letters,
            self._letters,
            producer,
            groups={group.dlq: group.name for group in self._groups.values()},
            topics=frozenset(self.broker.topics),
            clock=self.clock.monotonic,
            now_ms=lambda: int(self.clock.wall() * 1000),
            pause=self.clock.advance,
        )
        selection = Selection(self._dlqs, type=type_name, error=error, event_ids=tuple(event_ids))
        return run.run(selection).redriven

    # ── faults on demand ───────────────────────────────────────────────────────────────────────────────────────

    def crash(self, group: str | None = None) -> None:
        """Kill the workers of a group, or all. What they had in hand comes again; they are back a second later."""
        self._fleet.crash(None if group is None else self._full(group))

    def rebalance(self, group: str | None = None) -> None:
        """Let a second worker join each group, or one of several leave."""
        for name in self._groups if group is None else [self._full(group)]:
            self._fleet.rebalance(name)

    def duplicate(self, count: int = 1) -> None:
        """Publish the last records once more, as a relay does that was killed before it could confirm them."""
        self._arrivals.repeat(count)

    # ── what a test looks at ───────────────────────────────────────────────────────────────────────────────────

    @property
    def published(self) -> list[Row]:
        """Rows that were stored, in this order; those of delayed jobs among them."""
        return self._arrivals.rows

    @property
    def handled(self) -> list[Handled]:
        """Messages that were handled, in this order."""
        return self._recorder.handled

    @property
    def retries(self) -> list[Retry]:
        """Attempts that failed and were or will be repeated, in the order in which they failed."""
        return self._recorder.retries

    @property
    def dead_letters(self) -> list[Dead]:
        """Dead letters that were not redriven, oldest first."""
        return [self._recorder.dead(letter) for letter in self._letters.open(self._dlqs)]

    @property
    def faults(self) -> dict[str, int]:
        """How many faults of each kind there were."""
        return dict(self._misfortune.count)

    @property
    def not_ready(self) -> dict[str, str]:
        """What the workers' readiness probe would say, by part."""
        return dict(self._fleet.health.reasons)

    @property
    def notes(self) -> dict[str, str]:
        """What the readiness probe would say beside: breakers that are open, by group and type."""
        return dict(self._fleet.health.notes)

    @property
    def open(self) -> dict[str, int]:
        """What is not settled yet: records by group, and delayed jobs."""
        lags = {
            name: self.broker.lag(name, [*group.topics, *group.retry_topics]) for name, group in self._groups.items()
        }
        return {name: count for name, count in (*lags.items(), ("delayed", len(self._jobs.due))) if count}

    def messages(self, model: type[M]) -> list[M]:
        """Return the messages of a class that were published or enqueued here, oldest first."""
        return [row.message for row in self.published if isinstance(row.message, model)]

    # ── the run ────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> Generator[Any, Outcome, None]:
        quiet = turns = 0
        while True:
            turns += 1
            self._strike()
            sent = len(self.published), len(self._jobs.due)
            if not self.scheduler_down:
                self._scheduler.step()
            moved = sent != (len(self.published), len(self._jobs.due))
            moved = (yield from self._fleet.step()) or moved
            left_s, idle = self._until_s - self.clock.passed_s, self._idle
            if idle and (left_s <= 0 or turns > _MOST_TURNS) and self._busy:
                raise self._not_idle()
            if moved:
                quiet = 0
                continue
            quiet += 1
            if left_s <= 0 or (idle and not self._busy):
                return
            self.clock.advance(min(self._wait_s(quiet), left_s))

    def _wait_s(self, quiet: int) -> float:
        waits = [] if (due_s := self._fleet.due_in_s()) is None else [due_s]
        if not self.scheduler_down and (tick_s := self._ticks.due_in_s()) is not None:
            waits.append(tick_s)
        if self._down_until is not None:
            waits.append(self._down_until - self.clock.passed_s)
        idle_s = 1.0 if self._busy or self._misfortune.possible else _LIMIT_S  # nothing can come of itself
        wait_s = min(waits, default=idle_s)
        return max(min(wait_s, _SOON_S) if quiet <= _QUIET_TURNS else wait_s, 0.001)

    @property
    def _busy(self) -> bool:
        """Whether anything is open that may go on."""
        found = self.open
        held = self._jobs.paused & found.keys()
        waits = self.scheduler_down or (held and not self._jobs.leaving)  # a flow's parent, for what is paused
        return any(name not in held and not (waits and name == "delayed") for name in found)

    def _not_idle(self) -> NotIdle:
        return NotIdle(f"not settled: {self.open}; not ready: {self.not_ready or 'nothing'}")

    def _strike(self) -> None:
        if self._down_until is not None and self.clock.passed_s >= self._down_until:
            self.broker.down, self._down_until = False, None
        if not self._misfortune.possible or self.broker.down:
            return
        name = self._chance.choice(list(self._groups))
        if self._misfortune.strikes("rebalance"):
            self._fleet.rebalance(name)
        if self._misfortune.strikes("expel"):
            self._fleet.expel(name)
        if self._misfortune.strikes("outage"):
            self.broker.down, self._down_until = True, self.clock.passed_s + _OUTAGE_S

    # ── the way of a message ───────────────────────────────────────────────────────────────────────────────────

    def _committed(self, tables: Tables) -> None:
        self._jobs.track(tables.told)
        self._arrivals.take(tables.rows)
        if tables.commands is not None:
            tables.commands.commit()

    def _store(self, wanted: Wanted) -> None:
        with self.connection() as conn:
            self.app.run(conn, store_jobs([wanted], self.app.outbox, SchemaIds(strategy=self.app.subject_strategy)))

    def _forget(self, job_id: UUID) -> None:
        """Let the dead letter of a job count as redriven."""
        places = [one.place for one in self._letters.open(self._dlqs) if one.event_id == str(job_id)]
        self._letters.mark(places, "redriven")

    @property
    def _dlqs(self) -> tuple[str, ...]:
        return tuple(group.dlq for group in self._groups.values())

    def _full(self, group: str) -> str:
        return next(iter(chosen(self.app, [group])))
