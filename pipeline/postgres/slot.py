"""A replication slot in, frames of its stream out; positions go back.

psycopg has no replication cursor, so this speaks the replication protocol through ``psycopg.pq``. Nothing here waits
for a broker: keepalives are answered with the position that was confirmed last, whatever that is. Rows of a COPY are
frames as well.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import psycopg
from psycopg import pq

from pipeline.capture import lsn_text
from pipeline.errors import SourceError
from pipeline.postgres.liveness import alive

__all__ = ["Connection", "Identity", "ReplicationConnection", "Slot", "SlotBusy", "drop_slot", "quoted"]

_EPOCH_S = 946_684_800  # 2000-01-01 UTC, PostgreSQL's epoch, in Unix time
_STATUS = struct.Struct(">cQQQqB")
_READY = (
    pq.ExecStatus.COMMAND_OK,
    pq.ExecStatus.TUPLES_OK,
    pq.ExecStatus.COPY_BOTH,
    pq.ExecStatus.COPY_OUT,
)

# a server of before PostgreSQL 17 has no column "synced"
_SLOT = """
SELECT active, coalesce(confirmed_flush_lsn, '0/0'), coalesce(wal_status, ''),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, plugin, database,
       to_jsonb(s) ->> 'synced'
FROM pg_replication_slots s WHERE slot_name = """

# SQLSTATE → (what to do, whether a later try can succeed by itself)
_STATES: dict[str, tuple[str, bool]] = {
    "28P01": ("correct database.user and database.password", False),
    "28000": ("let this user connect in pg_hba.conf, and give it the REPLICATION attribute", False),
    "3D000": ("correct database.dbname", False),
    "42501": (
        "the role of database.user needs REPLICATION (RDS: GRANT rds_replication) and SELECT on the tables",
        False,
    ),
    "42704": ("the slot or publication is missing: slot.name, publication.name", False),
    "42710": ("another process made it at the same moment", True),
    "42P01": ("pipeline db migrate, on this database", False),
    "53300": ("raise max_connections", True),
    "53400": ("raise max_replication_slots or max_wal_senders, or drop slots that nobody needs", True),
    "55000": ("set wal_level = logical and restart the server; a lost slot must be dropped", False),
    "55P03": ("a table is locked: is it being changed?", True),
    "57014": ("statement_timeout, a conflict with recovery, or somebody ended it", True),
    "57P01": ("the server is stopping", True),
    "57P02": ("the server crashed and recovers", True),
    "57P03": ("the server is starting", True),
    "58P01": ("the WAL that the slot needs is gone: drop the slot, then pipeline connector reconcile", False),
}


# a connection that fails has no SQLSTATE → its text, as all versions have it
_TOLD = {
    "password authentication failed": "28P01",
    "pg_hba.conf": "28000",
    "permission denied to start WAL sender": "42501",
    "must be superuser or replication role": "42501",
}


class SlotBusy(SourceError):
    """Another process reads the slot."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which server's WAL this is. ``lsn`` is where it ends now."""

    system_id: str
    timeline: int
    lsn: int
    version: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The server's view of a slot. ``retained_bytes`` is the WAL kept for it.

    ``synced``: a copy of the slot that a primary had, on this server since it was that one's standby.
    """

    name: str
    active: bool
    confirmed: int
    wal_status: str
    retained_bytes: int
    plugin: str
    database: str
    synced: bool = False


class Connection:
    """One connection: SQL first, then frames, of a COPY to here or of a replication stream.

    ``dsn`` is a libpq connection string. Raises SourceError from every method, translated and with a remedy.
    """

    def __init__(self, dsn: str, *, name: str = "pipeline-relay", liveness_s: float = 30.0, **parameters: str) -> None:
        conninfo = alive(
            dsn,
            name,
            client_encoding="UTF8",
            tcp_user_timeout=int(liveness_s * 1000),
            keepalives_idle=int(liveness_s),
            **parameters,
        )
        try:  # libpq's own connect would hold up all other threads, probes among them, until the server answers
            self._owner = psycopg.connect(conninfo, autocommit=True)
        except psycopg.Error as error:
            raise _lost("connect", str(error)) from error
        self._pg = self._owner.pgconn
        self._pg.nonblocking = 0
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)

    @property
    def version(self) -> int:
        """The server's: 180001."""
        return self._pg.server_version

    def rows(self, sql: str) -> list[tuple[str | None, ...]]:
        """Run one statement as text and return its rows as text. Not while frames come."""
        result = self._run(sql)
        return [
            tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
            for row in range(result.ntuples)
        ]

    def columns(self, sql: str) -> list[tuple[str, int, int]]:
        """Run a query and return its columns: name, type, modifier."""
        result = self._run(sql)
        return [((result.fname(n) or b"").decode(), result.ftype(n), result.fmod(n)) for n in range(result.nfields)]

    def copy(self, sql: str) -> None:
        """Begin ``COPY … TO STDOUT``: its data come as frames."""
        self._run(sql)

    def frame(self) -> bytes | None:
        """Return the next frame, None when none has come yet, no bytes where there are no more."""
        try:
            size, data = self._pg.get_copy_data(1)
        except psycopg.Error as error:
            raise self._lost("read") from error
        if size > 0:
            return bytes(data)
        if size == 0:
            return None
        return self._ended()

    def receive(self, wait_s: float) -> bool:
        """Take what the socket has, waiting at most ``wait_s`` for it; tell whether anything may be there.

        Raises SourceError (retryable) when the connection is lost, or silent for longer than it may be.
        """
        if wait_s > 0 and not self._poll.poll(wait_s * 1000):
            self._check_silence()
            return False
        try:
            self._pg.consume_input()
        except Exception as error:
            raise self._lost("read") from error
        return True

    def close(self) -> None:
        """End the connection."""
        self._owner.close()

    def _run(self, sql: str) -> pq.abc.PGresult:
        result = self._pg.exec_(sql.encode())
        if result.status not in _READY:
            raise self._refused(result, sql.split("(")[0][:60])
        return result

    def _ended(self) -> bytes | None:
        while (result := self._pg.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise self._refused(result, "COPY")
        return b""

    def _check_silence(self) -> None:
        """A query may take its time."""

    def _refused(self, result: pq.abc.PGresult, where: str) -> SourceError:
        state = _text(result.error_field(pq.DiagnosticField.SQLSTATE)) or ""
        text = _text(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)) or self._message()
        if state == "55006":
            return SlotBusy(f"PostgreSQL: {text}", remedy="another relay reads it: this one stands by", retryable=True)
        if not state or (self._pg.status != pq.ConnStatus.OK and state not in _STATES):
            return self._lost(where)
        remedy, retryable = _STATES.get(state, ("", state.startswith(("08", "57P"))))
        return SourceError(f"PostgreSQL: {where}: {text} (SQLSTATE {state})", remedy=remedy, retryable=retryable)

    def _lost(self, where: str) -> SourceError:
        return _lost(where, self._message())

    def _message(self) -> str:
        return " ".join(self._pg.get_error_message().split())


