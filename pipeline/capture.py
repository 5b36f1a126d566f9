"""What a source hands to the relay, and the relay to a producer: routed records in batches with a position.

Plain tuples and lists, as this is the hot path: a row costs one tuple and its headers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import BrokerError, PoisonError

__all__ = [
    "Batch",
    "Headers",
    "Lost",
    "Refused",
    "Routed",
    "Unencoded",
    "Unroutable",
    "dead_letter",
    "identity",
    "lsn_text",
    "weight",
]

Headers = list[tuple[str, str | bytes | None]]

Routed = tuple[str, bytes | None, bytes | None, Headers, int, int]
"""Topic, key, value, headers, timestamp in ms since 1970, partition (-1: by the key, as Java does it)."""

_TEXT_LIMIT = 1000  # characters of an error's text in a header


@dataclass(slots=True)
class Batch:
    """Records in commit order.

    ``position`` is the LSN that may be confirmed once this and all earlier batches are acknowledged in full; None
    where no transaction ended. ``lsn`` is where the batch begins, ``size`` its bytes. ``dead`` has, by their index,
    the records that cannot be routed: why, and the LSN of each. ``more`` says that the source has more at
    once, or soon, ``open`` that it ends inside a transaction, whose end is already certain to come.
    """

    records: list[Routed] = field(default_factory=list)
    position: int | None = None
    lsn: int = 0
    size: int = 0
    dead: dict[int, tuple[Unroutable, int]] = field(default_factory=dict)
    more: bool = False
    open: bool = False


class Unroutable(PoisonError):
    """A row that makes no record, with as much of ``record`` as there is."""

    def __init__(self, what: str, record: Routed) -> None:
        super().__init__(what)
        self.record = record


class Unencoded(Unroutable):
    """A row whose key or value was not encoded: ``record`` has it as no topic is to have it."""


class Refused(BrokerError):
    """Records that the broker, or its client, refuses for what they are; ``records`` has their identities."""

    def __init__(self, what: str, records: frozenset[tuple[str, bytes | None, bytes | None]]) -> None:
        super().__init__(what)
        self.records = records


class Lost(BrokerError):
    """The client can never send again, and must be replaced: librdkafka's fatal errors."""


def identity(record: Routed) -> tuple[str, bytes | None, bytes | None]:
    """Return what tells a record from others in a delivery report: topic, key and value."""
    return record[:3]


def weight(record: Routed) -> int:
    """Return the bytes that a record holds while it is in flight, its bookkeeping included."""
    return len(record[1] or b"") + len(record[2] or b"") + 200


def dead_letter(
    topic: str, record: Routed, *, kind: str, message: str, lsn: int, now_ms: int, with_value: bool = True
) -> Routed:
    """Return the record for the DLQ ``topic``: key, value and headers byte for byte, and why and from where.

    ``kind`` is the class of the error, ``lsn`` where in the WAL the row or its batch began. Without its value where
    no topic takes that: its length then stands in a header.
    """
    _, key, value, headers, _, _ = record
    story: Headers = [
        *headers,
        ("__dlq.errors.topic", record[0]),
        ("__dlq.errors.exception.class", kind),
        ("__dlq.errors.message", message[:_TEXT_LIMIT]),
        ("__dlq.errors.lsn", lsn_text(lsn)),
        ("__dlq.errors.timestamp", str(record[4])),
    ]
    if not with_value:
        story.append(("__dlq.errors.value.bytes", str(len(value or b""))))
        value = None
    return (topic, key, value, story, now_ms, -1)


def lsn_text(lsn: int) -> str:
    """Write an LSN as PostgreSQL does: ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
