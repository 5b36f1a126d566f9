"""Statements of a writer in, the rows that they would store out: as much of the tables as writers touch.

A statement that is not known is an error, never passed over: what is stored here is what a database would hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from pipeline.app import Pipeline
from pipeline.errors import SourceError
from pipeline.event import Message
from pipeline.outbox import Statement
from pipeline.row import COLUMNS, quoted
from pipeline.testing.schemas import Schemas

__all__ = ["BLOCKED", "Commands", "Row", "Tables"]

BLOCKED = datetime.max.replace(tzinfo=UTC)
"""The time of what waits for its children."""

_INSERT = re.compile(r"INSERT INTO (.+?) \((.*?)\) VALUES", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """A message as its row has it. ``due_at`` is set for a job that comes later."""

    id: UUID
    message: Message
    topic: str
    key: str
    payload: bytes
    headers: str | None
    traceparent: str | None
    due_at: datetime | None = None

    @property
    def record_headers(self) -> list[tuple[str, str | bytes | None]]:
        """Headers of its record, as connectors/outbox.json places them."""
        return [
            ("id", str(self.id)),
            ("type", self.message.message_type.name),
            ("headers", self.headers),
            ("traceparent", self.traceparent),
        ]


class Commands(Protocol):
    """What is asked and commanded of jobs that exist: ``pipeline.testing.commands.Commands``."""

    later: list[Callable[[], None]]

    def run(self, statement: Statement) -> list[tuple[Any, ...]] | None:
        """Return what a statement returns; None where it is none of these."""

    def commit(self) -> None:
        """Do what was commanded."""


class Tables:
    """Rows of one transaction, those of tracked jobs, and the unique keys that jobs hold. ``now`` gives the time (UTC).

    ``commands`` answers what is asked of jobs; None where none can exist.
    """

    def __init__(
        self, app: Pipeline, schemas: Schemas, now: Callable[[], datetime], commands: Commands | None = None
    ) -> None:
        self.rows: list[Row] = []
        self.told: list[dict[str, Any]] = []
        self.commands = commands
        self.keys: dict[str, tuple[UUID, datetime | None]] = {}
        self._app = app
        self._schemas = schemas
        self._now = now
        self._ours = {theirs or ours: ours for ours, theirs in app.outbox.columns.items()}

    def run(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Do what a statement does. Raises SourceError for one that is not known here."""
        sql = statement.sql.strip()
        if "schema_id FROM" in sql:
            return [(schema_id,) for schema_id in self._schemas.find(self._app, *statement.rows[0])]
        if sql.startswith("INSERT INTO pipeline.job_key"):
            return self._claim(_json(statement))
        if sql.startswith(("SELECT 1 FROM pipeline.due WHERE", "SELECT 1 FROM pipeline.job WHERE id IN")):
            return []  # one transaction at a time
        if sql.startswith("SELECT key, job_id FROM pipeline.job_key"):
            return [(key, self.keys[key][0]) for key in _json(statement) if key in self.keys]
        if sql.startswith("DELETE FROM pipeline.job_key"):
            for one in _json(statement):
                if one["key"] in self.keys and self.keys[one["key"]][0] == UUID(one["id"]):
                    del self.keys[one["key"]]
            return []
        if sql.startswith("UPDATE pipeline.job_key"):
            self._hold(_json(statement))
            return []
        if sql.startswith("SELECT count(*) FROM pipeline.cancel_jobs"):
            self._cancel({UUID(text) for text in _json(statement)})
        if sql.startswith("WITH ready AS") and self._app.outbox.retain == "none":
            return [
                (len(json.loads(statement.rows[0][1])), len(self._app.outbox.slots))
            ]  # they were written, and count
        if sql.startswith("INSERT INTO pipeline.job "):
            self.told += _json(statement)
            return []
        if found_insert := _INSERT.match(sql):
            table, columns = found_insert[1], found_insert[2].replace('"', "").split(", ")
            if table in {"pipeline.due", f"{quoted(self._app.outbox.schema)}.{quoted(self._app.outbox.table)}"}:
                self.rows += [self._row(columns, row) for row in statement.rows]
                return []
        answer = None if self.commands is None else self.commands.run(statement)
        if answer is not None:
            return answer
        if "pipeline.cancel_jobs" in sql:
            return []
        raise SourceError(
            f"the connection of pipeline.testing does not know this statement: {sql.partition(chr(10))[0][:80]}",
            remedy="use a real database in this test",
        )

    def _row(self, columns: Sequence[str], values: Sequence[Any]) -> Row:
        has: Mapping[str, Any] = {
            self._ours.get(name, name): value for name, value in zip(columns, values, strict=False)
        }
        due_at = None
        if "due_at" in columns:
            run_at, delay_s = values[len(COLUMNS) :]
            due_at = self._now() + timedelta(seconds=delay_s)
            if run_at:
                due_at = BLOCKED if run_at == "infinity" else datetime.fromisoformat(run_at)
        payload = has["payload"].encode() if isinstance(has["payload"], str) else has["payload"]
        message = self._schemas.message(self._app, has.get("type"), payload)
        return Row(
            has["id"],
            message,
            has.get("topic") or self._app.topic_of(type(message)),
            has["aggregateid"],
            payload,
            _jsonb(has.get("headers")),
            has.get("traceparent"),
            due_at,
        )

    def _claim(self, wanted: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        taken = []
        for one in wanted:
            until = self.keys[one["key"]][1] if one["key"] in self.keys else self._now()
            if until is not None and until <= self._now():
                taken.append(one)
        self._hold(taken)
        return [(one["key"],) for one in taken]

    def _hold(self, claims: Sequence[Mapping[str, Any]]) -> None:
        for one in claims:
            until = None if one["period_s"] is None else self._now() + timedelta(seconds=one["period_s"])
            self.keys[one["key"]] = (UUID(one["id"]), until)

    def _cancel(self, ids: set[UUID]) -> None:
        """Take back what this transaction itself would have stored; of others ``commands`` knows."""
        self.rows = [row for row in self.rows if row.id not in ids]
        self.told = [one for one in self.told if UUID(one["id"]) not in ids]

    def state(self) -> tuple[Any, ...]:
        """Return what a savepoint keeps."""
        later = [] if self.commands is None else list(self.commands.later)
        return (list(self.rows), list(self.told), dict(self.keys), later)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to a savepoint."""
        self.rows, self.told, self.keys = state[:3]
        if self.commands is not None:
            self.commands.later = state[3]

    def clear(self) -> None:
        """Forget what was done."""
        self.restore(([], [], self.keys, []))


def _jsonb(text: str | None) -> str | None:
    """Return an object as PostgreSQL's jsonb writes it: short names first."""
    if text is None:
        return None
    data = sorted(json.loads(text).items(), key=lambda item: (len(item[0].encode()), item[0].encode()))
    return json.dumps(dict(data), ensure_ascii=False)


def _json(statement: Statement) -> Any:
    return json.loads(statement.rows[0][0])
