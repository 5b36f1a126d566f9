"""One group's worker in, its part of a heartbeat out: counters, what is in flight, what is in a handler."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.beat import GroupBeat, RunningJob, group_beat
from pipeline.context import Context
from pipeline.headers import TYPE, stored_id
from pipeline.worker.delivery import Delivery, Engine, InFlight
from pipeline.worker.gauges import Gauges

__all__ = ["Pulse"]


class Pulse:
    """Feels it from any thread, as the poll thread may be within a drain; ``clock`` is the engine's."""

    def __init__(
        self, group: str, engine: Engine, in_flight: InFlight, gauges: Gauges, clock: Callable[[], float]
    ) -> None:
        self._group = group
        self._engine = engine
        self._in_flight = in_flight
        self._gauges = gauges
        self._clock = clock

    def feel(self) -> GroupBeat:
        """Return what is now."""
        now = self._clock()
        # what ends meanwhile is found twice: the first time in its handler
        running = dict(reversed(self._engine.running()))
        return group_beat(
            self._group,
            dict(self._gauges.totals),
            failed=self._gauges.failed,
            in_flight=self._in_flight.records,
            jobs=[self._job(delivery, max(0.0, now - since)) for delivery, since in running.items()],
        )

    def _job(self, delivery: Delivery, age_s: float) -> RunningJob:
        route = delivery.route
        name = route.type_name if route is not None else (delivery.headers.get(TYPE) or b"?").decode(errors="replace")
        context = Context(delivery.record, delivery.headers, name, self._group, delivery.state)
        return RunningJob(stored_id(context.event_id), name, context.attempt, round(age_s, 3))
