"""What makes the effects of a handler happen once: its key in the inbox; and what is raised while none can be asked."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.context import Context
from pipeline.definition import Handler
from pipeline.errors import SourceError
from pipeline.headers import stored_id

__all__ = ["InboxKey", "InboxUnavailable"]


class InboxKey(NamedTuple):
    """A row of ``pipeline.inbox``: one event's effects by one handler, in one generation of replays.

    Of an event id that no row can hold, as it is too long or has U+0000, the hash stands there.
    """

    event_id: str
    group: str
    handler: str
    generation: int

    @classmethod
    def of(cls, handler: Handler, context: Context) -> InboxKey:
        """Return the key of what is being handled."""
        return cls(stored_id(context.event_id), context.group, handler.name, context.generation)


class InboxUnavailable(SourceError):
    """The inbox cannot be asked, or its transaction was cut off: the record waits, and no attempt is counted."""
