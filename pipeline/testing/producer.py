"""Records for retry topics and the DLQ in, acknowledgements out: a producer on the broker in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from pipeline.errors import BrokerError
from pipeline.testing.broker import Broker

__all__ = ["AckProducer"]

_Sent = tuple[str, bytes | None, bytes | None, list[tuple[str, str | bytes | None]], int, int, object]


class AckProducer:
    """As ``pipeline.kafka.producer.AckProducer``. ``sleep`` lets time pass; ``refuse`` draws a refusal that passes.

    A record is stored some polls after it was sent. While the broker is away it waits: nothing expires.
    """

    def __init__(
        self,
        broker: Broker,
        chance: Random,
        *,
        sleep: Callable[[float], None] = lambda _seconds: None,
        refuse: Callable[[], bool] = lambda: False,
    ) -> None:
        self._broker = broker
        self._chance = chance
        self._sleep = sleep
        self._refuse = refuse
        self._queue: deque[_Sent] = deque()
        self._settled: list[tuple[object, BrokerError | None]] = []

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        timestamp_ms: int,
        token: object,
        *,
        partition: int = -1,
    ) -> None:
        """Queue one record; ``timestamp_ms`` 0 means now, ``partition`` -1 by key."""
        self._queue.append((topic, key, value, list(headers), timestamp_ms, partition, token))

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        """Return ``(token, error or None)`` of what was settled."""
        del wait_s
        if not self._broker.down:
            self._store(self._chance.randint(0, len(self._queue)))
        settled, self._settled = self._settled, []
        return settled

    def flush(self, wait_s: float) -> int:
        """Send what is queued at once; return how many records are not settled yet."""
        if self._broker.down:
            self._sleep(wait_s)
        else:
            self._store(len(self._queue))
        return len(self._queue)

    def close(self) -> None:
        """Drop what was not acknowledged."""
        self._queue.clear()

    def crash(self) -> None:
        """Be gone, as after a kill: of what was on its way, chance decides how much is stored."""
        if not self._broker.down:
            self._store(self._chance.randint(0, len(self._queue)))
        self.close()

    def _store(self, count: int) -> None:
        for _ in range(count):
            topic, key, value, headers, timestamp_ms, partition, token = self._queue.popleft()
            try:
                if self._refuse():
                    raise BrokerError(f"Kafka: topic {topic}: refused for a moment", retryable=True)
                self._broker.append(topic, key, value, headers, timestamp_ms=timestamp_ms, partition=partition)
            except BrokerError as error:
                self._settled.append((token, error))
            else:
                self._settled.append((token, None))
