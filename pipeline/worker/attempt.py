"""A delivery in, the outcome of one attempt out: decode, call the handler, settle what it raised.

Nothing that a record or a handler does comes out as an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from pipeline.context import Context
from pipeline.definition import Group, Handler
from pipeline.event import Message
from pipeline.failure import Failure, describe
from pipeline.headers import EVENT_ID, TYPE, RetryState
from pipeline.report import Entry, JobCancelled, JobExpired
from pipeline.retry import RetryLater
from pipeline.surroundings import State
from pipeline.terms import Terms
from pipeline.worker.circuit import Circuit
from pipeline.worker.delivery import Delivery, Outcome, Route
from pipeline.worker.settlement import Again, Cancelled, Decision, Move, Parked, Wait, settle, unknown_type

__all__ = ["Attempts", "Decoder"]


_Prepared = tuple[Route, Message, Context]


class Decoder(Protocol):
    """Values in, messages out: ``pipeline.codec.Decoder``."""

    def decode(self, value: bytes | None, model: type[Message]) -> Message:
        """Return the message. Raises PoisonError or SchemaError."""

    def at_hand(self, value: bytes | None) -> bool:
        """Tell whether decoding needs no question to the registry."""

    def record_name(self, value: bytes) -> str:
        """Return the full name of the record's type, by its schema."""


