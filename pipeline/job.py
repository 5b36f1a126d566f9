"""Jobs with their options in, the statements that store them out: outbox rows or due rows, and their tracking rows.

All in the caller's transaction: a job, its place in the waiting room and what is told of it exist together or not at
all. Everything is encoded and checked before the first row is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

from pipeline.errors import ConfigError, JobError, SchemaError
from pipeline.event import Job
from pipeline.outbox import Envelope, Outbox, SchemaIds, Statement, Steps
from pipeline.retry import RetryPolicy
from pipeline.row import COLUMNS, placeholders, storable
from pipeline.terms import HEADER, Terms, is_number
from pipeline.topics import PRIORITIES, Priority, priority_topic
from pipeline.unique import LONGEST_S, Claim, Unique, claim

__all__ = [
    "FINISHED",
    "EnqueueOptions",
    "OnFailure",
    "Options",
    "State",
    "Unique",
    "Wanted",
    "replace_payload",
    "store_jobs",
]

State = Literal["blocked", "delayed", "waiting", "running", "retrying", "done", "dead", "cancelled"]
OnFailure = Literal["fail", "ignore", "continue"]

FINISHED: tuple[State, ...] = ("done", "dead", "cancelled")
_TAGS = 32
_TAG_CHARS = 100
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class EnqueueOptions(TypedDict, total=False):
    """The keyword arguments of ``enqueue``: the fields of Options."""

    delay_s: float
    run_at: datetime | None
    unique: Unique | None
    tags: Sequence[str]
    priority: Priority
    timeout_s: float | None
    retry: RetryPolicy | None
    expires_s: float | None
    track: bool | None
    headers: Mapping[str, str] | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """How jobs are enqueued. Raises ConfigError for what cannot be.

    ``delay_s`` counts from the enqueue by the database's clock; ``run_at`` is a time with a zone. ``timeout_s`` and
    ``retry`` hold in place of what the handler declares, its fatal and uncounted errors stay its own; ``expires_s``
    after its time came, the job does not begin any more. ``track`` None means what the job's class says.
    """

    delay_s: float = 0
    run_at: datetime | None = None
    unique: Unique | None = None
    tags: Sequence[str] = ()
    priority: Priority = "normal"
    timeout_s: float | None = None
    retry: RetryPolicy | None = None
    expires_s: float | None = None
    track: bool | None = None
    headers: Mapping[str, str] | None = None
    traceparent: str | None = None
    terms: Terms = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", Terms(self.timeout_s, self.retry, self.expires_s))
        if HEADER in (self.headers or ()):
            raise ConfigError(f"header {HEADER} is ours", remedy="timeout_s=, retry= and expires_s= write it")
        if not is_number(self.delay_s) or not 0 <= self.delay_s <= LONGEST_S:
            raise ConfigError(f"delay_s={self.delay_s!r}", remedy="a number of seconds, from 0 to 100 years")
        if self.run_at is not None:
            if self.delay_s:
                raise ConfigError("delay_s and run_at together", remedy="one of them")
            if not isinstance(self.run_at, datetime):
                raise ConfigError(f"run_at={self.run_at!r} is not a datetime", remedy="datetime(…, tzinfo=UTC)")
            if self.run_at.utcoffset() is None:
                raise ConfigError(
                    f"run_at={self.run_at.isoformat()} has no time zone", remedy="datetime(…, tzinfo=UTC) or ZoneInfo"
                )
        if not isinstance(self.tags, list | tuple) or len(self.tags) > _TAGS or not all(map(_is_tag, self.tags)):
            raise ConfigError(f"tags={self.tags!r}", remedy="a list of at most 32 texts, of 1 to 100 characters each")
        if self.priority not in PRIORITIES:
            raise ConfigError(f"priority={self.priority!r}", remedy=f"one of: {', '.join(PRIORITIES)}")
        if self.unique is not None and not isinstance(self.unique, Unique):
            raise ConfigError(
                f"unique={self.unique!r}", remedy='unique=Unique(key="order-7"), or Unique(by=("order_id",))'
            )
        if self.unique is not None and self.track is False:
            raise ConfigError("unique jobs are tracked", remedy="leave track=False out")

    @property
    def row_headers(self) -> Mapping[str, str]:
        """The headers of the row: what was given, and the job's terms."""
        return {**(self.headers or {}), HEADER: self.terms.header()} if self.terms else self.headers or {}

    def tracks(self, job: Job) -> bool:
        """Whether the job gets a row in ``pipeline.job``."""
        kind = job.message_type
        if self.track and not kind.track:
            raise ConfigError(
                f"{kind.name}: track=True, but its workers tell nothing of a class with track=False",
                remedy="take track=False out of the class",
            )
        tracked = kind.track if self.track is None else self.track
        if self.unique is not None and not tracked:
            raise ConfigError(f"{kind.name}: unique needs a tracked job", remedy="take track=False out of the class")
        return tracked


