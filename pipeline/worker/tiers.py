"""Records of retry topics in, those that are due out. Pure: the time comes in, pauses are asked for.

A tier's records wait alike, so its partition is paused until its head has waited as long as the tier is. A record
that is due later than that (``RetryLater``, jitter) does not hold up those behind it: it moves to the longest tier
that fits what is left, or waits here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.worker.delivery import Assigned, Delivery
from pipeline.worker.settlement import tier_for

__all__ = ["Due", "Tiers"]

_MOST = 1000
_MOST_BYTES = 8_000_000
_UNREADABLE_S = 30.0


@dataclass(slots=True)
class Due:
    """What a look at the waiting records gave: to be handled now, to be moved on, partitions to pause or resume."""

    now: list[Delivery] = field(default_factory=list)
    move: list[Delivery] = field(default_factory=list)
    pause: list[Assigned] = field(default_factory=list)
    resume: list[Assigned] = field(default_factory=list)


class Tiers:
    """Waiting records of one worker's retry partitions. Times are ms since 1970; ``chance`` gives 0 to 1."""

    def __init__(self, tiers_s: tuple[float, ...], chance: Callable[[], float]) -> None:
        self._tiers_s = tiers_s
        self._chance = chance
        self._waiting: list[tuple[int, int, Delivery]] = []
        self._number = 0
        self._rooms: dict[Assigned, _Room] = {}

    def add(self, delivery: Delivery, now_ms: int, due: Due) -> None:
        """Take a record that was just read from a tier, and sort it into ``due`` where it need not wait."""
        assigned = delivery.assigned
        room = self._rooms.setdefault(assigned, _Room())
        tier_ms = int((assigned.tier_s or 0.0) * 1000)
        written_ms = delivery.record.timestamp_ms
        if delivery.state is None:  # a newer worker's: back to the tiers, but not in a hurry
            head_ms = written_ms + max(tier_ms, int(_UNREADABLE_S * 1000))
        else:
            head_ms = min(delivery.state.due_ms, written_ms + tier_ms)
        if head_ms > now_ms and tier_ms:
            room.until_ms = max(room.until_ms, head_ms)
        self._place(delivery, room, head_ms, now_ms, due)
        if not room.paused and (room.until_ms > now_ms or room.full):
            room.paused = True
            due.pause.append(assigned)

    def wake(self, now_ms: int) -> Due:
        """Return what became due, and the partitions whose next record may be."""
        due = Due()
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ms:
            _, _, delivery = heapq.heappop(waiting)
            room = self._rooms.get(delivery.assigned)
            if room is not None:
                room.leave(delivery)
                self._place(delivery, room, now_ms, now_ms, due)
        for assigned, room in self._rooms.items():
            if room.paused and room.until_ms <= now_ms and not room.full:
                room.paused = False
                due.resume.append(assigned)
        return due

    def next_ms(self) -> int | None:
        """When to look again; None while nothing waits."""
        times = [room.until_ms for room in self._rooms.values() if room.paused and not room.full]
        if self._waiting:
            times.append(self._waiting[0][0])
        return min(times, default=None)

    def drop(self, assigned: Assigned) -> list[Delivery]:
        """Forget a partition; return the records that waited."""
        self._rooms.pop(assigned, None)
        dropped = [delivery for _, _, delivery in self._waiting if delivery.assigned is assigned]
        self._waiting = [entry for entry in self._waiting if entry[2].assigned is not assigned]
        heapq.heapify(self._waiting)
        return dropped

    def _place(self, delivery: Delivery, room: _Room, head_ms: int, now_ms: int, due: Due) -> None:
        state = delivery.state
        if head_ms > now_ms:
            self._wait(delivery, room, head_ms)
        elif state is None:
            due.move.append(delivery)
        elif state.due_ms > now_ms:
            fits_s = tier_for((state.due_ms - now_ms) / 1000, self._tiers_s)
            if fits_s > 0:
                due.move.append(delivery)
            else:
                self._wait(delivery, room, state.due_ms)
        else:
            spread_ms = state.due_ms + self._jitter_ms(delivery)
            if spread_ms > now_ms and not delivery.waited and not room.full:
                delivery.waited = 1
                self._wait(delivery, room, spread_ms)
            else:
                delivery.waited = 0
                due.now.append(delivery)

    def _jitter_ms(self, delivery: Delivery) -> int:
        """Chance on top of the wait, so that what failed together is not tried together."""
        route, tier_s = delivery.route, delivery.assigned.tier_s
        if route is None or not tier_s:
            return 0
        return int(route.handler.retry.jitter * tier_s * 1000 * self._chance())

    def _wait(self, delivery: Delivery, room: _Room, until_ms: int) -> None:
        room.enter(delivery)
        self._number += 1
        heapq.heappush(self._waiting, (until_ms, self._number, delivery))


class _Room:
    """What waits of one partition."""

    __slots__ = ("bytes", "count", "paused", "until_ms")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.paused = False
        self.until_ms = 0

    @property
    def full(self) -> bool:
        return self.count >= _MOST or self.bytes >= _MOST_BYTES

    def enter(self, delivery: Delivery) -> None:
        self.count += 1
        self.bytes += len(delivery.record.value or b"")

    def leave(self, delivery: Delivery) -> None:
        self.count -= 1
        self.bytes -= len(delivery.record.value or b"")
