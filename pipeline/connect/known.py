"""A Debezium connector's keys in, those that nobody reads out: Connect itself passes over them in silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from pipeline.connect.options import HONOURED, NOT_YET, WITHOUT_MEANING

__all__ = ["unknown"]

# prefixes of what plugins read without saying so
_OPEN = (
    "key.converter.",
    "value.converter.",
    "header.converter.",
    "producer.override.",
    "driver.",
    "column.",
    "predicates.",
    "topic.creation.",
    "signal.",
    "notification.",
    "openlineage.",
    "snapshot.select.statement.overrides.",
    "internal.",
)


def unknown(config: Mapping[str, str], defined: Collection[str]) -> dict[str, str]:
    """Return each key that is not ``defined`` by a plugin, and not known of Debezium, with the one that is like it."""
    known = {*defined, *HONOURED, *WITHOUT_MEANING, *NOT_YET}
    own = tuple(f"{name.strip()}." for name in config.get("converters", "").split(",") if name.strip())
    names = sorted(name for name in known if not name.endswith("."))
    return {
        key: next(iter(difflib.get_close_matches(key, names, 1)), "")
        for key in config
        if key not in known and not key.startswith((*_OPEN, *own))
    }
