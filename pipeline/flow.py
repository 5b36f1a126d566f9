"""Jobs that belong together in, what is stored for them out: children first, then their parent with their results.

Where a flow is stands in PostgreSQL: a parent waits as an encoded row until the last of its children has finished, and
the statement that finishes a child also counts it off. A crash at any point leaves the flow where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from pipeline.errors import ConfigError
from pipeline.event import Job
from pipeline.job import EnqueueOptions, OnFailure, Wanted

__all__ = ["Flow", "batch", "chain"]

_MOST = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """A job that runs when its children have finished: jobs, or flows of their own.

    ``on_failure`` says what it means to the job when one of them is dead or cancelled: ``fail``, it is dead too and
    never runs; ``ignore``, it runs when all others have finished; ``continue``, it runs at once. ``options`` are the
    job's own, over those that the flow is enqueued with.
    """

    job: Job
    children: Sequence[Flow | Job] = ()
    on_failure: OnFailure = "fail"
    options: EnqueueOptions = field(default_factory=EnqueueOptions)

    def wanted(self, make: Callable[[Job, EnqueueOptions], Wanted]) -> list[Wanted]:
        """Return what is to be stored, children before parents. Raises ConfigError for a cycle."""
        found = list(self._walk(make, None, 0, None, ()))
        if len(found) > _MOST:
            raise ConfigError(f"a flow of {len(found)} jobs", remedy=f"at most {_MOST}")
        return found

    def _walk(
        self,
        make: Callable[[Job, EnqueueOptions], Wanted],
        parent: UUID | None,
        place: int,
        rule: OnFailure | None,
        above: tuple[Flow, ...],
    ) -> Iterator[Wanted]:
        name = self.job.message_type.name
        if self in above:
            raise ConfigError(f"flow of {name}: it is its own child", remedy="a flow is a tree: take the cycle out")
        if self.on_failure not in {"fail", "ignore", "continue"}:
            raise ConfigError(f"flow of {name}: on_failure={self.on_failure!r}", remedy="fail, ignore or continue")
        mine = make(self.job, self.options)
        options = mine.options
        if options.delay_s or options.run_at is not None or options.unique is not None or not options.tracks(self.job):
            raise ConfigError(
                f"flow of {name}: its jobs are tracked, and neither delayed nor unique",
                remedy="leave these options out",
            )
        for number, child in enumerate(self.children):
            below = child if isinstance(child, Flow) else Flow(child)
            yield from below._walk(make, mine.id, number, self.on_failure, (*above, self))  # noqa: SLF001 — of this class
        yield replace(mine, parent=parent, place=place, on_failure=rule, children=len(self.children))


def chain(*jobs: Job, on_failure: OnFailure = "fail") -> Flow:
    """Return a flow that runs jobs one after another; each finds the one before it in ``ctx.children()``."""
    if not jobs:
        raise ConfigError("chain: no jobs", remedy="give it one at least")
    flow = Flow(jobs[0])
    for job in jobs[1:]:
        flow = Flow(job, (flow,), on_failure)
    return flow


def batch(jobs: Sequence[Job], then: Job, *, on_failure: OnFailure = "ignore") -> Flow:
    """Return a flow that runs jobs side by side and ``then`` when all have finished, however they did."""
    return Flow(then, tuple(jobs), on_failure)
