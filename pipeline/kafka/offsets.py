"""A group's topics in; where it goes on in them, and begins where it never read, out.

Where it begins is committed at once. Questions are asked again until the broker answers, with more time for each
answer that came too late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.definition import Start
from pipeline.errors import BrokerError
from pipeline.kafka.errors import Denied, translate
from pipeline.progress import Mark

__all__ = ["Offsets"]

log = logging.getLogger(__name__)

_FIRST_S = 1.0  # how long an answer may take: short, as an end waits for it …
_LONGEST_S = 10.0  # … and longer after each that came too late
_OPEN_S = 3.0  # who opens asks again, and says meanwhile what it waits for
_PATIENCE_S = 60.0  # a coordinator that starts or moves answers with errors that pass
_APPEAR_S = 3.0  # a broker lists a topic a moment after its controller has made it
_PAUSE_S = 0.1
_LATE = frozenset({KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT})  # noqa: SLF001
_MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})  # noqa: SLF001
_NOT_OURS = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
    }
)

T = TypeVar("T")


class Offsets:
    """What a group has committed, asked by its client. ``stopped`` tells not to ask again. All raise BrokerError."""

    def __init__(self, consumer: Consumer, group: str, stopped: Callable[[], bool]) -> None:
        self._consumer = consumer
        self._group = group
        self._stopped = stopped
        self._patience_s = _PATIENCE_S
        self._answer_s = _FIRST_S

    def begin(self, starts: Mapping[str, Start]) -> None:
        """Commit where each topic begins that the group never read. A group that runs elsewhere refuses that: fine.

        What is retryable is told soon, and this can be called again. A topic that is missing is not.
        """
        self._patience_s = _OPEN_S
        try:
            self._begin(starts, self._partitions(starts))
        finally:
            self._patience_s = _PATIENCE_S

    def of(self, partitions: Sequence[TopicPartition], starts: Mapping[str, Start]) -> dict[tuple[str, int], Mark]:
        """Return where to read partitions on."""
        stored = self._stored(partitions)
        without = [p for p in stored if p.offset < 0]
        found = {(p.topic, p.partition): Mark(p.offset, p.metadata or "") for p in stored if p.offset >= 0}
        if without:
            topics = {p.topic for p in without}
            siblings = [
                TopicPartition(topic, number) for topic, numbers in self._listed(topics).items() for number in numbers
            ]
            known = {p.topic for p in self._stored(siblings) if p.offset >= 0}
            for partition in without:
                # a partition that is new to a topic that is known begins at its beginning
                start: Start = "earliest" if partition.topic in known else starts[partition.topic]
                offset = self._patiently(
                    partial(self._start_offset, partition, start), f"{partition.topic} [{partition.partition}]"
                )
                found[partition.topic, partition.partition] = Mark(offset)
        return found

    def _begin(self, starts: Mapping[str, Start], partitions: Mapping[str, Sequence[int]]) -> None:
        everything = [TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers]
        known = {p.topic for p in self._stored(everything) if p.offset >= 0}
        fresh = {partition.topic for partition in everything} - known
        offsets = [
            TopicPartition(p.topic, p.partition, offset)
            for p, offset in self._start_offsets([p for p in everything if p.topic in fresh], starts)
        ]
        if not offsets:
            return
        where = f"group {self._group}: committing where it begins on {', '.join(sorted(fresh))}"
        try:
            errors = [p.error for p in self._consumer.commit(offsets=offsets, asynchronous=False)]
        except KafkaException as raised:
            errors = [raised.args[0]]
        for error in errors:
            if error is not None and error.code() not in _NOT_OURS:
                raise translate(error, where)
        skipping = [topic for topic in sorted(fresh) if starts[topic] != "earliest"]
        log.log(
            logging.WARNING if skipping else logging.INFO,
            f"group {self._group} had committed nothing on {', '.join(skipping or sorted(fresh))}: it is new, or its "
            f"offsets have expired; it begins at {starts[skipping[0]] if skipping else 'the beginning'}",
            extra={"action": "consumer.begin", "group": self._group},
        )

    def _partitions(self, topics: Iterable[str]) -> dict[str, list[int]]:
        wanted = frozenset(topics)
        until = time.monotonic() + _APPEAR_S
        while unseen := sorted(wanted - set(found := self._listed(wanted))):
            # one that we may not see is left out of the list, and told to who asks for it by name
            missing = [name for name in unseen if self._patiently(partial(self._is_missing, name), f"topic {name}")]
            if time.monotonic() > until or self._stopped():
                if not missing:  # each is there when it is asked for by name, and not in the list
                    raise BrokerError(
                        f"group {self._group}: the broker does not list {', '.join(unseen)}", retryable=True
                    )
                raise BrokerError(
                    f"group {self._group}: no such topic: {', '.join(missing)}",
                    remedy="create them: pipeline topics apply MODULE:APP",
                )
            time.sleep(_PAUSE_S)
        return found

    def _listed(self, wanted: Iterable[str]) -> dict[str, list[int]]:
        found = self._patiently(lambda wait_s: self._consumer.list_topics(timeout=wait_s), "list topics").topics
        return {name: sorted(found[name].partitions) for name in wanted if name in found}

    def _is_missing(self, topic: str, wait_s: float) -> bool:
        error = self._consumer.list_topics(topic, timeout=wait_s).topics[topic].error
        if error is not None and error.code() not in _MISSING:
            raise KafkaException(error)
        return error is not None

    def _start_offsets(
        self, partitions: Sequence[TopicPartition], starts: Mapping[str, Start]
    ) -> list[tuple[TopicPartition, int]]:
        return self._patiently(
            lambda wait_s: [(p, self._start_offset(p, starts[p.topic], wait_s)) for p in partitions],
            f"group {self._group}: where its topics begin",
        )

    def _start_offset(self, partition: TopicPartition, start: Start, wait_s: float) -> int:
        if isinstance(start, datetime):
            at = TopicPartition(partition.topic, partition.partition, int(start.timestamp() * 1000))
            found = self._consumer.offsets_for_times([at], timeout=wait_s)[0]
            if found.error is not None:
                raise KafkaException(found.error)
            if found.offset >= 0:
                return int(found.offset)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=wait_s)
        return int(low if start == "earliest" else high)

    def _stored(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        def ask(wait_s: float) -> list[TopicPartition]:
            stored = self._consumer.committed(list(partitions), timeout=wait_s)
            for partition in stored:
                if partition.error is not None:
                    raise KafkaException(partition.error)
            return stored

        return self._patiently(ask, f"committed offsets of group {self._group}")

    def _patiently(self, ask: Callable[[float], T], where: str) -> T:
        """Ask until there is an answer; ``ask`` takes how long it may wait for it.

        Raises BrokerError for what does not pass, not soon enough, or when the end was asked for; Denied at once.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                answer = ask(self._answer_s)
            except KafkaException as raised:
                error = translate(raised.args[0], where)
                if raised.args[0].code() in _LATE:
                    self._answer_s = min(2 * self._answer_s, _LONGEST_S)
                passes = error.retryable and not isinstance(error, Denied)
                if not passes or time.monotonic() > deadline or self._stopped():
                    raise error from raised
            else:
                self._answer_s = _FIRST_S
                return answer
            time.sleep(_PAUSE_S)
