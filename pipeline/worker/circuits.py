"""Records whose handler's breaker is open in, kept until it lets them go on.

What is kept is bounded, so that other handlers of the group go on: where all of a topic's handlers wait, its partitions
are paused at once; elsewhere a partition is paused when it has its share here, or, without order, more is moved to a
retry topic, uncounted.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.definition import Group, Handler
from pipeline.headers import RetryState
from pipeline.metrics import Meter
from pipeline.worker.circuit import Circuit
from pipeline.worker.delivery import Assigned, Delivery, Engine, Route
from pipeline.worker.holding import Holding
from pipeline.worker.partitions import Partitions
from pipeline.worker.ports import Health
from pipeline.worker.settlement import Move

__all__ = ["Circuits", "circuits_of"]

log = logging.getLogger("pipeline.worker")

_STATES = {"closed": 0, "half-open": 1, "open": 2}


@dataclass(slots=True, eq=False)
class _Room:
    """What waits for one circuit, oldest first. ``told`` is what people know of it, ``counted`` what metrics do."""

    circuit: Circuit
    type_name: str
    records: deque[Delivery] = field(default_factory=deque)
    told: str = "closed"
    counted: int = 0


class Circuits:
    """The breakers of one worker's handlers. The poll thread only.

    ``trying`` has records that are on their way to an attempt as probes. ``records`` and ``bytes`` bound what is kept
    over all partitions, ``backlog`` what is kept of one.
    """

    def __init__(
        self,
        group: Group,
        routes: Mapping[Handler, Route],
        engine: Engine,
        partitions: Partitions,
        holding: Holding,
        health: Health,
        meter: Meter,
        *,
        records: int,
        bytes: int,  # noqa: A002 — as Limits has it
        backlog: int,
    ) -> None:
        self._group = group
        self._engine = engine
        self._partitions = partitions
        self._holding = holding
        self._health = health
        self._meter = meter
        self._records = records
        self._bytes = bytes
        self._backlog = backlog
        self._rooms = {r.circuit: _Room(r.circuit, r.type_name) for r in routes.values() if r.circuit is not None}
        self._topics: dict[str, list[Circuit | None]] = {}
        for handler, route in routes.items():
            self._topics.setdefault(handler.topic, []).append(route.circuit)
        self._kept: Counter[Assigned] = Counter()
        self._kept_in_order: Counter[Assigned] = Counter()
        self._kept_bytes = 0
        self._stopping = False
        self.trying: set[Delivery] = set()

    @property
    def due_in_s(self) -> float | None:
        """Seconds until a probe may begin; None while no breaker is open."""
        return min((c.wait_s for c in self._rooms if c.state == "open"), default=None)

    def park(self, delivery: Delivery) -> bool:
        """Keep a record for its breaker; False where there is no room for it, and it must move ``aside``."""
        assigned, room = delivery.assigned, self._room(delivery)
        full = self._full(assigned)
        if full and delivery.key is None and not assigned.closed and not self._blocked(assigned):
            return False
        if self._holding.keep(delivery):
            room.records.append(delivery)
            self._kept[assigned] += 1
            self._kept_in_order[assigned] += delivery.key is not None
            self._kept_bytes += len(delivery.record.value or b"")
            if self._stopped(assigned):
                self._partitions.pause([assigned], "breaker")
        return True

    def aside(self, delivery: Delivery) -> Move:
        """Return where a record goes that has no order and no room."""
        delivery.state = delivery.state or RetryState.first(delivery.record)
        shortest_s = next((tier_s for tier_s in self._group.tiers_s if tier_s > 0), 0.0)
        return Move(max(self._room(delivery).circuit.wait_s, shortest_s), counted=False)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many records wait here and behind their keys, and the bytes of the former."""
        keys = self._holding.keys
        return sum(1 + keys.get(d.key, 0) for room in self._rooms.values() for d in room.records), self._kept_bytes

    def tried(self, delivery: Delivery) -> None:
        """A record came to the end of an attempt."""
        self.trying.discard(delivery)

    def step(self) -> None:
        """Let go on what may: all of a breaker that closed, single records of one that is half open."""
        stopping = False
        for room in self._rooms.values():
            circuit, records = room.circuit, room.records
            circuit.cool()
            if circuit.state == "closed":
                self._go_on(records, len(records))
            else:
                stopping = True
                if circuit.state == "half-open" and records:
                    trying = {delivery for delivery in self.trying if self._room(delivery) is room}
                    self.trying.update(self._go_on(records, max(0, circuit.free(trying))))
            if circuit.state != room.told:
                self._tell(room)
        if stopping or self._stopping:
            self._flow()
        self._stopping = stopping

    def forget_closed(self) -> None:
        """Drop what waits of partitions that are taken away."""
        for room in self._rooms.values():
            gone = [delivery for delivery in room.records if delivery.assigned.closed]
            if gone:
                room.records = deque(d for d in room.records if not d.assigned.closed)
            for delivery in gone:
                self._left(delivery)
                self._holding.drop(delivery, held=True)
        self.trying = {delivery for delivery in self.trying if not delivery.assigned.closed}

    def report(self) -> None:
        """Hand metrics on."""
        for room in self._rooms.values():
            circuit, labels = room.circuit, {"group": self._group.name, "type": room.type_name}
            self._meter.set("pipeline_breaker_state", _STATES[circuit.state], **labels)
            self._meter.set("pipeline_breaker_waiting_records", len(room.records), **labels)
            if opened := circuit.opened - room.counted:
                self._meter.add("pipeline_breaker_opened_total", opened, **labels)
                room.counted = circuit.opened

    def _flow(self) -> None:
        """Pause and resume partitions as the breakers are."""
        stopped = {assigned for assigned in self._partitions.mine.values() if self._stopped(assigned)}
        self._partitions.pause(stopped, "breaker")
        self._partitions.resume(set(self._partitions.mine.values()) - stopped, "breaker")

    def _go_on(self, records: deque[Delivery], count: int) -> list[Delivery]:
        gone = [records.popleft() for _ in range(min(count, len(records)))]
        for delivery in gone:
            self._left(delivery)
            if delivery.key is not None:
                self._holding.take_up(delivery)
        self._holding.take_up_anew([delivery for delivery in gone if delivery.key is None])
        return gone

    def _left(self, delivery: Delivery) -> None:
        assigned = delivery.assigned
        self._kept[assigned] -= 1
        self._kept_in_order[assigned] -= delivery.key is not None
        if not self._kept[assigned]:
            del self._kept[assigned], self._kept_in_order[assigned]
        self._kept_bytes -= len(delivery.record.value or b"")

    def _stopped(self, assigned: Assigned) -> bool:
        """Whether no more may come of a partition: nothing of it can begin, or what has an order fills its share.

        What waits behind kept keys counts too.
        """
        if self._blocked(assigned):
            return True
        in_order = self._kept_in_order[assigned]
        return in_order > 0 and (self._full(assigned) or in_order + self._holding.behind[assigned] >= self._backlog)

    def _full(self, assigned: Assigned) -> bool:
        """Whether a partition has its share of what is kept here: half of what may be in flight, for all of them."""
        kept, share = self._kept[assigned], self._records // (2 * max(1, len(self._partitions.mine)))
        return kept >= max(1, min(self._backlog, share)) or (kept > 0 and self._kept_bytes >= self._bytes // 2)

    def _blocked(self, assigned: Assigned) -> bool:
        """Whether nothing of a topic can begin. With a breaker half open and nothing here to try, something can."""
        topics = [assigned.topic] if assigned.tier_s is None else list(self._topics)
        return all(
            c is not None and (c.state == "open" or (c.state == "half-open" and self._has_probes(c)))
            for topic in topics
            for c in self._topics[topic]
        )

    def _has_probes(self, circuit: Circuit) -> bool:
        return bool(self._rooms[circuit].records or self.trying) or circuit.free() <= 0

    def _room(self, delivery: Delivery) -> _Room:
        assert delivery.route is not None
        assert delivery.route.circuit is not None
        return self._rooms[delivery.route.circuit]

    def _tell(self, room: _Room) -> None:
        circuit, group = room.circuit, self._group.name
        part = f"{group} {room.type_name}"
        if circuit.state == "closed":
            self._health.note(part, "")
            log.info("breaker closed", extra={"action": "worker.breaker", "group": group, "type": room.type_name})
        elif circuit.state == "half-open":
            self._health.note(part, f"breaker half open after {circuit.kind}: a record is tried")
        else:
            wait_s = round(circuit.wait_s, 1)
            self._health.note(part, f"breaker open after {circuit.kind}: tried again every {wait_s:g} s or later")
            log.warning(
                "breaker open: the handler waits for what it depends on",
                extra={
                    "action": "worker.breaker",
                    "group": group,
                    "type": room.type_name,
                    "error_class": circuit.kind,
                    "wait_s": wait_s,
                },
            )
        room.told = circuit.state


def circuits_of(handlers: Iterable[Handler], clock: Callable[[], float]) -> dict[str, Circuit]:
    """Return handler name → circuit. A queue's topics by priority have one handler, and one circuit."""
    return {h.name: Circuit(h.breaker, clock) for h in handlers if h.breaker is not None}
