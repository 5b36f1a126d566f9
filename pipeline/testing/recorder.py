"""Outcomes of attempts and letters of DLQs in; what a test looks at of them out, with their messages decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from pipeline.codec import Decoder
from pipeline.deadletter import Letter
from pipeline.definition import Group, Handler
from pipeline.errors import PoisonError, SchemaError
from pipeline.event import Message
from pipeline.headers import EVENT_ID
from pipeline.record import Record
from pipeline.testing.seen import Dead, Handled, Retry
from pipeline.worker.delivery import Outcome
from pipeline.worker.settlement import Again, Move, Parked

__all__ = ["Recorder"]


class Recorder:
    """Keeps what was handled and what is repeated. ``groups`` by full name; ``now`` gives the time (UTC)."""

    def __init__(self, groups: Mapping[str, Group], decoder: Decoder, now: Callable[[], datetime]) -> None:
        self.handled: list[Handled] = []
        self.retries: list[Retry] = []
        self._groups = groups
        self._decoder = decoder
        self._now = now

    def ended(self, group: str, outcome: Outcome) -> None:
        """Take what an attempt came to."""
        delivery, decision = outcome
        state, record = delivery.state, delivery.record
        event_id = (delivery.headers.get(EVENT_ID) or b"").decode(errors="replace")
        message = None
        if delivery.route is not None:
            try:
                message = self._decoded(delivery.route.handler, record)
            except SchemaError:
                message = None
        if decision is None and message is not None:
            attempt = 1 if state is None else state.attempt
            self.handled.append(Handled(message, group, attempt, event_id, self._now()))
        elif (
            isinstance(decision, Again | Move | Parked)
            and _failed(decision)
            and state is not None
            and state.last_error is not None
        ):
            error, attempt = state.last_error, state.history[-1].attempt
            in_place = not isinstance(decision, Move)
            self.retries.append(
                Retry(
                    message,
                    group,
                    attempt,
                    error.kind,
                    error.message,
                    decision.delay_s,
                    in_place,
                    event_id,
                    self._now(),
                )
            )

    def dead(self, letter: Letter) -> Dead:
        """Return a letter with the message that it was."""
        return Dead.of(letter, self._message(letter))

    def _message(self, letter: Letter) -> Message | None:
        group = next(group for group in self._groups.values() if group.dlq == letter.place.topic)
        topic = letter.story.origin.topic
        handler = group.foreign.get(topic) or group.handler(topic, letter.type or "")
        if handler is None:
            return None
        try:
            return self._decoded(handler, letter.record)
        except PoisonError:
            return None

    def _decoded(self, handler: Handler, record: Record) -> Message:
        if handler.foreign is not None:
            return handler.foreign.message(record)
        return self._decoder.decode(record.value, handler.model)


def _failed(decision: Again | Move | Parked) -> bool:
    return not isinstance(decision, Parked) or decision.failed