@dataclass(frozen=True, slots=True)
class Wanted:
    """One job to be stored. ``queue`` is the full name.

    Children of a flow have ``parent`` and ``place`` (among its children), parents ``children`` (how many).
    """

    id: UUID
    job: Job
    queue: str
    options: Options
    parent: UUID | None = None
    place: int = 0
    on_failure: OnFailure | None = None
    children: int = 0


def store_jobs(orders: Sequence[Wanted], outbox: Outbox, schema_ids: SchemaIds) -> Steps[list[UUID]]:
    """Encode and store jobs; return their ids in order, or of those that hold their unique keys.

    Raises ConfigError, SchemaError, or JobError where a key is taken and its rule is to reject: nothing is written
    then.
    """
    rows: dict[UUID, tuple[Any, ...]] = {}
    for order in orders:
        order.options.tracks(order.job)
        if order.options.terms and outbox.columns.get("headers", "headers") is None:
            raise ConfigError(
                f"{outbox.schema}.{outbox.table} has no headers: no job can have a timeout_s, retry or expires_s",
                remedy="name a jsonb column: Outbox(columns={'headers': …}), or declare them with the handler",
            )
        schema_id = yield from schema_ids.find(order.queue, type(order.job))
        topic = priority_topic(order.queue, order.options.priority)
        envelope = Envelope(order.job, topic, order.options.row_headers, order.options.traceparent)
        rows[order.id] = (_WAITING_ROOM if _later(order) else outbox).row(order.id, envelope, schema_id)
        if _later(order):
            _check_leaves(order, rows[order.id], outbox)
    claims = {order.id: one for order in orders if (one := _claim(order))}
    holders = yield from claim(list(claims.values()))
    stored = [order for order in orders if holders.get(order.id, order.id) == order.id]
    now = [order for order in stored if not _later(order)]
    later = [order for order in stored if _later(order)]
    if now:
        yield from outbox.put([rows[order.id] for order in now], [order.id for order in now])
    if later:
        yield Statement(_DUE, [(*rows[order.id], *_time(order)) for order in later], values=_DUE_VALUES)
    tracked = [order for order in stored if order.options.tracks(order.job)]
    if tracked:
        yield Statement(_TRACK, [(json.dumps([_told(order, claims.get(order.id)) for order in tracked]),)])
    return [holders.get(order.id, order.id) for order in orders]


def replace_payload(job_id: UUID | str, order: Wanted, outbox: Outbox, schema_ids: SchemaIds) -> Steps[None]:
    """Give a job that has not left other arguments. Raises JobError where it left, or is of another type."""
    schema_id = yield from schema_ids.find(order.queue, type(order.job))
    row = _WAITING_ROOM.row(UUID(str(job_id)), Envelope(order.job, order.queue), schema_id)
    _check_leaves(order, row, outbox)
    values = dict(zip(COLUMNS, row, strict=True))
    given = (values["payload"], values["aggregateid"], str(job_id), order.job.message_type.name)
    if not (yield Statement(_EDIT, [given], returns=True)):
        raise JobError(
            f"job {job_id}: no delayed {order.job.message_type.name} with this id", remedy="pipeline jobs show ID"
        )


