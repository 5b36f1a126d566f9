"""A topic and a record's name in, the subject out under which the registry keeps that record's schema.

Writers, ``pipeline schema`` and the relay that encodes have to agree on it; consumers need none, as ids name schemas.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["DEFAULT_STRATEGY", "SubjectStrategy", "subject_of"]

SubjectStrategy = Literal["TopicRecordNameStrategy", "TopicNameStrategy", "RecordNameStrategy"]
"""Confluent's names. The second has one record type for each topic, the third one schema for each record's name."""

DEFAULT_STRATEGY: SubjectStrategy = "TopicRecordNameStrategy"


def subject_of(topic: str, name: str, strategy: SubjectStrategy = DEFAULT_STRATEGY) -> str:
    """Return the subject of the values of a record type on a topic. ``name`` is the record's full name."""
    if strategy == "TopicNameStrategy":
        return f"{topic}-value"
    return name if strategy == "RecordNameStrategy" else f"{topic}-{name}"
