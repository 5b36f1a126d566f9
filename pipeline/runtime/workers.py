"""A worker process in, its heartbeats out; and heartbeats in, which workers there are and how they stand, out."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.app import Pipeline
from pipeline.beat import Beat, Seen, Standing, Worker, standing
from pipeline.config import Settings
from pipeline.endpoints import kafka_options
from pipeline.kafka.beats import BeatProducer
from pipeline.kafka.reader import TopicReader
from pipeline.metrics import Meter
from pipeline.topics import BEATS
from pipeline.worker import Worker as GroupWorker
from pipeline.worker.beats import Beats

__all__ = ["Crew", "beats_of", "crew"]

_STORED_S = 2.0  # a broker may take as long as that, however often heartbeats come


def beats_of(
    app: Pipeline,
    workers: Sequence[GroupWorker],
    state: Callable[[], Mapping[str, object]],
    kafka: Mapping[str, str],
    meter: Meter,
    *,
    every_s: float,
    mode: str,
    number: int,
    supervisor: int | None,
) -> Beats:
    """Build what tells of this process's ``workers`` each ``every_s`` seconds; ``kafka`` is a producer's settings."""
    this = Worker(app.names.app, socket.gethostname(), os.getpid(), datetime.now(UTC), mode, number, supervisor)

    def say() -> bytes:
        groups = [worker.pulse.feel() for worker in workers]
        return Beat.of(this, groups, state(), now_s=time.time(), every_s=every_s).value()

    def connect() -> BeatProducer:
        return BeatProducer(kafka, app.names.workers, within_s=max(every_s, _STORED_S))

    meter.add("pipeline_worker_beats_lost_total", 0)  # told from the start
    return Beats(connect, this.key, say, every_s=every_s, meter=meter)


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers that are seen; ``unattended`` groups have none that is heard, where the application is known."""

    workers: list[Standing]
    unattended: list[str]
    unreadable: int

    @property
    def well(self) -> bool:
        """Whether all are ready and nothing is missing."""
        return all(worker.state == "ready" for worker in self.workers) and not self.unattended


def crew(settings: Settings, app: Pipeline | None = None, *, within_s: float) -> Crew:
    """Read who has told of itself, ``within_s`` seconds ago at most: of one application, or of all on the broker.

    Raises BrokerError, also where the application's topic is not there.
    """
    with closing(TopicReader(kafka_options(settings))) as reader:
        if app is not None:
            topics = [app.names.workers]
        else:
            topics = sorted(topic for topic in reader.topics() if topic.endswith(BEATS))
        values: dict[tuple[str, bytes | None], tuple[bytes | None, float]] = {}
        for topic in topics:
            for partition, (first, end) in reader.bounds(topic).items():
                with closing(reader.read(topic, partition, first, end)) as records:
                    for record in records:
                        values[topic, record.key] = (record.value, record.timestamp_ms / 1000)
    read = [(Beat.read(value), at_s) for value, at_s in values.values() if value is not None]
    workers = standing(
        [Seen(beat, at_s) for beat, at_s in read if beat is not None], now_s=time.time(), within_s=within_s
    )
    heard = {group.group for worker in workers if worker.state != "silent" for group in worker.beat.groups}
    unattended = [] if app is None else [name for name in app.groups if name not in heard]
    return Crew(workers, unattended, sum(beat is None for beat, _ in read))