def _later(order: Wanted) -> bool:
    return bool(order.children or order.options.delay_s or order.options.run_at is not None)


def _is_tag(tag: object) -> bool:
    return isinstance(tag, str) and 0 < len(tag) <= _TAG_CHARS and storable(tag)


def _check_leaves(order: Wanted, row: Sequence[Any], outbox: Outbox) -> None:
    """Refuse what could wait but not leave, and would keep all others from leaving: no jsonb holds U+0000."""
    name = order.job.message_type.name
    if outbox.payload != "json":
        return
    if order.job.message_type.format != "json":
        raise ConfigError(f"{name}: {outbox.schema}.{outbox.table} holds JSON", remedy='declare it with format="json"')
    if _NUL.search(row[COLUMNS.index("payload")]):
        raise SchemaError(f"{name}: holds the character U+0000, which no jsonb can", remedy="leave it out")


def _time(order: Wanted) -> tuple[str | None, float]:
    """When it is due: a fixed time, or seconds from now."""
    if order.children:
        return ("infinity", 0.0)
    run_at = order.options.run_at
    return (None if run_at is None else run_at.isoformat(), float(order.options.delay_s))


def _claim(order: Wanted) -> Claim | None:
    unique = order.options.unique
    if unique is None:
        return None
    return Claim(unique.key_of(order.job, order.queue), order.id, order.job.message_type.name, unique)


def _told(order: Wanted, claimed: Claim | None) -> dict[str, Any]:
    options = order.options
    state: State = "blocked" if order.children else "delayed" if _later(order) else "waiting"
    return {
        "id": str(order.id),
        "queue": order.queue,
        "type": order.job.message_type.name,
        "state": state,
        "priority": options.priority,
        "tags": list(dict.fromkeys(options.tags)) or None,
        "delay_s": options.delay_s if state == "delayed" else None,
        "run_at": options.run_at.isoformat() if options.run_at is not None else None,
        "unique_key": claimed and claimed.key,
        "parent": str(order.parent) if order.parent else None,
        "place": order.place,
        "on_failure": order.on_failure,
        "children": order.children,
        "terms": options.terms.data() or None,
    }


_WAITING_ROOM = Outbox()
"""Rows of ``pipeline.due`` have the columns of our own outbox, whatever table they go to in the end."""

_DUE_VALUES = placeholders(COLUMNS, 0, "bytes").removesuffix(")") + (
    ", coalesce(CAST(CAST(%s AS text) AS timestamptz), clock_timestamp() + make_interval(secs => %s)))"
)
_DUE = f"INSERT INTO pipeline.due ({', '.join(COLUMNS)}, due_at) VALUES {_DUE_VALUES}"  # noqa: S608 — fixed names

_EDIT = """
UPDATE pipeline.due SET payload = %s, aggregateid = %s WHERE id = CAST(%s AS uuid) AND type = %s RETURNING id
"""

_TRACK = """
INSERT INTO pipeline.job (id, queue, type, state, priority, tags, due_at, unique_key, parent, place, on_failure,
                          children, terms)
SELECT x.id, x.queue, x.type, x.state, x.priority, x.tags,
       coalesce(x.run_at, clock_timestamp() + make_interval(secs => x.delay_s)),
       x.unique_key, x.parent, x.place, x.on_failure, x.children, x.terms
FROM json_to_recordset(CAST(%s AS json)) AS x(id uuid, queue text, type text, state text, priority text, tags text[],
     delay_s float8, run_at timestamptz, unique_key text, parent uuid, place integer, on_failure text,
     children integer, terms jsonb)
"""
