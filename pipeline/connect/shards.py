"""A connector with ``pipeline.shards`` in, one for each shard out: with slot, publication and name of its own.

What a shard gets is told by its publication, whose row filter takes the keys of one part of their hashes.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.connector import Connector
from pipeline.errors import ConfigError

__all__ = ["SHARDS", "chosen", "expanded"]

SHARDS = "pipeline.shards"

_ALLOWED = ("2", "4", "8", "16", "32")  # so that a hash is told apart by its last bits
_OWN = {"slot.name": ("debezium", "_"), "publication.name": ("dbz_publication", "_"), "topic.prefix": ("", "-")}


def expanded(connector: Connector) -> list[Connector]:
    """Return the shards ``NAME-0``, ``NAME-1``, …; the connector itself where it has none. Raises ConfigError."""
    count = connector.config.get(SHARDS)
    if count is None:
        return [connector]
    if count not in _ALLOWED:
        raise ConfigError(
            f"{connector.source}: {SHARDS}: {count!r} is no number of shards", remedy=f"use {' | '.join(_ALLOWED)}"
        )
    if connector.config.get("pipeline.capture", "wal").strip().lower() == "polling":
        raise ConfigError(
            f"{connector.source}: {SHARDS}: does not go with pipeline.capture=polling", remedy="take one of them out"
        )
    return [_shard(connector, number) for number in range(int(count))]


def chosen(connector: Connector, shard: int | None) -> Connector:
    """Return one shard, or the connector itself where it has none. Raises ConfigError."""
    shards = expanded(connector)
    if shard is None and len(shards) == 1:
        return connector
    if shard is None:
        raise ConfigError(
            f"{connector.source}: {SHARDS}: it has {len(shards)} shards, each for a process of its own",
            remedy=f"run each of them: --shard 0 … --shard {len(shards) - 1}",
        )
    if len(shards) == 1 or shard >= len(shards):
        last = f"its shards are 0 … {len(shards) - 1}" if len(shards) > 1 else f"it has no {SHARDS}"
        raise ConfigError(f"{connector.source}: --shard {shard}: there is no such shard", remedy=last)
    return shards[shard]


def _shard(connector: Connector, number: int) -> Connector:
    config = {key: text for key, text in connector.config.items() if key != SHARDS}
    for key, (default, mark) in _OWN.items():
        config[key] = f"{config.get(key, default or connector.name)}{mark}{number}"
    return replace(connector, name=f"{connector.name}-{number}", config=config)
