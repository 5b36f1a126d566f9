"""What a handler is told about the record that it handles, beside the message itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from pipeline.errors import ConfigError
from pipeline.headers import EVENT_ID, TRACEPARENT, RetryState
from pipeline.record import Header, Record
from pipeline.report import Child, Entry, JobCancelled
from pipeline.surroundings import State

__all__ = ["Context"]


class Context:
    """One attempt at one record. Read-only; where the record came from is told as of its first topic.

    Made for every attempt: it keeps what it is given and works the rest out when asked.
    """

    __slots__ = (
        "_conn",
        "_entry",
        "_group",
        "_headers",
        "_record",
        "_session",
        "_shared",
        "_state",
        "_timeout_s",
        "_type",
    )

    def __init__(
        self,
        record: Record,
        headers: Mapping[str, bytes | None],
        type_name: str,
        group: str,
        state: RetryState | None,
        entry: Entry | None = None,
        shared: State | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._conn: Any = None
        self._session: Callable[[], Any] | None = None
        self._shared = shared
        self._entry = entry
        self._record = record
        self._headers = headers
        self._type = type_name
        self._group = group
        self._state = state

    def __reduce__(self) -> tuple[Any, ...]:
        # on the way to a handler's process: the entry, the state and the connection are of this one
        return (
            Context,
            (self._record, dict(self._headers), self._type, self._group, self._state, None, None, self._timeout_s),
        )

    def __repr__(self) -> str:
        return f"Context({self.type}, event_id={self.event_id!r}, attempt={self.attempt}, group={self.group!r})"

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return 1 if self._state is None else self._state.attempt

    @property
    def timeout_s(self) -> float | None:
        """How long this attempt may take, in seconds; None: as long as it likes."""
        return self._timeout_s

    @property
    def type(self) -> str:
        """Full name of the message's type."""
        return self._type

    @property
    def group(self) -> str:
        """Full name of the consumer group."""
        return self._group

    @property
    def event_id(self) -> str:
        """Id of the event or job: the same at every attempt, redrive and replay. Of use to recognise duplicates."""
        found = self._headers.get(EVENT_ID)
        return found.decode(errors="replace") if found else f"{self.topic}-{self.partition}-{self.offset}"

    @property
    def topic(self) -> str:
        """Topic that the record was first read from."""
        return self._record.topic if self._state is None else self._state.origin.topic

    @property
    def partition(self) -> int:
        """Partition there."""
        return self._record.partition if self._state is None else self._state.origin.partition

    @property
    def offset(self) -> int:
        """Offset there."""
        return self._record.offset if self._state is None else self._state.origin.offset

    @property
    def key(self) -> bytes | None:
        """Key of the record."""
        return self._record.key

    @property
    def headers(self) -> Sequence[Header]:
        """All headers of the record as it was read, in order."""
        return tuple(self._record.headers)

    @property
    def traceparent(self) -> str | None:
        """W3C trace context of whoever wrote the message."""
        found = self._headers.get(TRACEPARENT)
        return found.decode(errors="replace") if found else None

    @property
    def timestamp(self) -> datetime:
        """When the outbox row was inserted (UTC), whatever topics the record went through since."""
        ms = self._record.timestamp_ms if self._state is None else self._state.origin.timestamp_ms
        return datetime.fromtimestamp(ms / 1000, UTC)

    @property
    def first_failure(self) -> datetime | None:
        """When its first attempt failed (UTC); None at the first attempt."""
        ms = None if self._state is None else self._state.first_failure_ms
        return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)

    @property
    def generation(self) -> int:
        """How many replays that are meant to repeat effects the record went through. None does yet: always 0."""
        return 0 if self._state is None else self._state.generation

    @property
    def state(self) -> State:
        """What the application's lifespans yielded: ``ctx.state.pool``."""
        return self._shared if self._shared is not None else State()

    # ── of a handler with inbox=True ───────────────────────────────────────────────────────────────────────────

    @property
    def conn(self) -> Any:  # psycopg's Connection, or AsyncConnection in a coroutine
        """The connection of the inbox's transaction: what is done on it is done once, or not at all.

        psycopg 3's; publish and enqueue on it too. It commits when the handler returns. Raises ConfigError where the
        handler was not declared with ``inbox=True``.
        """
        if self._conn is None:
            raise ConfigError(f"{self._type}: ctx.conn", remedy="declare the handler with inbox=True")
        return self._conn

    @property
    def session(self) -> Any:  # SQLAlchemy's Session, or AsyncSession in a coroutine
        """A SQLAlchemy session on ``ctx.conn``, made when it is first asked for: what it flushes is done once, too.

        It is flushed when the handler returns; it must not commit. Raises ConfigError without ``inbox=True``, without
        SQLAlchemy, and in tests without a database.
        """
        if self._session is None:
            remedy = "declare the handler with inbox=True"
            if self._conn is not None:
                remedy = "test what needs a session on a real database: there is none here"
            raise ConfigError(f"{self._type}: ctx.session", remedy=remedy)
        return self._session()

    def within(self, conn: Any, session: Callable[[], Any] | None = None) -> Self:  # as above
        """Return the same context, in the transaction of ``conn``, ``session`` in it: for what runs handlers."""
        self._conn, self._session = conn, session
        return self

    def among(self, entry: Entry | None, shared: State) -> Self:
        """Return the same context with what belongs to this process: for what runs handlers."""
        self._entry, self._shared = entry, shared
        return self

    @property
    def entry(self) -> Entry | None:
        """What is told of a tracked job: for what runs handlers."""
        return self._entry

    # ── of a tracked job; of no effect in events and untracked jobs ────────────────────────────────────────────

    def progress(self, done: float, total: float | None = None) -> None:
        """Tell how far the job is, as often as you like: stored some times a second at most. A sign of life too.

        Raises ConfigError for infinity and what is no number.
        """
        if self._entry is not None:
            self._entry.tell_progress(done, total)

    def heartbeat(self) -> None:
        """Tell that the job is alive: ``pipeline jobs show`` says when that was last."""
        if self._entry is not None:
            self._entry.news = True

    def result(self, value: object) -> None:
        """Leave a JSON value, at most 64 KiB, kept as long as the job's row. Stored when the attempt succeeds.

        Raises ConfigError for what is no JSON or too large.
        """
        if self._entry is not None:
            self._entry.keep_result(value)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the end of this job. A coroutine is cancelled; a plain function has to look."""
        return self._entry is not None and self._entry.cancelled

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled where somebody asked for the end of this job."""
        if self.cancelled:
            raise JobCancelled

    def children(self) -> Sequence[Child]:
        """Return the finished children of a flow, with their results, in the order in which they were given."""
        return [] if self._entry is None else self._entry.children()
