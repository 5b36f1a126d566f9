"""What a start needs in, an error out when this machine has too little disk or memory for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no types; stubs are a package of their own

from pipeline.errors import LocalStackError

__all__ = ["check_disk", "check_memory"]

MIB = 2**20
DISK_BYTES = 300 * MIB
MEMORY_BYTES = {"postgres": 150 * MIB, "kafka": 600 * MIB, "registry": 400 * MIB, "connect": 900 * MIB}
CGROUP = Path("/sys/fs/cgroup")


def check_disk(data: Path) -> None:
    """Raise LocalStackError when the folder's disk is too full for the servers' first files."""
    free = shutil.disk_usage(data).free
    if free < DISK_BYTES:
        raise LocalStackError(
            f"too little disk: {free / 1e6:.0f} MB free at {data}, {DISK_BYTES / 1e6:.0f} MB needed",
            remedy="free some space, or use a folder on another disk: --data DIR",
        )


def check_memory(servers: Sequence[str]) -> None:
    """Raise LocalStackError when these servers do not fit into the free memory of machine or container."""
    needed = sum(MEMORY_BYTES[name] for name in servers)
    available = min(int(psutil.virtual_memory().available), _container_available())
    if available < needed:
        raise LocalStackError(
            f"too little memory: {available / 1e6:.0f} MB available, {needed / 1e6:.0f} MB needed for "
            + ", ".join(servers),
            remedy="end other programs, or name servers elsewhere: PIPELINE_KAFKA__BOOTSTRAP_SERVERS, "
            "PIPELINE_POSTGRES__DSN, PIPELINE_REGISTRY__URL",
        )


def _container_available(cgroup: Path = CGROUP) -> int:
    """Return what a container's limit leaves (its file cache counted as free), or a very large number."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = sum(int(value) for name, value in lines if name in {"inactive_file", "active_file"})
    except (OSError, ValueError):
        return 2**62
    return limit - used + cached
