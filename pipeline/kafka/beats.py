"""Heartbeats in, on a compacted topic, or what kept them from there, out.

At most once: a heartbeat that the broker does not take within its time is dropped, as the next one says more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.errors import BrokerError
from pipeline.kafka.errors import misconfigured, translate

__all__ = ["BeatProducer"]

_FIXED: dict[str, str | int | bool] = {
    "acks": "all",
    "enable.idempotence": False,  # with it the client would not drop one without a fuss, or needs a right more
    "enable.gapless.guarantee": False,
    "max.in.flight.requests.per.connection": 1,  # a heartbeat must not come behind the last one
    "allow.auto.create.topics": False,  # it would not be compacted
    "queue.buffering.max.messages": 10,
    "linger.ms": 0,
    "log_level": 0,  # other clients of the process say what ails the broker
}


class BeatProducer:
    """Sends to one topic. ``options`` are librdkafka settings. Raises BrokerError where they are none."""

    def __init__(self, options: Mapping[str, str], topic: str, *, within_s: float) -> None:
        self._topic = topic
        self._settled: deque[BrokerError | None] = deque()
        within = {"message.timeout.ms": max(1, int(within_s * 1000))}
        try:
            self._producer = Producer({**options, **_FIXED, **within})
        except (KafkaException, ValueError, TypeError) as error:
            raise misconfigured(error, "producer of heartbeats") from error

    def send(self, key: bytes, value: bytes | None) -> None:
        """Queue one; a value of None takes back what was said. Raises BrokerError."""
        try:
            self._producer.produce(self._topic, value, key, on_delivery=self._delivered)
        except BufferError as error:
            raise BrokerError(f"topic {self._topic}: the client's queue is full", retryable=True) from error
        except KafkaException as error:
            raise translate(error.args[0], f"topic {self._topic}") from error

    def poll(self, wait_s: float) -> list[BrokerError | None]:
        """Return what became of those that were queued, waiting at most ``wait_s`` for the first."""
        self._producer.poll(wait_s)
        return [self._settled.popleft() for _ in range(len(self._settled))]

    def close(self) -> None:
        """Drop what is queued."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        self._settled.append(None if error is None else translate(error, f"topic {self._topic}"))
