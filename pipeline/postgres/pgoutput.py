"""Bytes of one pgoutput message in, the message out.

Protocol version 2 (PostgreSQL 14 and newer), text and binary columns. Pure: no socket, no state. Whatever the bytes
are, the only error raised is SourceError. Format: "Logical Replication Message Formats" in PostgreSQL's manual.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import SourceError

__all__ = [
    "Begin",
    "Column",
    "Commit",
    "Delete",
    "Insert",
    "LogicalMessage",
    "Message",
    "Origin",
    "Relation",
    "StreamAbort",
    "StreamCommit",
    "StreamStart",
    "StreamStop",
    "Truncate",
    "Type",
    "Update",
    "parse",
]

NULL, UNCHANGED, TEXT, BINARY = ord("n"), ord("u"), ord("t"), ord("b")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a relation. ``type_oid`` and ``modifier`` as in pg_attribute."""

    name: str
    type_oid: int
    modifier: int
    in_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's layout from here on in the stream. ``xid`` is set inside a streamed block, here and below."""

    oid: int
    schema: str
    table: str
    columns: tuple[Column, ...]
    xid: int = 0


@dataclass(frozen=True, slots=True)
class Type:
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str
    xid: int = 0


@dataclass(frozen=True, slots=True)
class Begin:
    """The start of a committed transaction."""

    commit_lsn: int
    committed_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a transaction; ``end_lsn`` is the position that may be confirmed for it."""

    commit_lsn: int
    end_lsn: int
    committed_us: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a replicated transaction came from."""

    lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """A column's value: ``kind`` NULL, UNCHANGED, TEXT or BINARY."""

    kind: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row."""

    relation: int
    new: tuple[Value, ...]
    xid: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """A changed row; ``old`` is there only as the replica identity says."""

    relation: int
    old: tuple[Value, ...] | None
    new: tuple[Value, ...]
    xid: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A removed row."""

    relation: int
    old: tuple[Value, ...]
    xid: int = 0


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables that were emptied."""

    relations: tuple[int, ...]
    options: int
    xid: int = 0


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What pg_logical_emit_message wrote."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes
    xid: int = 0


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The start of a block of a transaction that has not committed yet."""

    xid: int
    first: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """The end of such a block."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """The commit of a transaction that came in blocks."""

    xid: int
    commit_lsn: int
    end_lsn: int
    committed_us: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """The end without effect of a streamed transaction, or of its sub-transaction ``subxid`` alone."""

    xid: int
    subxid: int


Message = (
    Begin
    | Commit
    | Origin
    | Relation
    | Type
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
)


def parse(data: bytes, *, streamed: bool = False) -> Message:
    """Parse one message. ``streamed``: it stands between Stream Start and Stream Stop, so that it has an xid.

    Raises SourceError for an unknown kind, missing bytes and bytes left over.
    """
    cursor = _Cursor(data)
    try:
        message = _PARSERS[cursor.take(1)](cursor, streamed)
    except KeyError:
        raise SourceError(f"pgoutput: unknown message {data[:1]!r}", remedy=_REPORT) from None
    except (struct.error, IndexError, ValueError) as error:
        raise SourceError(
            f"pgoutput: broken message {data[:1]!r} of {len(data)} bytes: {error}", remedy=_REPORT
        ) from error
    if cursor.at != len(data):
        raise SourceError(f"pgoutput: {len(data) - cursor.at} bytes left over in message {data[:1]!r}", remedy=_REPORT)
    return message


_REPORT = "report it with the server's version"


class _Cursor:
    """Bytes and a place in them."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise IndexError("cut short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        taken = self.data[self.at : end].decode()
        self.at = end + 1
        return taken

    def values(self) -> tuple[Value, ...]:
        return tuple(self._value() for _ in range(self.number(2)))

    def _value(self) -> Value:
        kind = self.number(1)
        if kind in (TEXT, BINARY):
            return Value(kind, self.take(self.number(4)))
        if kind in (NULL, UNCHANGED):
            return Value(kind)
        raise ValueError(f"unknown kind of column {kind}")


