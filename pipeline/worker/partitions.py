"""The partitions that a worker has: opened and closed for a reason, and committed.

A partition flows while nothing holds it. What is committed is the offset below which all is settled, and beside it
what is settled above.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.progress import MOST_BYTES, Mark
from pipeline.worker.delivery import Assigned
from pipeline.worker.ports import Flow, Partition, Source

__all__ = ["Partitions"]

_RECOMMIT_S = 30.0
_LONG = MOST_BYTES * 3 // 4


class Partitions:
    """``mine`` has them by topic and number; what changed is committed every ``commit_s``. The poll thread only."""

    def __init__(self, source: Source, flow: Flow, commit_s: float) -> None:
        self.mine: dict[Partition, Assigned] = {}
        self.next_commit = 0.0
        self._next_recommit = 0.0
        self._commit_s = commit_s
        self._source = source
        self._flow = flow

    def pause(self, partitions: Iterable[Assigned], why: str) -> None:
        """Fetch no more of these until ``why`` has passed."""
        closing = [a for a in partitions if not a.paused and not a.closed]
        for assigned in partitions:
            assigned.paused.add(why)
        if closing:
            self._flow.pause([(a.topic, a.partition) for a in closing])

    def resume(self, partitions: Iterable[Assigned], why: str) -> None:
        """``why`` has passed: fetch these again that nothing else holds."""
        opening = []
        for assigned in partitions:
            if why in assigned.paused:
                assigned.paused.discard(why)
                if not assigned.paused and not assigned.closed:
                    opening.append((assigned.topic, assigned.partition))
        if opening:
            self._flow.resume(opening)

    def commit(self, now: float) -> None:
        """Commit what has changed, and now and then everything: a group's offsets expire."""
        self.next_commit = now + self._commit_s
        everything = now >= self._next_recommit
        if everything:
            self._next_recommit = now + _RECOMMIT_S
        marks = {}
        for partition, assigned in self.mine.items():
            mark = self._mark(assigned)
            if everything or mark != assigned.committed:
                marks[partition] = assigned.committed = mark
        if marks:
            self._source.commit(marks, wait=False)

    def commit_in_hand(self, partitions: Iterable[Assigned]) -> None:
        """Commit that this worker has these, and what it has begun. Raises BrokerError."""
        self._source.commit({(a.topic, a.partition): self._mark(a) for a in partitions}, wait=True)

    def commit_given_back(self, partitions: Iterable[Assigned]) -> None:
        """Commit that nobody has these that are not lost. Raises BrokerError."""
        marks = {(a.topic, a.partition): a.progress(in_hand=False).mark() for a in partitions if not a.lost}
        if marks:
            self._source.commit(marks, wait=True)

    def _mark(self, assigned: Assigned) -> Mark:
        """Return what to commit; where it grows too long, fetch no more until what is open has ended."""
        mark = assigned.progress(in_hand=True).mark()
        if len(mark.metadata) > _LONG:
            self.pause([assigned], "progress")
        elif "progress" in assigned.paused and len(mark.metadata) < _LONG // 2:
            self.resume([assigned], "progress")
        return mark
