"""Handlers in, the same handlers with an inbox in memory out: what ``inbox=True`` means, without a database."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.context import Context
from pipeline.definition import Handler
from pipeline.event import Message
from pipeline.inbox import InboxKey
from pipeline.report import Report
from pipeline.testing.connection import AsyncFakeConnection, FakeConnection

__all__ = ["Inbox"]


class Inbox:
    """What was handled. ``connect`` makes the connection that a handler gets: what it commits is on its way.

    ``settle`` stores what became of tracked jobs.
    """

    def __init__(self, connect: Callable[[], FakeConnection], settle: Callable[[Sequence[Report]], None]) -> None:
        self.handled: set[InboxKey] = set()
        self.repeats = 0
        self._connect = connect
        self._settle = settle

    def around(self, handler: Handler) -> Callable[..., Any]:
        """Return what is called for a handler."""
        function = handler.function
        if not handler.inbox:
            return function
        if inspect.iscoroutinefunction(function):

            async def arun(message: Message, context: Context) -> None:
                if self._is_new(handler, context):
                    conn = self._connect()
                    async with AsyncFakeConnection(conn) as aconn:
                        await function(message, context.within(aconn))
                    self._commit(handler, context)

            return arun

        def run(message: Message, context: Context) -> None:
            if self._is_new(handler, context):
                with self._connect() as conn:
                    function(message, context.within(conn))
                self._commit(handler, context)

        return run

    def _commit(self, handler: Handler, context: Context) -> None:
        self.handled.add(InboxKey.of(handler, context))
        if (entry := context.entry) is not None and entry.job_id:
            self._settle([entry.report("done")])
            entry.stored = True

    def _is_new(self, handler: Handler, context: Context) -> bool:
        known = InboxKey.of(handler, context) in self.handled
        self.repeats += known
        return not known
