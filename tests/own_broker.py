"""A broker of a test module's own in, with listeners and settings that the shared one has not; it, running, out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pipeline.local import LocalStack
from pipeline.local.kafka import Kafka
from pipeline.local.ports import LOOPBACK

__all__ = ["more_listeners", "own_broker"]

B = TypeVar("B", bound=Kafka)


def more_listeners(broker: Kafka, settings: str, kinds: dict[str, str]) -> str:
    """Return a broker's settings with more listeners: name → security protocol; the ports have the names' own."""
    for name, kind in kinds.items():
        where = f"{name}://{LOOPBACK}:{broker.home.port(name.lower())},"
        settings = settings.replace("\nlisteners=", f"\nlisteners={where}")
        settings = settings.replace("\nadvertised.listeners=", f"\nadvertised.listeners={where}")
        settings = settings.replace(
            "\nlistener.security.protocol.map=", f"\nlistener.security.protocol.map={name}:{kind},"
        )
    return settings + "inter.broker.listener.name=PLAINTEXT\n"


@contextmanager
def own_broker(
    stack: LocalStack, folder: Path, kind: type[B], prepare: Callable[[Path], None] = lambda _folder: None
) -> Iterator[B]:
    """Run a broker of this kind, with the jars of ``stack``; ``prepare`` gets its folder before it starts."""
    own = LocalStack(folder, progress=stack._progress)
    old = own.kafka
    broker = kind(old.home, old.progress, old._jars)
    with own._changing():
        broker.home.settle(broker.port_names, broker.progress)
    broker.folder.mkdir(parents=True)
    prepare(broker.folder)
    try:
        broker.start(threading.Event())
        yield broker
    finally:
        broker.stop()
