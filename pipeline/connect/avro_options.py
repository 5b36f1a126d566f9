"""The options of an Avro converter in, the registry that it registers at out: Confluent's converter, and Apicurio's.

Nothing is passed over: what would make other records than ours is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

__all__ = ["APICURIO", "AVRO_OPTIONS", "CONFLUENT", "AvroRegistry", "avro_registry"]

CONFLUENT = "io.confluent.connect.avro.AvroConverter"
APICURIO = "io.apicurio.registry.utils.converter.AvroConverter"

_ANY: tuple[str, ...] = ()
_STRATEGY = "io.confluent.kafka.serializers.subject.TopicNameStrategy"
_USER_INFO = ("basic.auth.user.info", "schema.registry.basic.auth.user.info")
# option → the values that are honoured (none: any; the first is meant where it is absent), and its default
_CONFLUENT: dict[str, tuple[tuple[str, ...], str]] = {
    "schema.registry.url": (_ANY, ""),
    "basic.auth.credentials.source": (("URL", "USER_INFO"), "URL"),
    **dict.fromkeys(_USER_INFO, (_ANY, "")),
    "auto.register.schemas": (("true",), "true"),
    "use.latest.version": (("false",), "false"),
    "normalize.schemas": (("false",), "false"),
    "key.subject.name.strategy": ((_STRATEGY,), _STRATEGY),
    "value.subject.name.strategy": ((_STRATEGY,), _STRATEGY),
    "connect.meta.data": (("true",), "true"),
    "enhanced.avro.schema.support": (("false",), "false"),
    "generalized.sum.type.support": (("false",), "false"),
    "scrub.invalid.names": (("false",), "false"),
    "discard.type.doc.default": (("false",), "false"),
    "ignore.default.for.nullables": (("true", "false"), "true"),
    "schemas.cache.config": (_ANY, ""),
    "schemas.cache.size": (_ANY, ""),
    "max.schemas.per.subject": (_ANY, ""),
}
_TOPIC_ID = "io.apicurio.registry.serde.strategy.TopicIdStrategy"
_APICURIO: dict[str, tuple[tuple[str, ...], str]] = {
    "apicurio.registry.url": (_ANY, ""),
    "apicurio.auth.username": (_ANY, ""),
    "apicurio.auth.password": (_ANY, ""),
    "apicurio.registry.auto-register": (("true",), "false"),
    "apicurio.registry.find-latest": (("true", "false"), "false"),
    "apicurio.registry.as-confluent": (("true",), "false"),
    "apicurio.registry.use-id": (("contentId",), "globalId"),
    "apicurio.registry.headers.enabled": (("false",), "true"),
    "apicurio.registry.artifact-resolver-strategy": ((_TOPIC_ID,), _TOPIC_ID),
}
_OPTIONS = {CONFLUENT: _CONFLUENT, APICURIO: _APICURIO}
AVRO_OPTIONS = (*_CONFLUENT, *_APICURIO)
_NATIVE_API = re.compile(r"https?://.+/apis/registry/v2/?")

_HIDDEN = "…"  # in the place of what may be a secret


class Refuse(Protocol):
    """Raises ConfigError."""

    def __call__(self, key: str, value: str, accepted: tuple[str, ...], /) -> NoReturn:
        """Refuse a key with its value, and say what is accepted instead."""


@dataclass(frozen=True, slots=True)
class AvroRegistry:
    """A registry, by Apicurio's own API or by Confluent's."""

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    apicurio: bool = False


def avro_registry(key: str, name: str, config: Mapping[str, str], refuse: Refuse) -> AvroRegistry:
    """Read the options of the converter of class ``name`` at ``key``; ``refuse`` is called for what is not honoured."""
    known = _OPTIONS[name]
    prefix = f"{key}."
    for option in config:
        if option.startswith(prefix) and option.removeprefix(prefix) not in known:
            refuse(option, _HIDDEN, tuple(known))

    def get(option: str) -> str:
        return config.get(prefix + option, known[option][1]).strip()

    for option, (accepted, _) in known.items():
        if accepted and get(option) not in accepted:
            refuse(prefix + option, get(option), accepted)
    if name == APICURIO:
        url = get("apicurio.registry.url")
        if not _NATIVE_API.fullmatch(url):
            refuse(f"{prefix}apicurio.registry.url", _shown(url), ("http://…/apis/registry/v2",))
        username = get("apicurio.auth.username") or None
        return AvroRegistry(url.rstrip("/"), username, get("apicurio.auth.password"), apicurio=True)
    url = get("schema.registry.url")
    if not re.fullmatch(r"https?://[^,]+", url):
        refuse(f"{prefix}schema.registry.url", _shown(url), ("one http://… or https://…",))
    if get("basic.auth.credentials.source") == "URL":
        return AvroRegistry(url)
    username, _, password = next(filter(None, map(get, _USER_INFO)), "").partition(":")
    if not username:
        refuse(f"{prefix}basic.auth.user.info", "", ("user:password",))
    return AvroRegistry(url, username, password)


def _shown(url: str) -> str:
    return _HIDDEN if "@" in url else url
