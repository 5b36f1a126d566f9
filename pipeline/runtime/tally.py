"""Metrics of several processes in, one set of them out.

Processes count in files of a folder (prometheus_client's multi-process mode), so that what a process had counted is
there after its end, however it ended: no counter goes back. Gauges are those of the living.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

__all__ = ["FOLDER", "Tally", "Together", "held_folder"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client's processes know where to count."""

_PREFIX = "pipeline-tally-"


@contextmanager
def held_folder() -> Iterator[tuple[Path, int]]:
    """Give a folder to count in, with a descriptor of it that holds it; it is removed at the end.

    Processes that are given the descriptor hold it too. One that nobody holds any more, as its owner was killed, is
    removed by whoever comes next.
    """
    _remove_left()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(held)  # somebody took it for left
    try:
        yield folder, held
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is held, or gone, or another user's
            tried = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(tried)


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
