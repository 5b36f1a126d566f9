"""Statements of ``pipeline.jobs`` in, what they return out; what they command is done at the commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from pipeline.job import FINISHED
from pipeline.jobs import JobRow
from pipeline.outbox import Statement
from pipeline.testing.jobs import Jobs
from pipeline.testing.schemas import own_value
from pipeline.testing.stored import BLOCKED, Row
from pipeline.testing.ticks import Ticks

__all__ = ["Commands"]

_Rows = list[tuple[Any, ...]]
_Given = Sequence[Any]


class Commands:
    """What one transaction asks and commands of ``jobs``.

    ``sent`` finds the row of a job that has left, ``send`` sends it again, ``redriven`` forgets its dead letter;
    ``ticks`` has the schedules. ``look`` lets workers tell of what is in the middle, and obey.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        sent: Callable[[UUID], Row | None],
        send: Callable[[Row], None],
        redriven: Callable[[UUID], None],
        ticks: Ticks,
        look: Callable[[], None],
    ) -> None:
        self._ticks = ticks
        self._look = look
        self.later: list[Callable[[], None]] = []
        self._jobs = jobs
        self._sent = sent
        self._send = send
        self._redriven = redriven
        self._known: tuple[tuple[str, Callable[[_Given], _Rows]], ...] = (
            ("FROM pipeline.job AS j WHERE j.id = CAST", self._find),
            ("FROM pipeline.job AS j WHERE j.id < CAST", lambda given: self._list("", "", "", "", *given)),
            ("WITH kinds AS", lambda given: self._list("", given[1], given[3], given[5], *given[6:9])),
            ("WHERE j.tags @>", lambda given: self._list(*given[0:1], *given[4:9:2], *given[1:3], *given[9:])),
            ("SELECT queue, type, state, CAST(sum", self._counts),
            ("SELECT count(*) FROM pipeline.cancel_jobs(ARRAY( SELECT CAST(x", self._cancel_many),
            ("SELECT count(*) FROM pipeline.cancel_jobs", self._replace),
            ("SELECT state FROM pipeline.cancel_jobs", self._cancel),
            ("WITH moved AS ( UPDATE pipeline.due", self._reschedule),
            ("UPDATE pipeline.due SET payload", self._edit),
            ("WITH asked AS", self._again),
            ("SELECT k.job_id FROM pipeline.job AS j JOIN pipeline.job_key", self._held),
            ("INSERT INTO pipeline.control", self._pause),
            ("FROM pipeline.schedule AS s LEFT JOIN LATERAL", lambda _given: self._ticks.rows()),
            ("INSERT INTO pipeline.tick", lambda _given: [(self._jobs.now(),)]),
            ("UPDATE pipeline.tick SET job_id", self._ticked),
            ("UPDATE pipeline.schedule SET paused = true", lambda given: self._hold(given[0], paused=True)),
            ("UPDATE pipeline.schedule SET paused = false", lambda given: self._hold(given[0], paused=False)),
        )

    def run(self, statement: Statement) -> _Rows | None:
        """Return what a statement returns; None where it is none of these."""
        sql = " ".join(statement.sql.split())
        ask = next((ask for part, ask in self._known if part in sql), None)
        if ask is None:
            return None
        self._look()
        return ask(statement.rows[0])

    def commit(self) -> None:
        """Do what was commanded."""
        commands, self.later = self.later, []
        for command in commands:
            command()
        if commands:
            self._look()

    def _find(self, given: _Given) -> _Rows:
        row = self._jobs.row(UUID(given[0]))
        return [] if row is None else [_values(row)]

    def _list(self, tag: str, queue: str, kind: str, state: str, before: str, floor: str, limit: int) -> _Rows:
        found = [
            _values(row)
            for row in self._jobs.rows()
            if UUID(floor) <= row.id < UUID(before)
            and (not tag or tag in (row.tags or ()))
            and queue in {"", row.queue}
            and kind in {"", row.type}
            and state in {"", row.state}
        ]
        return found[:limit]

    def _counts(self, given: _Given) -> _Rows:
        return [row for row in self._jobs.counts() if given[0] in {"", row[0]}]

    def _replace(self, given: _Given) -> _Rows:
        ids = [UUID(text) for text in json.loads(given[0])]
        self.later.append(lambda: self._jobs.cancel(ids))
        return [(len(ids),)]

    def _cancel(self, given: _Given) -> _Rows:
        job_id = UUID(given[0])
        row = self._jobs.row(job_id)
        self.later.append(lambda: self._jobs.cancel([job_id]))
        if row is None:
            return []
        return [("cancelled" if row.state in {"blocked", "delayed"} else row.state,)]

    def _reschedule(self, given: _Given) -> _Rows:
        run_at, delay_s, job_id = given
        if UUID(job_id) not in self._jobs.due or self._jobs.due[UUID(job_id)][0] == BLOCKED:
            return []
        at = datetime.fromisoformat(run_at) if run_at else self._jobs.now() + timedelta(seconds=delay_s)
        self.later.append(lambda: self._jobs.reschedule(UUID(job_id), at))
        return [(at,)]

    def _edit(self, given: _Given) -> _Rows:
        payload, key, job_id, kind = given
        due_at, row = self._jobs.due.get(UUID(job_id), (BLOCKED, None))
        if row is None or row.message.message_type.name != kind:
            return []
        payload = payload.encode() if isinstance(payload, str) else payload
        edited = replace(row, payload=payload, key=key, message=own_value(payload, type(row.message)))
        self.later.append(lambda: self._jobs.due.update({row.id: (due_at, edited)}))
        return [(job_id,)]

    def _cancel_many(self, given: _Given) -> _Rows:
        ids = [UUID(text) for text in json.loads(given[0])]
        self.later.append(lambda: self._jobs.cancel(ids))
        rows = [row for one in ids if (row := self._jobs.row(one)) is not None]
        return [(sum(row.finished_at is None or row.cancel_at is not None for row in rows),)]

    def _again(self, given: _Given) -> _Rows:
        found: dict[object, UUID] = {}
        for job_id in sorted(UUID(text) for text in json.loads(given[0])):
            known, row = self._jobs.row(job_id), self._sent(job_id)
            if known is None or known.state not in {"dead", "cancelled"} or row is None:
                continue
            other = self._jobs.holder(job_id)
            holder = None if other is None else self._jobs.row(other)
            if other is None or (holder is not None and holder.state in FINISHED):
                found[self._jobs.key(job_id) or job_id] = job_id  # of one key the newest
        for job_id in found.values():
            self.later.append(partial(self._return, job_id))
        return [(job_id,) for job_id in sorted(found.values())]

    def _held(self, given: _Given) -> _Rows:
        other = self._jobs.holder(UUID(given[0]))
        return [] if other is None else [(other,)]

    def _return(self, job_id: UUID) -> None:
        row = self._sent(job_id)
        assert row is not None
        self._jobs.take_key(job_id)
        self._send(row)
        self._jobs.again(row.id)
        self._redriven(row.id)

    def _ticked(self, given: _Given) -> _Rows:
        job_id, schedule, at = given
        self.later.append(lambda: self._ticks.keep(schedule, datetime.fromisoformat(at), UUID(job_id)))
        return []

    def _hold(self, name: str, *, paused: bool) -> _Rows:
        if not self._ticks.knows(name):
            return []
        self.later.append(lambda: self._ticks.hold(name, paused=paused))
        return [(name,)]

    def _pause(self, given: _Given) -> _Rows:
        queue, paused = given
        self.later.append(lambda: (self._jobs.paused.add if paused else self._jobs.paused.discard)(queue))
        return []


def _values(row: JobRow) -> tuple[Any, ...]:
    return tuple(getattr(row, field.name) for field in fields(row))
