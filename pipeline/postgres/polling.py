"""An outbox table in, batches of routed rows out, by queries: where logical replication cannot be had.

At least once. Each look takes the rows that the present snapshot sees and the one before did not, in the order of their
numbers: complete, as every committed transaction is in exactly one such difference, and no open transaction holds the
others up. One key's rows come in commit order where its writers wait for each other before they insert: the later
transaction is not seen before the earlier one, and in one difference its numbers are higher.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from pipeline.capture import Batch, Routed, Unroutable, weight
from pipeline.errors import SourceError
from pipeline.postgres import poll_position
from pipeline.postgres.checks import check_not_older
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.poll_position import Line, Reached
from pipeline.postgres.poll_table import Statements, found_table
from pipeline.postgres.table import rows_of

__all__ = ["CHANNEL", "PollSettings", "PollingSource", "Prepare"]

log = logging.getLogger(__name__)

CHANNEL = "pipeline_outbox"
"""Whoever notifies it ends a wait."""

_ROWS = 1000
_BELOW = -(2**63)  # any row's number
_STORE_EVERY_S = 0.25
_IDLE_STORE_S = 10.0
_BACK_OFF = 10  # a quiet table is looked at so many times less often …
_SLOWEST_S = 1.0  # … but each second

Route = tuple[Sequence[str], Callable[..., Routed]]
Prepare = Callable[[psycopg.Connection[Any], Reached | None], bool]
"""Called with the connection that has the lock, and what is stored; False: another is active."""


@dataclass(frozen=True, slots=True)
class PollSettings:
    """What to read. ``slot`` names the position; ``seq`` and ``xid`` are the columns with number and transaction.

    ``adjust`` makes of a column's name the one that ``payload`` is meant by.
    """

    slot: str
    wanted: Callable[[str, str], bool]
    wanted_text: str
    payload: str
    seq: str = "seq"
    xid: str = "xid"
    every_s: float = 0.5
    adjust: Callable[[str], str] = str


class _Target(NamedTuple):
    """A difference that is being read: the rows that ``snapshot`` sees and the one before did not."""

    snapshot: str
    rows: int
    top: int
    lsn: int


class PollingSource:
    """The table of one connector. One thread only. ``prepare`` is called before a table is read, under the lock."""

    def __init__(
        self,
        dsn: str,
        settings: PollSettings,
        bind: Callable[[Relation], Route],
        *,
        prepare: Prepare = lambda _conn, _stored: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dsn = alive(dsn, "pipeline-relay")
        self._prepare = prepare
        self._settings = settings
        self._bind = bind
        self._clock = clock
        self._conn: psycopg.Connection[Any] | None = None
        self._statements: Statements | None = None
        self._route: Callable[..., Routed] | None = None
        self._line: Line | None = None
        self._taken = ""  # "": nothing was handed out yet
        self._target: _Target | None = None
        self._after = _BELOW  # of the target, rows up to this number were handed out …
        self._handed_out = 0  # … and so many of them since it was begun here
        self._token = 0
        self._states: deque[tuple[int, Reached, bool]] = deque()  # handed out and not stored; whether with rows
        self._stored: Reached | None = None
        self._stored_at = 0.0
        self._look_at = 0.0
        self._pause_s = settings.every_s

    @property
    def taken(self) -> str:
        """A snapshot all of which was handed out; "" before anything was."""
        return self._taken

    def start(self) -> bool:
        """Connect; False where another process polls, or has done so meanwhile. Raises SourceError."""
        self.close()
        started = False
        try:
            started = self._start()
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            if not started:
                self.close()
        return started

    def read(self, wait_s: float) -> Batch:
        """Return the next rows, waiting at most ``wait_s`` for the first; empty where nothing came.

        Raises SourceError, retryable where ``start`` can help.
        """
        batch = Batch()
        try:
            if self._target is None and not self._look(wait_s):
                return batch
            self._page(batch)
        except psycopg.Error as error:
            raise translated(error) from error
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Take note that all up to ``position`` is acknowledged (0: nothing new). ``final`` stores it at once.

        Raises SourceError.
        """
        reached, rows = None, False
        while self._states and self._states[0][0] <= position:
            _, reached, with_rows = self._states.popleft()
            rows = rows or with_rows
        if reached is not None:
            self._pending = reached
            self._pending_rows = self._pending_rows or rows
        if self._pending is None:
            return
        since_s = self._clock() - self._stored_at
        if final or since_s >= (_STORE_EVERY_S if self._pending_rows else _IDLE_STORE_S):
            self._store(self._pending)

    def close(self) -> None:
        """End the connection, and with it the lock."""
        if self._conn is not None:
            self._conn.close()
        self._conn = None

    _pending: Reached | None = None
    _pending_rows = False

    def _start(self) -> bool:
        settings = self._settings
        conn = self._conn = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)
        conn.execute("SET statement_timeout = 0; SET jit = off")
        if not poll_position.try_lock(conn, settings.slot):
            self._forget()
            return False
        if self._is_another(line := poll_position.line(conn)):
            return False
        relation = found_table(conn, settings.wanted, settings.wanted_text, settings.seq, settings.xid)
        columns, self._route = self._bind(relation)
        names = (one.name for one in relation.columns)
        payload = next((one for one in names if settings.adjust(one) == settings.payload), settings.payload)
        self._statements = Statements(relation, columns, payload, settings.seq, settings.xid)
        stored = poll_position.load(conn, settings.slot)
        if self._taken and stored != self._stored:
            self._forget()  # another one was active meanwhile: what is under way here is its business
            return False
        if not self._prepare(conn, stored):
            self._forget()
            return False
        self._line = line
        if not self._taken:
            if stored is None:
                stored = poll_position.begin(conn, settings.slot)
            self._go_on(stored)
        conn.execute(f"LISTEN {CHANNEL}".encode())
        self._look_at = 0.0
        log.info(
            "polling %s.%s after %s", relation.schema, relation.table, self._taken,
            extra={"action": "poll.read", "slot": settings.slot},
        )  # fmt: skip
        return True

    def _is_another(self, line: Line) -> bool:
        """Tell whether this is not the server that was read: what was seen there and not stored, none may have here.

        Raises SourceError where it is the primary of before a failover that came back as one.
        """
        known = self._line
        if known is None or known == line:
            return False
        check_not_older(line, known)
        log.warning(
            "the server was promoted to timeline %d: rows that were published since the stored position come again",
            line.timeline, extra={"action": "poll.promoted", "slot": self._settings.slot},
        )  # fmt: skip
        self._line = line
        self._forget()
        return True

    def _go_on(self, stored: Reached) -> None:
        """Begin behind what is stored. A target that was half read is read on: its rows, its order."""
        self._stored = stored
        self._taken = stored.taken
        self._target, self._after, self._handed_out = None, _BELOW, 0
        if stored.target is not None:
            self._target = _Target(stored.target, -1, _BELOW, 0)
            self._after = _BELOW if stored.seq is None else stored.seq

    def _forget(self) -> None:
        """Forget what was handed out: the caller drops what of it was not acknowledged."""
        self._taken = ""
        self._target, self._stored, self._pending = None, None, None
        self._states.clear()

    def _look(self, wait_s: float) -> bool:
        """See what is new; tell whether anything is. Not before its time, unless somebody notifies."""
        conn = self._connection()
        while (left_s := self._look_at - self._clock()) > 0:
            if any(conn.notifies(timeout=min(wait_s, left_s), stop_after=1)):
                self._pause_s = self._settings.every_s
                break
            if wait_s < left_s:
                return False
        self._target, self._after, self._handed_out = self._new_target(), _BELOW, 0
        if self._target.rows:
            self._pause_s = self._settings.every_s
            self._look_at = self._clock() + (0 if self._target.rows >= _ROWS else self._pause_s)
            return True
        self._look_at = self._clock() + self._pause_s
        slowest_s = max(self._settings.every_s, min(_SLOWEST_S, _BACK_OFF * self._settings.every_s))
        self._pause_s = min(2 * self._pause_s, slowest_s)
        return True

    def _new_target(self) -> _Target:
        conn, statements = self._connection(), self._statements
        assert statements is not None
        row = conn.execute(statements.look, self._values()).fetchone()
        assert row is not None
        snapshot, lsn, rows, _, top = row
        return _Target(snapshot, int(rows), _BELOW if top is None else int(top), int(lsn))

    def _page(self, batch: Batch) -> None:
        """Fill a batch with the next rows of the target; at its end the target is what was taken."""
        target = self._target
        assert target is not None
        if target.rows:
            if target.rows < 0:  # it was begun before a restart
                target = self._target = self._measured(target)
            batch.lsn = target.lsn
            self._fill(batch, target)
        self._handed_out += len(batch.records)
        batch.more = bool(batch.records) and self._handed_out != target.rows
        if not batch.more:
            self._taken, self._target = target.snapshot, None
        self._token += 1
        batch.position = self._token
        reached = Reached(self._taken, target.snapshot, self._after) if batch.more else Reached(self._taken)
        self._states.append((self._token, reached, bool(batch.records)))

    def _measured(self, target: _Target) -> _Target:
        """Count what a target has that was stored: by what is new now, which has all of it."""
        now = self._new_target()
        return _Target(target.snapshot, max(1, now.rows), now.top, now.lsn)

    def _fill(self, batch: Batch, target: _Target) -> None:
        conn, statements, route = self._connection(), self._statements, self._route
        assert statements is not None
        assert route is not None
        values = {**self._values(), "target": target.snapshot, "top": target.top, "rows": _ROWS}
        many = target.rows > _ROWS
        while True:
            values["after"] = self._after
            page = conn.execute(statements.many if many else statements.few, values, binary=True).pgresult
            _route(rows_of(page), route, batch)
            if batch.records:
                self._after = int.from_bytes(_last(page), "big", signed=True)
                return
            skipped = conn.execute(statements.skip, values).fetchone() if many else None
            if skipped is None or skipped[0] is None:
                return
            self._after = int(skipped[0])

    def _values(self) -> dict[str, object]:
        return {"xmax": poll_position.xmax(self._taken), "xip": poll_position.in_progress(self._taken)}

    def _store(self, reached: Reached) -> None:
        try:
            poll_position.store(self._connection(), self._settings.slot, reached)
        except psycopg.Error as error:
            raise translated(error) from error
        self._stored, self._pending, self._pending_rows = reached, None, False
        self._stored_at = self._clock()

    def _connection(self) -> psycopg.Connection[Any]:
        if self._conn is None:
            raise SourceError("PostgreSQL: not connected", retryable=True)
        return self._conn


def _route(rows: Iterable[tuple[bytes | None, ...]], route: Callable[..., Routed], batch: Batch) -> None:
    for *values, _ in rows:
        try:
            record = route(*values)
        except Unroutable as error:
            batch.dead[len(batch.records)] = (error, batch.lsn)
            record = error.record
        batch.records.append(record)
        batch.size += weight(record)


def _last(page: Any) -> bytes:  # a PGresult
    return bytes(page.get_value(page.ntuples - 1, page.nfields - 1))