def _xid(cursor: _Cursor, streamed: bool) -> int:
    return cursor.number(4) if streamed else 0


def _begin(cursor: _Cursor, _streamed: bool) -> Begin:
    return Begin(cursor.number(8), cursor.number(8, signed=True), cursor.number(4))


def _commit(cursor: _Cursor, _streamed: bool) -> Commit:
    cursor.take(1)
    return Commit(cursor.number(8), cursor.number(8), cursor.number(8, signed=True))


def _origin(cursor: _Cursor, _streamed: bool) -> Origin:
    return Origin(cursor.number(8), cursor.text())


def _relation(cursor: _Cursor, streamed: bool) -> Relation:
    xid = _xid(cursor, streamed)
    oid, schema, table = cursor.number(4), cursor.text() or "pg_catalog", cursor.text()
    cursor.take(1)  # replica identity
    columns = tuple(_column(cursor) for _ in range(cursor.number(2)))
    return Relation(oid, schema, table, columns, xid)


def _column(cursor: _Cursor) -> Column:
    flags = cursor.number(1)
    return Column(cursor.text(), cursor.number(4), cursor.number(4, signed=True), bool(flags & 1))


def _type(cursor: _Cursor, streamed: bool) -> Type:
    xid = _xid(cursor, streamed)
    return Type(cursor.number(4), cursor.text() or "pg_catalog", cursor.text(), xid)


def _expect(cursor: _Cursor, kinds: bytes) -> int:
    kind = cursor.number(1)
    if kind not in kinds:
        raise ValueError(f"unknown tuple {kind}")
    return kind


def _insert(cursor: _Cursor, streamed: bool) -> Insert:
    xid, relation = _xid(cursor, streamed), cursor.number(4)
    _expect(cursor, b"N")
    return Insert(relation, cursor.values(), xid)


def _update(cursor: _Cursor, streamed: bool) -> Update:
    xid, relation = _xid(cursor, streamed), cursor.number(4)
    old = None
    if _expect(cursor, b"KON") != ord("N"):
        old = cursor.values()
        _expect(cursor, b"N")
    return Update(relation, old, cursor.values(), xid)


def _delete(cursor: _Cursor, streamed: bool) -> Delete:
    xid, relation = _xid(cursor, streamed), cursor.number(4)
    _expect(cursor, b"KO")
    return Delete(relation, cursor.values(), xid)


def _truncate(cursor: _Cursor, streamed: bool) -> Truncate:
    xid, count, options = _xid(cursor, streamed), cursor.number(4), cursor.number(1)
    if count * 4 > len(cursor.data):
        raise IndexError("cut short")
    return Truncate(tuple(cursor.number(4) for _ in range(count)), options, xid)


def _logical(cursor: _Cursor, streamed: bool) -> LogicalMessage:
    xid, flags, lsn, prefix = _xid(cursor, streamed), cursor.number(1), cursor.number(8), cursor.text()
    return LogicalMessage(bool(flags & 1), lsn, prefix, cursor.take(cursor.number(4)), xid)


def _stream_start(cursor: _Cursor, _streamed: bool) -> StreamStart:
    return StreamStart(cursor.number(4), cursor.number(1) == 1)


def _stream_stop(_cursor: _Cursor, _streamed: bool) -> StreamStop:
    return StreamStop()


def _stream_commit(cursor: _Cursor, _streamed: bool) -> StreamCommit:
    xid = cursor.number(4)
    cursor.take(1)
    return StreamCommit(xid, cursor.number(8), cursor.number(8), cursor.number(8, signed=True))


def _stream_abort(cursor: _Cursor, _streamed: bool) -> StreamAbort:
    return StreamAbort(cursor.number(4), cursor.number(4))


_PARSERS: dict[bytes, Callable[[_Cursor, bool], Message]] = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
    b"M": _logical,
    b"S": _stream_start,
    b"E": _stream_stop,
    b"c": _stream_commit,
    b"A": _stream_abort,
}
