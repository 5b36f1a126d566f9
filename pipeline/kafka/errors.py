"""Errors of librdkafka and brokers in, this project's errors out: the one table for all Kafka adapters.

A code that is not in the table may pass by itself: librdkafka and brokers grow new ones, and waiting loses nothing.
"""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from pipeline.errors import BrokerError

__all__ = ["Denied", "misconfigured", "refuses_record", "translate"]

# The record itself is wrong: no broker state makes a later try succeed.
_REFUSALS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_EXCEPTION,
    }
)

_TWO_OF_ONE = "another process runs with this --instance-id: give each process of the group its own"
# code → the right that is missing, what to do
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: ("{right}", "grant this user {right} on the topic"),
    KafkaError.GROUP_AUTHORIZATION_FAILED: ("READ", "grant this user READ on the group"),
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: (
        "WRITE on a topic",
        "grant this user WRITE on the topics that it writes; before Kafka 3.0 IDEMPOTENT_WRITE on the cluster",
    ),
}
# code → (retryable, what to do)
_TABLE: dict[int, tuple[bool, str]] = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: (True, "create the topic: pipeline topics apply"),
    KafkaError._UNKNOWN_TOPIC: (True, "create the topic: pipeline topics apply"),  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION: (True, "the topic has fewer partitions than before"),  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED: (True, "check the user and password for Kafka"),
    KafkaError._AUTHENTICATION: (True, "check the user and password for Kafka"),  # noqa: SLF001
    KafkaError._SSL: (True, "check ssl.ca.location and the broker's certificate"),  # noqa: SLF001
    KafkaError._TRANSPORT: (True, "is the broker up, and bootstrap.servers right?"),  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN: (True, "is the broker up, and bootstrap.servers right?"),  # noqa: SLF001
    KafkaError._RESOLVE: (True, "is bootstrap.servers right?"),  # noqa: SLF001
    KafkaError._GAPLESS_GUARANTEE: (True, "all that was not acknowledged is sent again"),  # noqa: SLF001
    KafkaError._FATAL: (True, "all that was not acknowledged is sent again"),  # noqa: SLF001
    KafkaError.FENCED_INSTANCE_ID: (False, _TWO_OF_ONE),
    KafkaError.UNRELEASED_INSTANCE_ID: (True, f"{_TWO_OF_ONE}; or wait until the one before has timed out"),
    KafkaError._INVALID_ARG: (False, "correct the setting or argument"),  # noqa: SLF001
    KafkaError.POLICY_VIOLATION: (False, "ask whoever runs the broker for its policy"),
    KafkaError.TOPIC_ALREADY_EXISTS: (False, "the topic is there already"),
    KafkaError.INVALID_CONFIG: (False, "correct the setting"),
    KafkaError.INVALID_PARTITIONS: (False, "correct the number of partitions"),
    KafkaError.INVALID_REPLICATION_FACTOR: (False, "ask for no more replicas than there are brokers"),
    KafkaError.UNSUPPORTED_VERSION: (False, "the broker is too old for this"),
}


class Denied(BrokerError):
    """A right is missing. It may be granted while we wait."""


def refuses_record(error: KafkaError) -> bool:
    """Tell whether the error is about the record itself, so that it belongs on a DLQ; all others wait."""
    return error.code() in _REFUSALS


def translate(error: KafkaError, where: str, *, right: str = "READ") -> BrokerError:
    """Return the BrokerError for a vendor error; ``where`` is the topic, group or server that it is about.

    ``right`` is what was needed of a topic: it is told where that was denied.
    """
    code, what = _cause(error), f"Kafka: {where}: {error.str()} ({error.name()})"
    if code in _DENIED:
        needed, remedy = (text.format(right=right) for text in _DENIED[code])
        return Denied(f"{what}: {needed} is needed", remedy=remedy, retryable=True)
    retryable, remedy = _TABLE.get(code, (error.code() not in _REFUSALS, ""))
    return BrokerError(what, remedy=remedy, retryable=retryable)


def _cause(error: KafkaError) -> int:
    """Return the code behind a fatal error, which has it in its text only."""
    causes = (KafkaError.FENCED_INSTANCE_ID, KafkaError.UNRELEASED_INSTANCE_ID, *_DENIED)
    code = error.code()
    if code == KafkaError._FATAL:  # noqa: SLF001
        return next((cause for cause in causes if KafkaError(cause).str() in error.str()), code)
    return code


def misconfigured(error: Exception, client: str) -> BrokerError:
    """Return the BrokerError for a client that could not be made of its settings."""
    found = error.args[0] if isinstance(error, KafkaException) and error.args else None
    text = found.str() if isinstance(found, KafkaError) else str(error)
    return BrokerError(f"Kafka: {client}: {text}", remedy="correct PIPELINE_KAFKA__…, -X or the connector file")
