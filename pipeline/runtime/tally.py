"""Metrics of several processes in, one set of them out.

Processes count in files of a folder (prometheus_client's multi-process mode), so that what a process had counted is
there after its end, however it ended: no counter goes back. Gauges are those of the living.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

__all__ = ["FOLDER", "Tally", "Together"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client's processes know where to count."""


class Tally(Collector):
    """Collects what the processes of ``folder`` have counted, and keeps what the dead had in one file of each kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Yield the sum of all."""
        with self._lock:
            for path in sorted(self._folder.glob("*_[0-9]*.db")):
                kind, _, pid = path.stem.rpartition("_")
                if not _alive(int(pid)):
                    self._bury(path, kind)
            # one that a process has just made, and has not filled yet, cannot be read
            yield from MultiProcessCollector.merge([str(p) for p in self._folder.glob("*.db") if p.stat().st_size])

    def _bury(self, path: Path, kind: str) -> None:
        if kind.startswith("gauge_live"):
            path.unlink()
        elif not kind.startswith("gauge"):
            if path.stat().st_size:
                dead = MmapedDict(str(self._folder / f"{kind}_dead.db"))
                for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(path)):
                    dead.write_value(key, dead.read_value(key)[0] + value, timestamp)
                dead.close()
            path.unlink()


class Together(CollectorRegistry):
    """Several registries as one to be scraped."""

    def __init__(self, *registries: Collector | CollectorRegistry) -> None:
        super().__init__()
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        """Yield what all of them have."""
        for registry in self._registries:
            yield from registry.collect()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