class ReplicationConnection(Connection):
    """One connection in replication mode: SQL and slot commands first, then a stream.

    ``liveness_s``: a stream that is silent for so long, although it was asked for an answer halfway, is dead. While
    nobody reads, as the registry or the broker is waited for, silence tells nothing.
    """

    def __init__(self, dsn: str, *, liveness_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(dsn, liveness_s=liveness_s, replication="database")
        self._liveness_s = liveness_s
        self._clock = clock
        self._heard = clock()
        self._asked_at: float | None = None

    def identify(self) -> Identity:
        """Return which server answers."""
        row = self.rows("IDENTIFY_SYSTEM")[0]
        return Identity(str(row[0]), int(str(row[1])), _lsn(str(row[2])), self.version)

    def slot(self, name: str) -> Slot | None:
        """Look at a slot; None where it does not exist. Raises SourceError, retryable while the server recovers."""
        if self.rows("SELECT pg_is_in_recovery()")[0][0] == "t":
            raise SourceError(
                "PostgreSQL: the server is in recovery: a standby that is not promoted, or not yet",
                remedy="promote it, or let database.hostname name the primary",
                retryable=True,
            )
        found = self.rows(_SLOT + quoted(name))
        if not found:
            return None
        active, confirmed, status, retained, plugin, database, synced = (value or "" for value in found[0])
        return Slot(name, active == "t", _lsn(confirmed), status, int(retained), plugin, database, synced == "true")

    def create_slot(self, name: str, *, failover: bool) -> int:
        """Create a slot for pgoutput and return where it begins. Waits for older transactions to end."""
        more = ", false, false, true" if failover else ""
        made = f"SELECT lsn FROM pg_create_logical_replication_slot({quoted(name)}, 'pgoutput'{more})"  # noqa: S608
        row = self.rows(made)[0]
        return _lsn(row[0] or "0/0")

    def export_slot(self, name: str, *, failover: bool) -> str:
        """Create a slot as ``create_slot`` does, and return the snapshot that shows all before it and nothing of it.

        The snapshot can be taken over by another connection until this one does something else.
        """
        options = "(SNAPSHOT 'export', FAILOVER true)" if failover else "EXPORT_SNAPSHOT"
        return str(self.rows(f'CREATE_REPLICATION_SLOT "{name}" LOGICAL pgoutput {options}')[0][2])

    def drop_slot(self, name: str) -> None:
        """Remove a slot. Raises SlotBusy while somebody reads it."""
        self.rows(f"SELECT pg_drop_replication_slot({quoted(name)})")

    def start(self, name: str, publication: str, after: int, options: Mapping[str, str]) -> None:
        """Stream what committed after the LSN ``after`` (0: after what was confirmed). Raises SlotBusy."""
        pairs = {"publication_names": publication, **options}
        listed = ", ".join(f"{key} {quoted(value)}" for key, value in pairs.items())
        command = f'START_REPLICATION SLOT "{name}" LOGICAL {lsn_text(after)} ({listed})'
        result = self._pg.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._refused(result, f"slot {name}")
        self._pg.nonblocking = 1
        self._heard = self._clock()

    def frames(self, count: int, size: int) -> list[bytes]:
        """Return the frames that have come: at most ``count``, and no more once they have ``size`` bytes."""
        found: list[bytes] = []
        get = self._pg.get_copy_data
        try:
            while count > 0 and size > 0:
                length, data = get(1)
                if length > 0:
                    found.append(bytes(data))
                    count -= 1
                    size -= length
                elif length == 0:
                    break
                else:
                    self._ended()
        except psycopg.Error as error:
            raise self._lost("read") from error
        return found

    def heard(self) -> None:
        """Note that the server is alive: to be called when frames came."""
        self._heard = self._clock()
        self._asked_at = None

    def confirm(self, lsn: int, *, ask: bool = False) -> None:
        """Tell the server that all below ``lsn`` may be forgotten; ``ask`` for an answer."""
        now_us = int((time.time() - _EPOCH_S) * 1_000_000)
        try:
            self._pg.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, ask))
            self._pg.flush()
        except Exception as error:
            raise self._lost("write") from error
        self._confirmed = lsn

    def end(self, wait_s: float = 2.0) -> None:
        """End the stream in good order, so that the server has read the last position.

        Closing while data is unread resets the connection, and what the server has not read yet is lost with it.
        """
        until = self._clock() + wait_s
        try:
            self._pg.put_copy_end()
            self._pg.flush()
            while (left := until - self._clock()) > 0:
                while (size := self._pg.get_copy_data(1)[0]) > 0:
                    pass  # frames that were under way
                if size == -1:  # the server has ended it too
                    return
                if self._poll.poll(left * 1000):
                    self._pg.consume_input()
        except Exception as error:
            raise self._lost("end") from error

    _confirmed = 0

    def _ended(self) -> NoReturn:
        result = self._pg.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise self._refused(result, "stream")
        raise SourceError("PostgreSQL: the server ended the stream", remedy="it is probably stopping", retryable=True)

    def _check_silence(self) -> None:
        now = self._clock()
        if self._asked_at is None:
            if now - self._heard > self._liveness_s / 2:
                self._asked_at = now
                self.confirm(self._confirmed, ask=True)
        elif now - self._asked_at > self._liveness_s / 2:
            raise SourceError(
                f"PostgreSQL: no answer for {now - self._heard:.0f} s", remedy="is it up?", retryable=True
            )


def drop_slot(dsn: str, name: str, *, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Remove a slot whose stream was ended just now: the server takes a moment to see that.

    Raises SlotBusy where it is still read after ``within_s``.
    """
    conn, until = ReplicationConnection(dsn, clock=clock), clock() + within_s
    try:
        while True:
            try:
                return conn.drop_slot(name)
            except SlotBusy:
                if clock() > until:
                    raise
                time.sleep(0.02)
    finally:
        conn.close()


def _lost(where: str, message: str) -> SourceError:
    text = " ".join(message.split())
    for told, state in _TOLD.items():
        if told in text:
            remedy, retryable = _STATES[state]
            return SourceError(f"PostgreSQL: {text}", remedy=remedy, retryable=retryable)
    missing = "does not exist" in text and 'database "' in text
    return SourceError(
        f"PostgreSQL: {where}: {text or 'connection lost'}",
        remedy="correct database.dbname" if missing else "is the server up, and database.hostname right?",
        retryable=not missing,
    )


def quoted(value: str) -> str:
    """Write a string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)
