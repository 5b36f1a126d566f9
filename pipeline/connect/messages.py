"""The JSON of a logical message in, a routed record out.

As Debezium's DecodeLogicalDecodingMessageContent before its Event Router: the fields of the document are the columns of
a row that was inserted. A message that cannot be decoded or routed raises Unroutable; nothing else can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.capture import Routed, Unroutable
from pipeline.connect.expansion import Expansion, json_bytes
from pipeline.connect.router import Router
from pipeline.connect.routing import RouterOptions
from pipeline.errors import ConfigError

__all__ = ["DECODE", "MessageOptions", "Messages"]

DECODE = "io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent"

_NULL = 0
_BOOLEAN, _LONG, _INTEGER, _TEXT, _JSON, _DOUBLE = 16, 20, 23, 25, 114, 701  # as in pg_type
_CACHED_LAYOUTS = 1000

Field = tuple[str, int]
"""A name and a type."""


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """``wanted`` tells whether a prefix is read; ``keep_null``: a field that is null is there."""

    wanted: Callable[[str], bool]
    keep_null: bool
    router: RouterOptions


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    type_oid: int
    modifier: int = -1


class Messages:
    """Makes records of messages. ``clock`` returns Unix time in seconds: a message has no other."""

    def __init__(self, messages: MessageOptions, *, clock: Callable[[], float] = time.time) -> None:
        router = replace(messages.router, context=())  # Debezium has them on changes of tables only
        self._wanted = messages.wanted
        self._expansion = Expansion(keep_null=messages.keep_null)
        self._options = router
        self._clock = clock
        self._plain = Router(router, clock=clock)
        self._structured = Router(replace(router, expansion=self._expansion), clock=clock)
        self._known: dict[tuple[Field, ...], tuple[list[str], Callable[..., Routed]]] = {}

    def __call__(self, prefix: str, content: bytes) -> Routed | None:
        """Return the record of a message, None where its prefix is not read."""
        if not self._wanted(prefix):
            return None
        raw: Routed = ("", None, content, [], int(self._clock() * 1000), -1)
        try:
            values = {name: _stored(value) for name, value in self._expansion.fields(content).items()}
            names, route = self._bound(tuple((name, kind) for name, (kind, _) in values.items()))
        except (ValueError, RecursionError, ConfigError) as error:
            why = error.what if isinstance(error, ConfigError) else str(error) or "its arrays are not uniform"
            raise Unroutable(f"logical message {prefix!r}: {why}", raw) from error
        return route(*[values[name][1] for name in names])

    def _bound(self, fields: tuple[Field, ...]) -> tuple[list[str], Callable[..., Routed]]:
        if (found := self._known.get(fields)) is None:
            router = self._plain
            if (self._options.payload, _JSON) in fields:
                router = self._structured
                if self._options.value.of_structs is None:
                    raise ConfigError(
                        f"{self._options.payload!r} is no string, which this value.converter does not write",
                        remedy="set value.converter=org.apache.kafka.connect.json.JsonConverter",
                    )
            if len(self._known) >= _CACHED_LAYOUTS:
                self._known.clear()
            found = self._known[fields] = router.bind("message", [_Column(*field) for field in fields])
        return found


def _stored(value: object) -> tuple[int, bytes | None]:
    """Return a value as a column has it: its type, and its binary form."""
    match value:
        case None:
            return _NULL, None
        case bool():
            return _BOOLEAN, b"\1" if value else b"\0"
        case int() if -(2**31) <= value < 2**31:
            return _INTEGER, value.to_bytes(4, "big", signed=True)
        case int() if -(2**63) <= value < 2**63:
            return _LONG, value.to_bytes(8, "big", signed=True)
        case dict() | list():
            return _JSON, json_bytes(value)
        case str():
            return _TEXT, value.encode(errors="replace")
        case _:
            return _DOUBLE, b""  # neither key, nor id, nor header
