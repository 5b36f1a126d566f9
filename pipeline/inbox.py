"""What makes the effects of a handler happen once: its key in the inbox; and what is raised while none can be asked."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from pipeline.context import Context
from pipeline.definition import Handler
from pipeline.errors import SourceError

__all__ = ["InboxKey", "InboxUnavailable"]

_ID_CHARS = 400  # an entry of an index has 2,700 bytes at most, and others may write ids of any length


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
        event_id = context.event_id
        if len(event_id) > _ID_CHARS or "\0" in event_id:
            event_id = f"sha256:{sha256(event_id.encode()).hexdigest()}"
        return cls(event_id, context.group, handler.name, context.generation)


class InboxUnavailable(SourceError):
    """The inbox cannot be asked, or its transaction was cut off: the record waits, and no attempt is counted."""
