"""The ``snapshot.…`` keys of a connector file in, what to read before the stream out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.connect.filters import listed, split
from pipeline.errors import ConfigError

__all__ = ["OVERRIDES", "SnapshotOptions", "snapshot_options"]

OVERRIDES = "snapshot.select.statement.overrides"
_BASED = "snapshot.mode.configuration.based"


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """When rows are read that are there already: at the first start, at each start; ``repairs``: also when rows may be
    missing.

    ``streams``: the slot is read after it. ``included`` tells of "schema.table"; ``selects`` has SQL by such names.
    """

    when: Literal["first", "always"]
    repairs: bool
    streams: bool
    included: Callable[[str], bool]
    included_text: str
    selects: Mapping[str, str]
    stamp_now: bool
    delay_s: float
    lock_timeout_s: float


def snapshot_options(
    where: str, get: Callable[[str], str], milliseconds: Callable[[str], int], values: Mapping[str, str]
) -> SnapshotOptions | None:
    """Return what the keys say; None where nothing is read before the stream. Raises ConfigError."""
    when, streams, repairs = _mode(where, get)
    if when is None:
        return None
    if get("pipeline.retain") == "none":
        raise ConfigError(
            f"{where}: snapshot.mode={get('snapshot.mode')} with pipeline.retain=none: no row is there to be read",
            remedy="set snapshot.mode=no_data, or let writers retain their rows",
        )
    text = get("snapshot.include.collection.list")
    try:
        included = listed(text) if text else lambda _name: True
    except re.error as error:
        raise ConfigError(
            f"{where}: snapshot.include.collection.list: {error}", remedy="correct the regular expression"
        ) from error
    return SnapshotOptions(
        when=when,
        repairs=repairs,
        streams=streams,
        included=included,
        included_text=f"snapshot.include.collection.list={text}" if text else "table.include.list",
        selects=_selects(where, get(OVERRIDES), values),
        stamp_now=get("pipeline.snapshot.timestamp") == "now",
        delay_s=milliseconds("snapshot.delay.ms") / 1000,
        lock_timeout_s=milliseconds("snapshot.lock.timeout.ms") / 1000,
    )


def _mode(where: str, get: Callable[[str], str]) -> tuple[Literal["first", "always"] | None, bool, bool]:
    match mode := get("snapshot.mode"):
        case "no_data":
            return None, True, False
        case "initial" | "initial_only":
            return "first", mode == "initial", False
        case "when_needed":
            return "first", True, True
        case "always":
            return "always", True, False
    data, streams, on_error = (
        get(f"{_BASED}.{key}") == "true" for key in ("snapshot.data", "start.stream", "snapshot.on.data.error")
    )
    if on_error and not data:
        raise ConfigError(
            f"{where}: {_BASED}.snapshot.on.data.error: forgets the position without a snapshot",
            remedy="use snapshot.mode=when_needed",
        )
    if not data and not streams:
        raise ConfigError(
            f"{where}: snapshot.mode: configuration_based with neither snapshot nor stream does nothing",
            remedy=f"set {_BASED}.snapshot.data or {_BASED}.start.stream to true",
        )
    return ("always" if data else None), streams, on_error


def _selects(where: str, tables: str, values: Mapping[str, str]) -> dict[str, str]:
    selects = {}
    for table in split(tables):
        key = f"{OVERRIDES}.{table}"
        if not (select := values.get(key, "").strip().rstrip(";")):
            raise ConfigError(f"{where}: {key}: is missing", remedy=f"add its SELECT, or take it out of {OVERRIDES}")
        selects[table] = select
    for key in values:
        if key.startswith(f"{OVERRIDES}.") and key.removeprefix(f"{OVERRIDES}.") not in selects:
            raise ConfigError(f"{where}: {key}: its table is not in {OVERRIDES}", remedy="add it there")
    return selects
