"""A queue's group in, its two sides out: a member of a share group for its topics, of a consumer group for retries."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.definition import Group
from pipeline.errors import ConfigError
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.share import RetryConsumer, ShareGroup, lock_of
from pipeline.topics import retry_tier

__all__ = ["share_name", "sides"]

_RESERVE_S = 2.0  # to settle what ended just before its lock runs out


def share_name(group: str) -> str:
    """Return the share group's name: a consumer group of the same name would keep its members out."""
    return f"{group}.share"


def sides(
    group: Group,
    consumer: Mapping[str, str],
    both: Mapping[str, str],
    producer: Mapping[str, str],
    *,
    concurrency: int,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[ShareGroup, RetryConsumer]:
    """Build both sides. ``consumer``, ``both`` and ``producer`` are the client's settings for a member, any client, and
    what writes. Raises ConfigError where a handler cannot run so, BrokerError where the broker has no share groups.
    """  # fmt: skip
    _check_kinds(group)
    name = share_name(group.name)
    lock_s = lock_of(both, name)
    _check_times(group, lock_s)
    share = ShareGroup(
        both,
        name,
        group.topics,
        most=concurrency,
        lock_s=lock_s,
        aside=retry_tier(group.name, 0.0),
        producer=AckProducer(producer),
    )
    return share, RetryConsumer(consumer, group.name, group.retry_topics, stopped=stopped)


def _check_kinds(group: Group) -> None:
    for handler in group.handlers:
        if handler.model.message_type.kind != "job" or handler.order != "none":
            raise ConfigError(
                f"--mode share: {handler.name} has order={handler.order!r}: a share group keeps none",
                remedy="run queues alone so (--queue), of jobs without order; others without --mode share",
            )


def _check_times(group: Group, lock_s: float) -> None:
    for handler in group.handlers:
        if handler.timeout_s is None or handler.timeout_s > lock_s - _RESERVE_S:
            raise ConfigError(
                f"--mode share: {handler.name} has timeout_s={handler.timeout_s}, and the share group locks a record "
                f"for {lock_s:g} s: then somebody else has it",
                remedy=f"@app.job(…, timeout_s={lock_s - _RESERVE_S:g}) or less; or run it without --mode share",
            )
