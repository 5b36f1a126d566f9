"""Whatever goes wrong, as one tree of errors that say what, where, and what to do.

    PipelineError
    ├── ConfigError         a setting, a connector file, a definition: somebody must change text
    ├── SourceError         PostgreSQL: connection, slot, outbox table, relay position
    ├── BrokerError         Kafka: connection, topic, authorisation, a refused record
    ├── SchemaError         registry, subject, schema, bytes that do not fit a schema
    │   └── PoisonError     the bytes of one record are wrong, whoever reads them
    ├── JobError            a job that cannot be enqueued or commanded as asked: a unique key is taken, it is finished
    ├── ConnectError        Kafka Connect's REST API
    └── LocalStackError     the servers on this machine

Adapters translate vendor errors in one table and ``raise … from error``. Exit codes are made in ``cli/`` only.
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "ConfigError",
    "ConnectError",
    "JobError",
    "LocalStackError",
    "PipelineError",
    "PoisonError",
    "SchemaError",
    "SourceError",
]


class PipelineError(Exception):
    """An error of this project.

    ``what`` says what happened and where, ``remedy`` what to do about it (may be empty).
    ``retryable`` is true where the same call can succeed later without anybody changing anything.
    """

    def __init__(self, what: str, *, remedy: str = "", retryable: bool = False) -> None:
        super().__init__(f"{what}\n  → {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
        self.retryable = retryable


class ConfigError(PipelineError):
    """A setting, definition or connector file that cannot be used as it is."""


class SourceError(PipelineError):
    """PostgreSQL, the slot or the outbox is not as it must be."""


class BrokerError(PipelineError):
    """Kafka refused, or could not be reached."""


class SchemaError(PipelineError):
    """A schema is missing, incompatible, or does not fit."""


class PoisonError(SchemaError):
    """The bytes of one record are wrong in themselves: no later try can decode them."""


class JobError(PipelineError):
    """A job is not in a state in which that can be done."""


class ConnectError(PipelineError):
    """Kafka Connect refused, or a connector failed."""


class LocalStackError(PipelineError):
    """A server of the local stack could not be fetched, started or stopped."""
