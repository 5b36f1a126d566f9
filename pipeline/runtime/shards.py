"""A connector file with shards in, the publications and slots of its shards out."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Settings
from pipeline.connect.file import load
from pipeline.connect.shards import SHARDS, expanded
from pipeline.connector import Connector
from pipeline.errors import ConfigError
from pipeline.postgres.shards import Shard, statements
from pipeline.runtime.database import connect
from pipeline.runtime.relay import read_connector

__all__ = ["make_shards"]


def make_shards(path: Path, settings: Settings, *, execute: bool) -> list[str]:
    """Return the statements that make what the shards lack, run where ``execute``. Raises PipelineError."""
    count = len(expanded(Connector(*load(path), str(path))))
    if count == 1:
        raise ConfigError(f"{path}: {SHARDS}: is missing", remedy=f'write "{SHARDS}": "4" into its config')
    files = [read_connector(path, settings, shard=number) for number in range(count)]
    wanted = [Shard(one.slot, one.publication, one.failover) for one in files]
    with connect(settings) as conn:
        made = statements(conn, files[0].captures, files[0].tables_text, files[0].routers[0].event_key, wanted)
        for statement in made if execute else ():
            conn.execute(statement.encode())
    return made
