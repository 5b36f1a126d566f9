"""Settings in; the newest outbox rows as a person may see them, and pruning, out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from pipeline.config import Settings
from pipeline.endpoints import registry_address
from pipeline.errors import SchemaError
from pipeline.event import Message
from pipeline.failure import MASK
from pipeline.payload import Payload, look
from pipeline.postgres import prune as adapter
from pipeline.postgres.errors import translated
from pipeline.runtime.database import connect

if TYPE_CHECKING:
    from pipeline.registry.client import RegistrySchemas

__all__ = ["Pruned", "TailRow", "prune_outbox", "tail_outbox"]

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class TailRow:
    """One outbox row. ``key`` is masked with the payload where it holds the same text."""

    id: str
    at: datetime
    topic: str
    key: str
    type: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Pruned:
    """``rows`` deleted, or that would be; ``passed`` tells whether the relays have passed a point of an earlier run."""

    rows: int
    passed: bool
    slots: tuple[str, ...]
    lsn: str


def tail_outbox(
    settings: Settings,
    *,
    last: int,
    follow: bool,
    reveal: bool,
    models: Mapping[str, type[Message]],
    until: Callable[[], bool] = lambda: False,
) -> Iterator[TailRow]:
    """Yield the ``last`` rows, oldest first, and with ``follow`` what is committed from then on until ``until``.

    A row that commits later than one with a higher number comes when it commits, within the last thousand rows.
    Raises SourceError.
    """
    schemas = _Schemas(settings)
    with connect(settings) as conn, conn.cursor(row_factory=dict_row) as cursor:
        seen: dict[int, None] = {}
        rows = cursor.execute(_LAST, (last,)).fetchall()
        floor = max(rows[0]["seq"] - 1, rows[-1]["seq"] - _BEHIND) if rows else _newest(conn)
        while True:
            for row in rows:
                seen[row["seq"]] = None
                yield _shown(row, schemas, models, reveal=reveal)
            if not follow or until():
                return
            if not rows:
                time.sleep(_POLL_S)
            for old in list(seen)[: -2 * _BEHIND]:
                del seen[old]
            floor = max(floor, max(seen, default=floor) - _BEHIND)
            try:
                rows = cursor.execute(_NEXT, (floor, list(seen))).fetchall()
            except psycopg.Error as error:
                raise translated(error) from error


def prune_outbox(
    settings: Settings,
    *,
    retention_s: float,
    batch: int,
    execute: bool,
    wait_s: float,
    step: Callable[[int], None] = lambda _rows: None,
) -> Pruned:
    """Delete (or count) what page 3 of the design lets go. Raises SourceError while a slot is in doubt.

    ``wait_s``: how long to wait for the relays to pass this run's own point, where they have passed no earlier one.
    """
    with connect(settings) as conn:
        plan = adapter.plan(conn)
        if execute and plan.lsn:
            adapter.take_point(conn)
            deadline = time.monotonic() + wait_s
            while plan.horizon is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                plan = adapter.plan(conn)
        rows = adapter.prune(conn, retention_s, batch=batch, execute=execute, step=step)
    return Pruned(rows, plan.horizon is not None, plan.slots, plan.lsn)


class _Schemas:
    """The registry, asked for only where there is Avro to decode."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: RegistrySchemas | None = None

    def text(self, schema_id: int) -> str:
        if self._client is None:
            try:
                from pipeline.registry.client import RegistrySchemas  # an extra: pruning, and JSON, need none
            except ModuleNotFoundError as error:
                raise SchemaError(f"Avro, and the package {error.name} is missing: outbox-pipeline[worker]") from error
            address = registry_address(self._settings)
            self._client = RegistrySchemas(address.url, address.username, address.password)
        return self._client.text(schema_id)


def _shown(row: Mapping[str, Any], schemas: _Schemas, models: Mapping[str, type[Message]], *, reveal: bool) -> TailRow:
    try:
        payload = look(row["payload"], schemas, model=models.get(row["type"]), reveal=reveal)
    except SchemaError as error:
        payload = Payload(None, None, None, problem=error.what)
    hidden = not reveal and row["aggregateid"] in payload.secrets
    at = row["created_at"].replace(tzinfo=UTC)
    return TailRow(str(row["id"]), at, row["topic"], MASK if hidden else row["aggregateid"], row["type"], payload)


def _newest(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT coalesce(max(seq), 0) FROM pipeline.outbox").fetchone()
    return int(row[0]) if row else 0


_BEHIND = 1000
_COLUMNS = "id, seq, aggregateid, type, payload, topic, created_at"
_LAST = f"SELECT * FROM (SELECT {_COLUMNS} FROM pipeline.outbox ORDER BY seq DESC LIMIT %s) AS r ORDER BY seq"  # noqa: S608
_NEXT = f"SELECT {_COLUMNS} FROM pipeline.outbox WHERE seq > %s AND seq <> ALL(%s) ORDER BY seq LIMIT 1000"  # noqa: S608
