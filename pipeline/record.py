"""One Kafka message as the stages see it: plain values, bytes as they came."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Header", "Record"]

Header = tuple[str, bytes | None]


class Record(NamedTuple):
    """One record. ``timestamp_ms`` is since 1970; ``headers`` keep order and duplicates."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int