class Attempts:
    """Runs attempts of one group's records. Thread-safe.

    ``clock`` gives seconds that only grow, ``wall`` seconds since 1970; ``entry`` opens what an attempt at a tracked
    job tells.
    """

    def __init__(
        self,
        group: Group,
        routes: Mapping[Handler, Route],
        decoder: Decoder,
        clock: Callable[[], float],
        wall: Callable[[], float],
        entry: Callable[[Delivery, Route], Entry | None] | None = None,
        state: State | None = None,
    ) -> None:
        self._state = state
        self._entry = entry
        self._group = group
        self._name = group.name
        self._routes = routes
        self._decoder = decoder
        self._clock = clock
        self._wall = wall
        self._queues = {h.topic for h in group.handlers if h.model.message_type.kind == "job"}

    def run(self, delivery: Delivery, begun: float) -> Outcome:
        """Make one attempt in this thread. ``begun`` is now, by the clock."""
        prepared = None
        try:
            prepared = self._prepare(delivery)
            if prepared is None:
                return self._unknown(delivery)
            route, message, context = prepared
            if (circuit := route.circuit) is not None and not circuit.admits(delivery):
                return (delivery, Parked(circuit.wait_s, failed=False))
            route.call(message, context)
        except BaseException as error:  # noqa: BLE001 — a handler may raise SystemExit, and the record must be settled
            return self._failed(delivery, error, prepared)
        self._measure(route, delivery, begun)
        return (delivery, None)

    async def arun(self, delivery: Delivery, begun: float) -> Outcome:
        """Make one attempt on the running event loop; ``timeout_s`` cancels the handler."""
        prepared = None
        try:
            foreign = delivery.route is not None and delivery.route.handler.foreign is not None
            if foreign or self._decoder.at_hand(delivery.record.value):
                prepared = self._prepare(delivery)
            else:  # the other handlers go on meanwhile
                prepared = await asyncio.to_thread(self._prepare, delivery)
            if prepared is None:
                return self._unknown(delivery)
            route, message, context = prepared
            if (circuit := route.circuit) is not None and not circuit.admits(delivery):
                return (delivery, Parked(circuit.wait_s, failed=False))
            if (timeout_s := route.handler.timeout_s) is None:
                await route.call(message, context)
            else:
                async with asyncio.timeout(timeout_s):
                    await route.call(message, context)
        except BaseException as error:  # noqa: BLE001 — as above
            if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) is not None:
                task.uncancel()  # the handler was meant, and this task goes on with the next one
            return self._failed(delivery, error, prepared)
        self._measure(route, delivery, begun)
        return (delivery, None)

    def _prepare(self, delivery: Delivery) -> _Prepared | None:
        """Decode; None where nobody here handles the type."""
        record = delivery.record
        route = delivery.route
        if route is None:
            route = delivery.route = self._find(delivery)
            if route is None:
                return None
        if (terms := Terms.of(delivery.headers)) is not None:
            route = delivery.route = route.on(terms)
        if (foreign := route.handler.foreign) is None:
            message = self._decoder.decode(record.value, route.handler.model)
        else:
            message = foreign.message(record)
            if (event_id := foreign.id_of(record)) is not None:
                delivery.headers = {**delivery.headers, EVENT_ID: event_id}
        entry = None
        if self._entry is not None:
            entry = delivery.entry = self._entry(delivery, route)
        context = Context(
            record,
            delivery.headers,
            route.type_name,
            self._name,
            delivery.state,
            entry,
            self._state,
            route.handler.timeout_s,
        )
        context.raise_if_cancelled()
        if terms is not None and terms.expires_s is not None and self._wall() > _came_s(delivery) + terms.expires_s:
            raise JobExpired
        return route, message, context

    def _find(self, delivery: Delivery) -> Route | None:
        named = delivery.headers.get(TYPE)
        record = delivery.record
        if not named and record.value is None:
            return None  # a tombstone of nobody's type
        name = named.decode(errors="replace") if named else self._decoder.record_name(record.value or b"")
        topic = record.topic if delivery.state is None else delivery.state.origin.topic
        handler = self._group.handler(topic, name)
        return None if handler is None else self._routes[handler]

    def _unknown(self, delivery: Delivery) -> Outcome:
        state = delivery.state or RetryState.first(delivery.record)
        delivery.state = state
        return (
            delivery,
            unknown_type(queue=state.origin.topic in self._queues, retried=delivery.assigned.tier_s is not None),
        )

    def _measure(self, route: Route, delivery: Delivery, begun: float) -> None:
        if (circuit := route.circuit) is not None:
            circuit.succeeded(delivery)
        route.seconds.append(self._clock() - begun)
        route.ages_s.append(self._wall() - _came_s(delivery))

    def _failed(self, delivery: Delivery, error: BaseException, prepared: _Prepared | None) -> Outcome:
        """Settle what was raised, and write it into the delivery's state."""
        entry, route = delivery.entry, delivery.route
        circuit = None if route is None else route.circuit
        if entry is not None and entry.cancelled and isinstance(error, asyncio.CancelledError | JobCancelled):
            if circuit is not None:
                circuit.passed(delivery)
            return (delivery, Cancelled(begun=prepared is not None))
        if isinstance(error, JobExpired):
            return (delivery, Cancelled("Expired"))
        state = delivery.state or RetryState.first(delivery.record)
        decision = settle(
            error,
            None if route is None else route.handler,
            attempt=state.attempt,
            waited=delivery.waited,
            decoding=prepared is None,
        )
        failure = describe(error, prepared[1] if prepared else None)
        if circuit is not None and prepared is not None:
            decision = self._broken(circuit, delivery, error, failure, decision)
        if isinstance(decision, Wait):
            delivery.waited += 1
            return (delivery, decision)
        delivery.waited = 0
        if route is not None:
            route.failed.append(None)
        state = state.failed(failure, int(self._wall() * 1000))
        if isinstance(decision, Again | Move) and decision.counted:
            state = replace(state, attempt=state.attempt + 1)
        delivery.state = state
        return (delivery, decision)

    def _broken(
        self, circuit: Circuit, delivery: Delivery, error: BaseException, failure: Failure, decision: Decision
    ) -> Decision:
        """Tell the breaker; what would be tried again in place waits for it where it is open."""
        assert delivery.route is not None
        if isinstance(error, RetryLater) or not isinstance(error, delivery.route.handler.retry.uncounted):
            circuit.passed(delivery)
            return decision
        circuit.failed(delivery, failure.kind)
        if isinstance(decision, Again) and circuit.state != "closed":
            return Parked(circuit.wait_s, failed=True)
        return decision


def _came_s(delivery: Delivery) -> float:
    """When the record's row was inserted, in seconds since 1970."""
    state = delivery.state
    return (delivery.record.timestamp_ms if state is None else state.origin.timestamp_ms) * 0.001
