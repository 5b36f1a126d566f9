"""Groups in, their workers out: started, stepped, crashed, rebalanced and started again, all in one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from pipeline.app import Pipeline
from pipeline.codec import Decoder
from pipeline.definition import Group, Handler, Queue
from pipeline.errors import ConfigError, PipelineError
from pipeline.metrics import SilentMeter
from pipeline.surroundings import State
from pipeline.testing.broker import Broker
from pipeline.testing.clock import Clock
from pipeline.testing.consumer import GroupConsumer
from pipeline.testing.engine import InlineEngine, Running, as_coroutines
from pipeline.testing.faults import Crash, Misfortune
from pipeline.testing.jobs import Jobs
from pipeline.testing.producer import AckProducer
from pipeline.worker import Limits, Worker
from pipeline.worker.attempt import Attempts
from pipeline.worker.delivery import Outcome
from pipeline.worker.journal import Journal

__all__ = ["Fleet", "Health", "chosen"]

_RESTART_S = 1.0


class Health:
    """What workers say of themselves. ``reasons`` has what is not ready, and why; ``notes`` what is to be known."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def ready(self, part: str) -> None:
        """This part works."""
        self.reasons.pop(part, None)

    def not_ready(self, part: str, why: str) -> None:
        """This part does not, and why."""
        self.reasons[part] = why

    def note(self, part: str, what: str) -> None:
        """Something to know of a part that works; empty: no more."""
        self.notes.pop(part, None)
        if what:
            self.notes[part] = what


@dataclass(slots=True, eq=False)
class _Member:
    """One process that runs one group's worker."""

    group: Group
    worker: Worker
    source: GroupConsumer
    producer: AckProducer
    engine: InlineEngine
    queue: Queue
    journal: Journal | None


