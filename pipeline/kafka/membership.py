"""Settings of a consumer in, how it is a member of its group out: by KIP-848, or in the classic way.

KIP-848 is tried first where nothing speaks against it, and the classic way taken where the broker refuses: those
below 4.0 do, and those that have the feature switched off. No right is needed to find that out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from confluent_kafka import KafkaError

from pipeline.errors import ConfigError

__all__ = ["CLASSIC", "KIP_848", "membership", "not_taken"]

CLASSIC = {"group.protocol": "classic", "partition.assignment.strategy": "cooperative-sticky"}
KIP_848 = {"group.protocol": "consumer"}
_CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy")
_UNKNOWN = (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE)  # noqa: SLF001


def membership(options: Mapping[str, object]) -> Literal["classic", "consumer", "auto"]:
    """Return the protocol that the settings ask for; ``auto`` leaves it to the broker. Raises ConfigError.

    Settings that only the classic protocol has (session and heartbeat are the broker's with KIP-848) choose it.
    """
    classic_only = [name for name in _CLASSIC_ONLY if name in options]
    wanted = str(options.get("group.protocol", "auto"))
    if wanted not in {"classic", "consumer", "auto"}:
        raise ConfigError(f"consumer setting group.protocol={wanted}", remedy="it is classic, consumer or auto")
    if options.get("partition.assignment.strategy", "cooperative-sticky") != "cooperative-sticky":
        raise ConfigError(
            "consumer setting partition.assignment.strategy", remedy="it must be cooperative-sticky: leave it out"
        )
    if wanted == "consumer" and classic_only:
        raise ConfigError(
            f"consumer settings group.protocol=consumer and {', '.join(classic_only)}",
            remedy="with KIP-848 the broker has them (group.consumer.*): leave out one or the other",
        )
    return "classic" if wanted == "auto" and classic_only else wanted  # type: ignore[return-value]  # looked at above


def not_taken(error: KafkaError) -> bool:
    """Tell whether a client failed because its broker does not know KIP-848."""
    fatal = error.code() == KafkaError._FATAL or error.fatal()  # noqa: SLF001 — a poll says it by the code alone
    return error.code() in _UNKNOWN or (fatal and any(KafkaError(code).str() in error.str() for code in _UNKNOWN))
