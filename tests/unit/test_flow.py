from __future__ import annotations

from uuid import UUID

import pytest

from pipeline import Job
from pipeline.errors import ConfigError
from pipeline.flow import Flow, chain
from pipeline.job import EnqueueOptions, Options, Wanted


class Step(Job, queue="steps"):
    n: int


class Maker:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self, job: Job, options: EnqueueOptions) -> Wanted:
        self.made += 1
        return Wanted(UUID(int=self.made), job, "steps", Options(**options))


def numbers(flow: Flow) -> list[int]:
    return [one.job.n for one in flow.wanted(Maker()) if isinstance(one.job, Step)]


def test_children_come_before_their_parents_and_know_them_and_their_place() -> None:
    flow = Flow(Step(n=0), [Step(n=1), Flow(Step(n=2), [Step(n=3)], "ignore"), Step(n=4)])
    assert numbers(flow) == [1, 3, 2, 4, 0]
    one, three, two, four, root = flow.wanted(Maker())
    assert [w.parent for w in (one, three, two, four, root)] == [root.id, two.id, root.id, root.id, None]
    assert [w.place for w in (one, two, four)] == [0, 1, 2]
    assert [w.children for w in (root, two, one)] == [3, 1, 0]
    assert (three.on_failure, two.on_failure, root.on_failure) == ("ignore", "fail", None)


def test_a_chain_may_be_as_long_as_a_flow() -> None:
    assert numbers(chain(*(Step(n=n) for n in range(10_000)))) == list(range(10_000))
    with pytest.raises(ConfigError, match="more than 10000 jobs"):
        numbers(chain(*(Step(n=n) for n in range(10_001))))


def test_flows_that_stand_in_many_places_are_refused_before_they_fill_the_memory() -> None:
    flow = Flow(Step(n=0))
    for n in range(1, 60):
        flow = Flow(Step(n=n), [flow, flow])
    make = Maker()
    with pytest.raises(ConfigError, match="more than 10000 jobs"):
        flow.wanted(make)
    assert make.made <= 10_000
