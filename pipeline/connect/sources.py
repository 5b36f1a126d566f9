"""Paths of connector files, folders and standard input in, connectors out. Nothing is resolved, all of it is text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from pipeline.connect.file import load, parse
from pipeline.connect.shards import expanded
from pipeline.connector import Connector
from pipeline.errors import ConfigError

__all__ = ["connectors"]


def connectors(paths: Iterable[str], stdin: TextIO) -> list[Connector]:
    """Read connectors from files, the ``*.json`` of folders, and ``-``, shard by shard where they have some.

    Raises ConfigError naming file and key.
    """
    found: dict[str, Connector] = {}
    for connector in (shard for one in _all(paths, stdin) for shard in expanded(one)):
        if connector.name in found:
            raise ConfigError(
                f"connector {connector.name}: stands in {found[connector.name].source} and in {connector.source}",
                remedy="name each connector once",
            )
        found[connector.name] = connector
    return list(found.values())


def _all(paths: Iterable[str], stdin: TextIO) -> Iterator[Connector]:
    for text in paths:
        path = Path(text)
        if text == "-":
            name, config = parse(stdin.read(), "-")
            if not name:
                raise ConfigError("-: the connector has no name", remedy='write {"name": …, "config": {…}}')
            yield Connector(name, config, "-")
        elif path.is_dir():
            files = sorted(path.glob("*.json"))
            if not files:
                raise ConfigError(f"{path}: no connector files (*.json) in this folder", remedy="name another one")
            yield from map(_read, files)
        else:
            yield _read(path)


def _read(path: Path) -> Connector:
    name, config = load(path)
    return Connector(name, config, str(path))
