"""CPU time and memory of this process in, metrics out. Its children are not counted in."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from pipeline.metrics import Meter

__all__ = ["Usage"]

_STATM = Path("/proc/self/statm")


class Usage:
    """Reports for the worker process with this number."""

    def __init__(self, meter: Meter, number: int) -> None:
        self._meter = meter
        self._number = str(number)
        self._told_s = 0.0

    def report(self) -> None:
        """Count the CPU time since the last report, from the process's start on, and set the memory that is held."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = used.ru_utime + used.ru_stime
        self._meter.add("pipeline_worker_cpu_seconds_total", max(0.0, cpu_s - self._told_s), process=self._number)
        self._told_s = cpu_s
        self._meter.set("pipeline_worker_memory_bytes", _resident_bytes(used.ru_maxrss), process=self._number)


def _resident_bytes(most: int) -> int:
    """Resident memory now; where the system does not tell it, the most that it was."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    return most if sys.platform == "darwin" else most * 1024
