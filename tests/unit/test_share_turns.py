"""A worker of a share group commits at every turn: its next batch comes only once the one before is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from waiting import wait_until

from pipeline import Job, Pipeline
from pipeline.codec import Decoder
from pipeline.kafka.share import ShareGroup
from pipeline.metrics import SilentMeter
from pipeline.probes import Readiness
from pipeline.progress import Mark
from pipeline.record import Record
from pipeline.worker import COMMIT_S, Worker


class Quick(Job, queue="quick", format="json", track=False):
    n: int


class Batches:
    """Twelve batches of one record, as a share group's: none while the one before is not committed."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.given = self.committed = 0

    def open(self, topics: Mapping[str, Any], listener: Any) -> None:
        listener.assigned({(self.topic, 0): Mark(0)})

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        if self.given > self.committed or self.given == 12:
            return []
        self.given += 1
        body = b'{"n": %d}' % self.given
        return [Record(self.topic, 0, self.given - 1, None, body, [("type", b"Quick")], 0)]

    def commit(self, marks: Mapping[tuple[str, int], Mark], *, wait: bool) -> None:
        self.committed = max(self.committed, *(mark.offset for mark in marks.values()))

    def ends(self, partitions: Sequence[Any]) -> dict[Any, int]:
        return {}

    def reachable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Producer:
    def poll(self, wait_s: float = 0) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize(("commit_s", "handled", "committed"), [(ShareGroup.commit_s, 12, 12), (COMMIT_S, 1, 0)])
def test_batches_follow_each_other_at_one_time_where_each_turn_commits(
    commit_s: float, handled: int, committed: int
) -> None:
    app = Pipeline("shop", topic_prefix="", partitions=1)
    done: list[int] = []
    app.job(Quick)(lambda job, ctx: done.append(job.n))
    (group,) = app.groups.values()
    source = Batches(group.topics[0])
    worker = Worker(
        group, source, source, Producer(), Decoder(object()),  # type: ignore[arg-type]
        meter=SilentMeter(), health=Readiness("w"), commit_s=commit_s, clock=lambda: 1000.0,
    )  # fmt: skip

    def turned() -> bool:
        worker.step()
        return (len(done), source.committed) == (handled, committed)

    worker.prepare()
    worker.join()
    try:
        wait_until(turned, why=lambda: f"{len(done)} handled, {source.committed} committed")
        for _ in range(20):
            assert turned()  # the time stands still
    finally:
        worker.close()
