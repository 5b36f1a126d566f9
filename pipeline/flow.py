"""Jobs that belong together in, what is stored for them out: children first, then their parent with their results.

Where a flow is stands in PostgreSQL: a parent waits as an encoded row until the last of its children has finished, and
the statement that finishes a child also counts it off. A crash at any point leaves the flow where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

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
        """Return what is to be stored, children before parents. Raises ConfigError for a cycle, and for too many."""
        found: list[Wanted] = []
        path = [_Step(self, self._first(make), iter(enumerate(self.children)))]
        above = {self}
        while path:
            step = path[-1]
            number, child = next(step.left, (0, None))
            if child is None:
                path.pop()
                above.discard(step.flow)
                found.append(step.wanted)
                continue
            below = child if isinstance(child, Flow) else Flow(child)
            if below in above:
                name = below.job.message_type.name
                raise ConfigError(f"flow of {name}: it is its own child", remedy="a flow is a tree: take the cycle out")
            if len(found) + len(path) >= _MOST:
                raise ConfigError(f"a flow of more than {_MOST} jobs", remedy="split it, or let a job enqueue the rest")
            mine = replace(
                below._first(make),  # noqa: SLF001 — of this class
                parent=step.wanted.id, place=number, on_failure=step.flow.on_failure,
            )  # fmt: skip
            path.append(_Step(below, mine, iter(enumerate(below.children))))
            above.add(below)
        return found

    def _first(self, make: Callable[[Job, EnqueueOptions], Wanted]) -> Wanted:
        """Return this flow's own job. Raises ConfigError for options that do not fit."""
        if not isinstance(self.job, Job):
            raise ConfigError(f"flow: {type(self.job).__name__} is not a Job", remedy="jobs, and flows of their own")
        name = self.job.message_type.name
        if self.on_failure not in {"fail", "ignore", "continue"}:
            raise ConfigError(f"flow of {name}: on_failure={self.on_failure!r}", remedy="fail, ignore or continue")
        mine = make(self.job, self.options)
        options = mine.options
        if options.delay_s or options.run_at is not None or options.unique is not None or not options.tracks(self.job):
            raise ConfigError(
                f"flow of {name}: its jobs are tracked, and neither delayed nor unique",
                remedy="leave these options out",
            )
        return replace(mine, children=len(self.children))


class _Step(NamedTuple):
    """A flow on the way from the root to where the walk is: its own job, and the children that were not walked yet."""

    flow: Flow
    wanted: Wanted
    left: Iterator[tuple[int, Flow | Job]]


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
