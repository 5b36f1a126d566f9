"""Settings and connector files in, connectors on Kafka Connect out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from pipeline import deployment
from pipeline.config import Settings
from pipeline.connect.manifest import kafka_connector, plain
from pipeline.connect.rest import Connect
from pipeline.connect.sources import connectors
from pipeline.connector import Connector, State
from pipeline.deployment import Plan, Waiting
from pipeline.endpoints import connect_url
from pipeline.errors import ConfigError

__all__ = ["check", "kafka_connector", "open_connect", "plain", "read_connectors", "states", "strangers", "waiting_for"]


@contextmanager
def open_connect(settings: Settings) -> Iterator[Connect]:
    """Give the Connect cluster of the settings, or the local one. Raises ConfigError where there is none."""
    url = connect_url(settings)
    if url is None:
        raise ConfigError(
            "PIPELINE_CONNECT__URL is not set, and no local Kafka Connect runs",
            remedy="set it (http://HOST:8083), or: pipeline up --connect",
        )
    with closing(Connect(url)) as connect:
        yield connect


def read_connectors(paths: Sequence[str], *, allow_plain_secrets: bool = True) -> list[Connector]:
    """Read connector files, folders and ``-``. Raises ConfigError."""
    found = connectors(paths, sys.stdin)
    if not allow_plain_secrets:
        deployment.plain_secrets(found)
    return found


def check(settings: Settings, paths: Sequence[str]) -> list[Connector]:
    """Let Kafka Connect check connector files; nothing is changed. Raises ConfigError naming file and keys."""
    found = read_connectors(paths)
    with open_connect(settings) as connect:
        deployment.check(deployment.plan(found, connect), connect)
    return found


def waiting_for(timeout_s: float) -> Waiting:
    """Return how to wait: in real time."""
    return Waiting(time.monotonic, time.sleep, timeout_s)


def states(connect: Connect, names: Sequence[str]) -> list[State]:
    """Return what these connectors do, or all of them. Raises ConfigError for one that is not there."""
    found = []
    for name in names or connect.names():
        state = connect.state(name)
        if state is not None:
            found.append(state)
        elif connect.config(name) is not None:
            found.append(State(name, "UNASSIGNED", "", "", ()))
        elif names:
            raise ConfigError(f"there is no connector {name}", remedy="pipeline connector list shows what there is")
    return found


def strangers(connect: Connect, plans: Sequence[Plan]) -> list[str]:
    """Return the connectors that run and that no file names."""
    named = {plan.connector.name for plan in plans}
    return [name for name in connect.names() if name not in named]
