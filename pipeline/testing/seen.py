"""What a run came to, as a test looks at it: attempts that ended well, attempts to be repeated, dead letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.deadletter import Letter
from pipeline.event import Message

__all__ = ["Dead", "Handled", "Retry"]


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that its handler has handled. ``group`` is the full name, ``attempt`` 1 for the first try."""

    message: Message
    group: str
    attempt: int
    event_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Retry:
    """An attempt that failed and is repeated ``delay_s`` later (jitter left out). ``error`` is its class's name."""

    message: Message | None
    group: str
    attempt: int
    error: str
    text: str
    delay_s: float
    in_place: bool
    event_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Dead:
    """A record on a DLQ. ``message`` is None where its bytes are no message."""

    message: Message | None
    group: str
    attempts: int
    error: str
    text: str
    event_id: str | None
    at: datetime
    letter: Letter = field(repr=False)

    @classmethod
    def of(cls, letter: Letter, message: Message | None) -> Dead:
        """Read a letter."""
        story = letter.story
        at = datetime.fromtimestamp(story.died_ms / 1000, UTC)
        return cls(
            message, story.group, story.attempts, story.error.kind, story.error.message, letter.event_id, at, letter
        )