class Fleet:
    """Workers of some groups. ``ended`` hears of every attempt: the group's name and the outcome."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        decoder: Decoder,
        *,
        chance: Random,
        misfortune: Misfortune,
        limits: Limits,
        ended: Callable[[str, Outcome], None],
        call_of: Callable[[Handler], Callable[..., Any]],
        state: State,
        jobs: Jobs,
        queue_of: Callable[[str], Queue],
    ) -> None:
        self.health = Health()
        self._broker = broker
        self._clock = clock
        self._decoder = decoder
        self._chance = chance
        self._misfortune = misfortune
        self._limits = limits
        self._ended = ended
        self._call_of = call_of
        self._state = state
        self._jobs = jobs
        self._queue_of = queue_of
        self._members: list[_Member] = []
        self._absent: list[tuple[float, Group]] = []

    def start(self, group: Group) -> None:
        """Start a worker. Raises PipelineError."""
        runs, awaits = as_coroutines(group)
        source = GroupConsumer(self._broker, group.name, self._chance)
        producer = AckProducer(
            self._broker, self._chance, sleep=self._clock.advance, refuse=lambda: self._misfortune.strikes("refuse")
        )
        engines: list[InlineEngine] = []

        def make_engine(attempts: Attempts, put: Callable[[Outcome], None]) -> InlineEngine:
            engine = InlineEngine(
                attempts,
                put,
                awaits=awaits,
                clock=self._clock.monotonic,
                chance=self._chance,
                slow=lambda: self._misfortune.strikes("slow"),
                begins=lambda _delivery: self._misfortune.crash(),
                ends=lambda outcome: self._after(group.name, outcome),
            )
            engines.append(engine)
            return engine

        queue = self._queue_of(group.name)
        journal = None
        if any(handler.model.message_type.kind == "job" for handler in group.handlers):
            journal = Journal(
                self._jobs,
                queue,
                worker="harness",
                health=self.health,
                concurrency=self._limits.concurrency,
                threaded=False,
                control_s=0,
                clock=self._clock.monotonic,
                wall=self._clock.wall,
            )
        worker = Worker(
            runs,
            source,
            source,
            producer,
            self._decoder,
            meter=SilentMeter(),
            health=self.health,
            limits=self._limits,
            clock=self._clock.monotonic,
            wall=self._clock.wall,
            chance=self._chance.random,
            sleep=self._clock.advance,
            engine=make_engine,
            call_of=self._call_of,
            state=self._state,
            journal=journal,
        )
        worker.prepare()
        worker.join()
        self._members.append(_Member(group, worker, source, producer, engines[0], queue, journal))

    def step(self) -> Generator[object, Outcome, bool]:
        """Let every worker poll and work once; tell whether anything was done. Yields coroutines to be run."""
        self._return()
        moved = False
        for member in self._chance.sample(self._members, len(self._members)):
            if member not in self._members:
                continue
            try:
                self._misfortune.crash()
                polled = member.source.fetched
                member.worker.step()
                self._misfortune.crash()
                worked = yield from self._work(member)
                moved = moved or worked > 0 or member.source.fetched != polled
            except Crash:
                self._crash(member)
            except GeneratorExit:  # the run ends in the middle of a handler
                self._crash(member)
                raise
            except PipelineError:
                self._crash(member)
                if not self._misfortune.possible:
                    raise
        return moved

    def due_in_s(self) -> float | None:
        """Seconds until something that waits in a worker is due, or a worker comes back."""
        waits = [wait_s for member in self._members if (wait_s := member.worker.due_in_s()) is not None]
        waits += [self._jobs.token_in_s(m.queue) for m in self._members if m.journal is not None and m.journal.unpaid]
        waits += [max(0.0, at - self._clock.monotonic()) for at, _ in self._absent]
        return min(waits, default=None)

    def look(self) -> None:
        """Let the worker whose handler is in the middle tell of its job and obey, as it does all the time."""
        for member in self._members:
            if member.engine.halfway and member.journal is not None:
                member.journal.step()

    def crash(self, group: str | None = None) -> int:
        """Kill the workers of a group, or all; others start in their place. Return how many."""
        victims = [member for member in self._members if group in {None, member.group.name}]
        for member in victims:
            self._crash(member)
        return len(victims)

    def rebalance(self, group: str) -> None:
        """Let a worker join a group that has one, or one of several leave in good order; nothing without a broker."""
        if self._broker.down:
            return
        members = [member for member in self._members if member.group.name == group]
        if len(members) == 1:
            self.start(members[0].group)
        elif members:
            leaving = self._chance.choice(members)
            try:
                leaving.worker.drain()
                leaving.worker.close()
            except PipelineError:
                self._crash(leaving)
                if not self._misfortune.possible:
                    raise
            else:
                self._members.remove(leaving)

    def expel(self, group: str) -> None:
        """Let a group take one of its workers for dead, as after a stop that was too long."""
        members = [member for member in self._members if member.group.name == group]
        if members:
            self._chance.choice(members).source.expel()

    def _work(self, member: _Member) -> Running:
        if member.journal is not None:
            member.journal.step()
        done = yield from member.engine.work(self._chance.randint(1, self._limits.concurrency))
        if member.journal is not None:
            member.journal.step()
        return done

    def _after(self, group: str, outcome: Outcome) -> None:
        self._misfortune.crash()
        self._ended(group, outcome)

    def _crash(self, member: _Member) -> None:
        if member not in self._members:  # it was gone before its handler had ended
            return
        member.source.crash()
        member.producer.crash()
        member.engine.stop()
        self._members.remove(member)
        if not any(other.group is member.group for other in self._members):
            self._absent.append((self._clock.monotonic() + _RESTART_S, member.group))

    def _return(self) -> None:
        """Start workers again that are gone."""
        now = self._clock.monotonic()
        waiting, self._absent = self._absent, []
        for at, group in waiting:
            if at > now or self._broker.down:
                self._absent.append((max(at, now + _RESTART_S) if self._broker.down else at, group))
            else:
                self.start(group)


def chosen(app: Pipeline, names: Iterable[str]) -> dict[str, Group]:
    """Return the groups of these names, short or full; all where none is given. Raises ConfigError."""
    known = app.groups
    found = {}
    for name in names:
        full = name if name in known else next((n for n in known if n.rpartition(".")[2] == name), None)
        if full is None:
            raise ConfigError(f"no handlers for {name}", remedy=f"groups are: {', '.join(known) or 'none'}")
        found[full] = known[full]
    return found or known
