"""A partition in, its first offset that is still there and the one after its last out.

A partition that was just made, or whose leader moves, has no leader for a moment: that is waited for.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

__all__ = ["extent"]

_PAUSE_S = 0.05
# the client does not call these retriable where they answer a question
_PASSING = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
)


def extent(consumer: Consumer, topic: str, partition: int, timeout_s: float) -> tuple[int, int]:
    """Ask the broker, again where the error can pass. Raises KafkaException after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            low, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
        except KafkaException as error:
            found = error.args[0]
            if not (found.retriable() or found.code() in _PASSING) or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return int(low), int(end)
