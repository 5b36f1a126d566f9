"""Transactional outbox, Avro events on Kafka, consumers and background jobs."""

from typing import TYPE_CHECKING

from pipeline.app import Pipeline
from pipeline.breaker import Breaker
from pipeline.errors import PipelineError
from pipeline.event import Event, Job, Message, Money, Personal
from pipeline.outbox import Outbox
from pipeline.retry import Reject, RetryLater, RetryPolicy

if TYPE_CHECKING:
    from pipeline.context import Context

__all__ = [
    "Breaker",
    "Context",
    "Event",
    "Job",
    "Message",
    "Money",
    "Outbox",
    "Personal",
    "Pipeline",
    "PipelineError",
    "Reject",
    "RetryLater",
    "RetryPolicy",
]


def __getattr__(name: str) -> object:
    if name == "Context":  # not needed by who only publishes
        from pipeline.context import Context

        return Context
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
