"""Records in, deliveries begun: each with its partition, its handler and what its order is kept by.

Records of a retry topic wait for their time first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress

from pipeline.definition import Group, Handler
from pipeline.errors import PoisonError
from pipeline.failure import describe
from pipeline.headers import TYPE, NewerFormat, RetryState
from pipeline.record import Record
from pipeline.terms import Terms
from pipeline.worker.beginning import Beginning
from pipeline.worker.delivery import Assigned, Delivery, InFlight, Route
from pipeline.worker.gauges import Gauges
from pipeline.worker.holding import Holding
from pipeline.worker.outlet import Outlet
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Partition
from pipeline.worker.tiers import Due, Tiers

__all__ = ["Dispatch"]


class Dispatch:
    """Hands over what a poll brought. The poll thread only; ``wall`` gives seconds since 1970."""

    def __init__(
        self,
        group: Group,
        routes: Mapping[Handler, Route],
        partitions: Partitions,
        beginning: Beginning,
        holding: Holding,
        tiers: Tiers,
        outlet: Outlet,
        in_flight: InFlight,
        gauges: Gauges,
        wall: Callable[[], float],
    ) -> None:
        self._routes = {(h.topic, h.model.message_type.name.encode()): route for h, route in routes.items()}
        self._foreign = {topic: routes[handler] for topic, handler in group.foreign.items()}
        self._queues = {h.topic for h in group.handlers if h.model.message_type.kind == "job"}
        self._partitions = partitions
        self._beginning = beginning
        self._holding = holding
        self._tiers = tiers
        self._outlet = outlet
        self._in_flight = in_flight
        self._gauges = gauges
        self._wall = wall

    def take(self, records: list[Record]) -> None:
        """Begin records that were polled, each partition's in the order of its offsets."""
        assigned: Assigned | None = None
        here: Partition | None = None
        offsets: list[int] = []
        fresh: list[Delivery] = []
        due = Due()
        now_ms = int(self._wall() * 1000)
        mine, routes, held, size = self._partitions.mine, self._routes, self._holding.keys, 0
        careful = False
        for record in records:
            topic, partition, offset, key, value, raw, _ = record
            if here is None or partition != here[1] or topic != here[0]:
                if assigned is not None:
                    assigned.watermark.deliver(offsets)
                offsets = []
                here = (topic, partition)
                assigned = mine.get(here)
                careful = assigned is not None and assigned.careful
            if assigned is None or assigned.closed:
                continue
            if careful and assigned.settled_before(offset):
                self._gauges.settled("known", 1)
                continue
            offsets.append(offset)
            headers = dict(raw) if raw else {}
            if assigned.tier_s is not None:
                self._take_retried(assigned, record, headers, now_ms, due)
                continue
            if value is not None:
                size += len(value)
            route = routes.get((topic, headers.get(TYPE)))  # type: ignore[arg-type]  # None is no key, and that is right
            if self._foreign:
                route = self._foreign.get(topic, route)
            order_by: Hashable
            if route is not None:
                order = route.handler.order
                order_by = key if order == "key" else None if order == "none" else assigned.whole
            elif TYPE in headers and topic not in self._queues:
                fresh.append(Delivery(assigned, record, headers, None, None, None))
                continue
            else:
                order_by = key
            fresh.append(Delivery(assigned, record, headers, route, order_by, None))
            if held and order_by in held:
                self._holding.hold_behind(assigned, order_by)
        if assigned is not None:
            assigned.watermark.deliver(offsets)
        if fresh:
            self._in_flight.records += len(fresh)
            self._in_flight.bytes += size
            self._beginning.submit(fresh)
        self._move(due)

    def wake(self) -> None:
        """Begin records of retry topics whose time has come."""
        self._move(self._tiers.wake(int(self._wall() * 1000)))

    def _take_retried(
        self, assigned: Assigned, record: Record, headers: Mapping[str, bytes | None], now_ms: int, due: Due
    ) -> None:
        try:
            state: RetryState | None = RetryState.of(record)
        except NewerFormat:
            state = None
        except PoisonError as error:
            state = RetryState.first(record).failed(describe(error), now_ms)
            delivery = Delivery(assigned, record, headers, None, None, state)
            self._in_flight.enter(delivery)
            self._outlet.bury(delivery)
            return
        route = None
        order_by: Hashable = record.key
        if state is not None and (
            route := self._foreign.get(state.origin.topic)
            or self._routes.get((state.origin.topic, headers.get(TYPE) or b""))
        ):
            order, origin = route.handler.order, state.origin
            with suppress(PoisonError, NewerFormat):  # its attempt says so
                route = route if (terms := Terms.of(headers)) is None else route.on(terms)
            order_by = record.key if order == "key" else None if order == "none" else (origin.topic, origin.partition)
        self._tiers.add(Delivery(assigned, record, headers, route, order_by, state), now_ms, due)

    def _move(self, due: Due) -> None:
        """Begin what is due, move on what is not, and open or close partitions of retry topics."""
        for delivery in due.now:
            self._in_flight.enter(delivery)
        if due.now:
            self._beginning.submit(due.now)
        for delivery in due.move:
            self._in_flight.enter(delivery)
            self._outlet.retry(delivery)
        if due.pause:
            self._partitions.pause(due.pause, "tier")
        if due.resume:
            self._partitions.resume(due.resume, "tier")
