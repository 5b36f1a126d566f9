"""Frames of a replication stream in, batches of routed rows and confirmable positions out. Pure.

Only rows of committed transactions come out, in commit order. A batch's position is the last commit's ``end_lsn`` in
it: never a change's LSN, as many rows share one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.capture import Batch, Routed, Unroutable
from pipeline.postgres.pgoutput import (
    Begin,
    Commit,
    Delete,
    LogicalMessage,
    Message,
    Relation,
    Truncate,
    Update,
    parse,
)

__all__ = ["Binding", "Changes", "Messages"]

log = logging.getLogger(__name__)

Binding = Callable[[Relation], "tuple[Callable[[bytes, int], Routed], Callable[[], None]] | None"]
"""From a table's layout: what makes a record of an Insert, and what to do about an update; None: not captured."""

Messages = Callable[[str, bytes], Routed | None]
"""Makes a record of a logical message's prefix and content; None: not wanted. May raise Unroutable."""

_HEADER = 25  # bytes of XLogData before the message: 'w', start, end, time
_INSERT = ord("I")
_TUPLE = _HEADER + 6  # of an Insert outside of a streamed block: 'I', relation, 'N'


class Changes:
    """The state of one stream. Feed it frame after frame; it fills the batch it is given."""

    def __init__(self, bind: Binding, messages: Messages | None = None) -> None:
        self._bind = bind
        self._messages = messages
        self._inserts: dict[bytes, Callable[[bytes, int], Routed]] = {}
        self._updates: dict[int, Callable[[], None]] = {}
        self.within = False
        """Inside a transaction: a keepalive's position says nothing about it."""

    def feed(self, frame: bytes, batch: Batch) -> None:
        """Take one XLogData frame. Raises SourceError when it cannot be understood."""
        if len(frame) >= _TUPLE and frame[_HEADER] == _INSERT:
            insert = self._inserts.get(frame[_HEADER + 1 : _HEADER + 5])
            if insert is None:
                return
            try:
                batch.records.append(insert(frame, _TUPLE))
            except Unroutable as error:
                self._set_aside(error, frame, batch)
            return
        message = parse(frame[_HEADER:])
        if isinstance(message, LogicalMessage):
            self._emitted(message, frame, batch)
        else:
            self._other(message, batch)

    def _emitted(self, message: LogicalMessage, frame: bytes, batch: Batch) -> None:
        if self._messages is not None:
            try:
                record = self._messages(message.prefix, message.content)
                if record is not None:
                    batch.records.append(record)
            except Unroutable as error:
                self._set_aside(error, frame, batch)
        if not message.transactional:  # it is all of it: no commit follows
            batch.position = message.lsn

    def _set_aside(self, error: Unroutable, frame: bytes, batch: Batch) -> None:
        batch.dead[len(batch.records)] = (error, int.from_bytes(frame[1:9], "big"))
        batch.records.append(error.record)

    def _other(self, message: Message, batch: Batch) -> None:
        match message:
            case Begin():
                self.within = True
            case Commit():
                self.within = False
                batch.position = message.end_lsn
            case Relation():
                self._learn(message)
            case Update():
                if found := self._updates.get(message.relation):
                    found()
            case Truncate():
                log.info("the outbox was truncated: nothing is published for it", extra={"action": "relay.truncate"})
            case Delete():
                pass  # pruning
            case _:
                pass  # Origin, Type: nothing to publish

    def _learn(self, relation: Relation) -> None:
        key = relation.oid.to_bytes(4, "big")
        bound = self._bind(relation)
        if bound is None:
            self._inserts.pop(key, None)
            self._updates.pop(relation.oid, None)
        else:
            self._inserts[key], self._updates[relation.oid] = bound
