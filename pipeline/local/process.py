"""A command line in, a background process out that outlives us and is found again.

The process is in a session of its own and holds none of our streams. Its pid is on disk before we know it, so
that even a kill -9 of ourselves leaves nothing that the next run does not find. A pid that another program
carries by now is not taken for ours: the command line must hold ``marker``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships no types; stubs are a package of their own

__all__ = ["BackgroundProcess", "Launch"]

POLL_S = 0.02
EXEC_TRIES = 10
# The shell writes the pid file; the server's own output goes to the log (standard error here).
LAUNCHER = '"$@" >&2 & echo $!'


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started. ``user`` and ``group`` are ids to change to (only as root)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    user: int | None = None
    group: int | None = None


class BackgroundProcess:
    """One background process, known by its pid file and a marker in its command line."""

    def __init__(self, pid_file: Path, log_file: Path, marker: str) -> None:
        self.pid_file = pid_file
        self.log_file = log_file
        self.marker = marker

    def find(self) -> int | None:
        """Return the pid when it runs, None when it does not or the pid belongs to somebody else now."""
        process = self._find()
        return None if process is None else int(process.pid)

    def start(self, launch: Launch) -> int:
        """Start it and return its pid. The log of the run before is kept beside the new one."""
        if self.log_file.exists():
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with (
            open(self.log_file, "ab", opener=_private) as log,  # Path.open takes no opener
            open(self.pid_file, "wb", opener=_private) as pid,
        ):
            subprocess.run(
                ["/bin/sh", "-c", LAUNCHER, "sh", *launch.argv],
                env=launch.env,
                cwd=launch.folder,
                stdin=subprocess.DEVNULL,
                stdout=pid,
                stderr=log,
                start_new_session=True,
                check=True,
                **_as_user(launch),
            )
        return int(self.pid_file.read_text())

    def stop(self, how: signal.Signals, deadline_s: float) -> bool:
        """Ask it to end, kill it after the deadline. Returns whether it ended by itself."""
        process = self._find()
        by_itself = True
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
            by_itself = _gone([process], deadline_s)
            if not by_itself:
                self.kill()
        self.pid_file.unlink(missing_ok=True)
        return by_itself

    def kill(self) -> None:
        """Kill it at once (SIGKILL) and wait until it and its children are gone."""
        process = self._find()
        if process is None:
            return
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            process.kill()
        if not _gone([process, *children], 10):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            _gone(children, 5)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, indented, for an error message."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, self.log_file.stat().st_size - 20_000))
                text = log.read().decode(errors="replace")
        except OSError:
            return "    (no log)"
        tail = [f"    {line[:300]}" for line in text.splitlines() if line.strip()][-lines:]
        return "\n".join(tail) or "    (the log is empty)"

    def _find(self) -> psutil.Process | None:
        try:
            process = psutil.Process(int(self.pid_file.read_text()))
            command = _command_line(process)
        except (OSError, ValueError, psutil.Error):
            return None
        return process if any(self.marker in part for part in command) else None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _command_line(process: psutil.Process) -> list[str]:
    """Return the command line; of a process that ended and was not collected, an empty one.

    In the midst of an exec the system shows an empty one for a moment, too.
    """
    for _ in range(EXEC_TRIES):
        if process.status() == psutil.STATUS_ZOMBIE:
            return []
        command: list[str] = process.cmdline()
        if command:
            return command
        time.sleep(POLL_S)
    return []


def _as_user(launch: Launch) -> dict[str, Any]:  # keyword arguments of subprocess
    if launch.user is None:
        return {}
    return {"user": launch.user, "group": launch.group, "extra_groups": []}


def _gone(processes: list[psutil.Process], deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while True:
        if not any(_alive(process) for process in processes):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)


def _alive(process: psutil.Process) -> bool:
    """Whether any of its threads lives: the first may be gone while another still holds the sockets."""
    try:
        if not process.is_running():
            return False
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False
