"""A failed attempt in, what becomes of its record out. Pure: no clock, no chance, no broker.

A record is never dropped: each decision is to try again in place, to move it to a retry topic, to declare it dead, or
to wait until something outside the record is mended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.definition import Handler
from pipeline.errors import PoisonError, SchemaError
from pipeline.headers import NewerFormat
from pipeline.inbox import InboxUnavailable
from pipeline.retry import Reject, RetryLater
from pipeline.worker.mishaps import ProcessUnavailable

__all__ = [
    "Again",
    "Cancelled",
    "Dead",
    "Decision",
    "HandBack",
    "InPlace",
    "Move",
    "Parked",
    "Skip",
    "Wait",
    "settle",
    "tier_for",
    "unknown_type",
]

_WAIT_FIRST_S = 0.5
_WAIT_CAP_S = 15.0
_UNKNOWN_S = 30.0


@dataclass(frozen=True, slots=True)
class Again:
    """Try again here after ``delay_s``, up to ``jitter`` (a share) longer, while key or partition waits."""

    delay_s: float
    jitter: float
    counted: bool


@dataclass(frozen=True, slots=True)
class Move:
    """To a retry topic, not due before ``delay_s`` have passed."""

    delay_s: float
    counted: bool


@dataclass(frozen=True, slots=True)
class Dead:
    """To the DLQ."""

    reason: Literal["poison", "rejected", "fatal", "exhausted", "unclean"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again here after ``delay_s``: not the record is at fault, ``what`` is. The worker is not ready meanwhile."""

    delay_s: float
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Parked:
    """Wait here until the handler's breaker lets it begin, in ``delay_s`` at the earliest. ``failed``: it was tried."""

    delay_s: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Skip:
    """Nobody here handles this type of event."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """Not begun, and its partition is being taken away: whoever has it next handles it."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the end of this job; or, with ``error``, why it ends without. ``begun``: its handler was."""

    error: str | None = None
    begun: bool = False


InPlace = Again | Wait | Parked
"""What holds a record's key back for its next attempt."""

Decision = Again | Move | Dead | Wait | Parked | Skip | HandBack | Cancelled


def settle(error: BaseException, handler: Handler | None, *, attempt: int, waited: int, decoding: bool) -> Decision:
    """Decide about a record whose attempt ended in ``error``.

    ``attempt`` counts from 1, over retry topics too; ``waited`` how often in a row it waited without counting;
    ``decoding`` says that the handler was not reached; ``handler`` is None where none could be told.
    """
    if isinstance(error, NewerFormat):
        return Move(_UNKNOWN_S, counted=False)
    if decoding and isinstance(error, PoisonError):
        return Dead("poison")
    if handler is None or (decoding and isinstance(error, SchemaError)):
        if handler is not None and not handler.in_place and isinstance(error, SchemaError) and not error.retryable:
            return Move(_UNKNOWN_S, counted=False)  # a newer worker can read it; others need not wait behind it
        what = error.what if isinstance(error, SchemaError) else f"decoding failed with {type(error).__name__}"
        return Wait(_waiting_s(waited), what, error.remedy if isinstance(error, SchemaError) else "")
    if isinstance(error, InboxUnavailable | ProcessUnavailable):
        return Wait(_waiting_s(waited), error.what, error.remedy)
    policy = handler.retry
    if isinstance(error, Reject):
        return Dead("rejected")
    if isinstance(error, policy.fatal) and not isinstance(error, RetryLater):
        return Dead("fatal")
    delay_s, jitter, counted = policy.delay_s(attempt), policy.jitter, not isinstance(error, policy.uncounted)
    if isinstance(error, RetryLater):
        delay_s, jitter, counted = error.delay_s, 0.0, error.counted
    if not counted:
        return Again(delay_s, jitter, counted=False) if handler.in_place else Move(delay_s, counted=False)
    if not handler.in_place:
        return Dead("exhausted") if policy.exhausted(attempt) else Move(delay_s, counted=True)
    if not policy.exhausted(attempt):
        return Again(delay_s, jitter, counted=True)
    if handler.on_exhausted == "retry_topic" and not policy.exhausted(attempt - policy.attempts):
        # the policy once more, now out of the key's way; its first wait is the first one again
        later = policy.delay_s(attempt - policy.attempts + 1)
        return Move(error.delay_s if isinstance(error, RetryLater) else later, counted=True)
    return Dead("exhausted")


def _waiting_s(waited: int) -> float:
    return min(_WAIT_FIRST_S * 2.0 ** min(waited, 10), _WAIT_CAP_S)


def unknown_type(*, queue: bool, retried: bool) -> Decision:
    """Decide about a record whose type nobody here handles.

    A queue's jobs, and what is on a retry topic, belong to this group: in a rolling deploy a newer worker handles
    them, so they wait. Other events on a subscribed topic are none of this group's business.
    """
    return Move(_UNKNOWN_S, counted=False) if queue or retried else Skip()


def tier_for(delay_s: float, tiers_s: tuple[float, ...]) -> float:
    """Return the longest tier that is not longer than ``delay_s``; 0 is always one."""
    return max((tier for tier in tiers_s if tier <= delay_s), default=0.0)
