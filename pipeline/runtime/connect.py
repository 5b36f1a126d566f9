"""Settings and connector files in, connectors on Kafka Connect out."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from pipeline import deployment
from pipeline.config import Settings
from pipeline.connect.manifest import APIS as STRIMZI_APIS
from pipeline.connect.manifest import kafka_connector, plain
from pipeline.connect.rest import Connect
from pipeline.connect.sources import connectors
from pipeline.connector import Connector, State
from pipeline.deployment import Plan, Waiting
from pipeline.endpoints import connect_url
from pipeline.errors import ConfigError

__all__ = [
    "STRIMZI_APIS",
    "check",
    "for_connect",
    "kafka_connector",
    "names",
    "open_connect",
    "plain",
    "states",
    "strangers",
    "waiting_for",
]

log = logging.getLogger(__name__)

LABEL = "pipeline.label"  # of a connector's configuration: whose it is


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


def for_connect(paths: Sequence[str]) -> list[Connector]:
    """Read the connectors of files, folders and ``-`` that Kafka Connect can run: none that is polled.

    Such a file is passed over in a folder. Raises ConfigError for one that is named, and for what is no connector.
    """
    found = []
    for one in connectors(paths, sys.stdin):
        if one.config.get("pipeline.capture", "wal").strip().lower() != "polling":
            found.append(one)
        elif one.source in paths:
            raise ConfigError(
                f"{one.source}: pipeline.capture: polling is for the native relay: Debezium would read the WAL",
                remedy=f"pipeline connector run {one.source}; or take the key out",
            )
        else:
            log.warning("%s is passed over: pipeline.capture=polling is for the native relay", one.source)
    return found


def names(words: Sequence[str]) -> list[str]:
    """Return names of connectors: words are names, or files, folders (with a slash) and ``-`` that hold them.

    Raises ConfigError for a path that is not there, and for what a file holds that is no connector.
    """
    found: dict[str, None] = {}
    for word in words:
        held = word == "-" or word.endswith(".json") or "/" in word
        found.update(dict.fromkeys([one.name for one in connectors([word], sys.stdin)] if held else [word]))
    return list(found)


def check(settings: Settings, paths: Sequence[str], *, ignore_unknown: bool = False) -> list[Connector]:
    """Let Kafka Connect check connector files; nothing is changed. Raises ConfigError naming file and keys."""
    found = for_connect(paths)
    with open_connect(settings) as connect:
        deployment.check(deployment.plan(found, connect), connect, ignore_unknown=ignore_unknown)
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


def strangers(connect: Connect, plans: Sequence[Plan], label: str = "") -> list[str]:
    """Return the connectors that run and that no file names; with ``label`` only those that carry it.

    Raises ConfigError for a file without that label: the next call would delete its connector.
    """
    named = {plan.connector.name for plan in plans}
    for plan in plans:
        if label and plan.connector.config.get(LABEL) != label:
            raise ConfigError(
                f"{plan.connector.source}: {LABEL}: is not {label!r}",
                remedy=f'write "{LABEL}": "{label}" into its config',
            )
    configs = connect.configs()
    return sorted(
        name for name, config in configs.items() if name not in named and (not label or config.get(LABEL) == label)
    )
