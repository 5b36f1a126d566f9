"""A topic in, what of it is still there out: where a time begins, the records, and what may have been deleted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

from confluent_kafka import KafkaException, TopicPartition

from pipeline.kafka.admin import Topics
from pipeline.kafka.errors import translate
from pipeline.kafka.reader import TopicReader

__all__ = ["TopicArchive"]

_TIMEOUT_S = 8.0


class TopicArchive(TopicReader):
    """Reads topics by time. ``options`` are librdkafka settings; every call raises BrokerError. Close it."""

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self._topics = Topics(options)

    def starts(self, topic: str, at_ms: int) -> dict[int, tuple[int, int]]:
        """Return partition → the first offset with this or a later time (the end: none), and the one after the last."""
        bounds = self.bounds(topic)
        if at_ms <= 0:
            return bounds
        asked = [TopicPartition(topic, partition, at_ms) for partition in bounds]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error.args[0], f"topic {topic}") from error
        for one in found:
            if one.error is not None:
                raise translate(one.error, f"{topic}[{one.partition}]")
        return {
            one.partition: (one.offset if one.offset >= 0 else bounds[one.partition][1], bounds[one.partition][1])
            for one in found
        }

    def gone(self, topic: str) -> tuple[int, bool]:
        """Return the time (ms) before which records may have been deleted, 0: none; and whether it is compacted."""
        config = self._topics.configs([topic])[topic]
        before_ms = 0
        for partition, (low, end) in self.bounds(topic).items():
            if low > 0:
                with closing(self.read(topic, partition, low, end)) as records:
                    first = next(records, None)
                kept_ms = int(config.get("retention.ms", "-1"))
                last_ms = int(time.time() * 1000) - max(kept_ms, 0)
                before_ms = max(before_ms, last_ms if first is None else first.timestamp_ms)
        return before_ms, "compact" in config.get("cleanup.policy", "")
