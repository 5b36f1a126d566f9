"""Commands of ``pipeline`` in, child processes and their output, line by line, out.

Children are in process groups of their own: Ctrl-C reaches their parent only, which ends them in order.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Children", "readable"]

_LOOK_S = 0.05
_LOG_FIELDS = frozenset({"time", "level", "logger", "message", "action"})


def readable(line: str) -> str:
    """Return a log line in JSON as a person reads it; any other line as it is."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "message" not in found:
        return line
    level = str(found.get("level", ""))
    before = "" if level in {"info", "debug", ""} else f"{level}: "
    rest = " ".join(f"{name}={value}" for name, value in found.items() if name not in _LOG_FIELDS)
    return f"{before}{found['message']}{'  ' + rest if rest else ''}"


class Children:
    """Child processes by name. ``show`` gets name and line, from several threads, one at a time."""

    def __init__(self, show: Callable[[str, str], None], env: Mapping[str, str] | None = None) -> None:
        self._show = show
        self._env = env
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def run(self, name: str, words: Sequence[str], stop: threading.Event) -> bool:
        """Run a command to its end; tell whether it did well. Ended early where ``stop`` is set."""
        self.start(name, words)
        process = self._running[name]
        while process.poll() is None and not stop.wait(_LOOK_S):
            pass
        self.end([name], deadline_s=5)
        return process.returncode == 0

    def start(self, name: str, words: Sequence[str]) -> None:
        """Start a command beside this process."""
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pipeline", *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._running[name] = process
        reader = threading.Thread(target=self._read, args=(name, process), name=f"{name}-output", daemon=True)
        self._readers[name] = reader
        reader.start()

    def ended(self) -> dict[str, int]:
        """Return those that ended by themselves, with their exit codes, and forget them."""
        done = {name: code for name, process in self._running.items() if (code := process.poll()) is not None}
        for name in done:
            self._forget(name)
        return done

    def end(self, names: Iterable[str], *, deadline_s: float, at_once: threading.Event | None = None) -> None:
        """End children with SIGTERM, and with SIGKILL after ``deadline_s`` or when ``at_once`` is set."""
        ending = [name for name in names if name in self._running]
        for name in ending:
            self._signal(name, signal.SIGTERM)
        until = time.monotonic() + deadline_s
        for name in ending:
            while self._running[name].poll() is None:
                if time.monotonic() > until or (at_once is not None and at_once.is_set()):
                    self._signal(name, signal.SIGKILL)
                    self._running[name].wait()
                    break
                time.sleep(_LOOK_S)
            self._forget(name)

    @property
    def names(self) -> list[str]:
        """Those that run, as far as is known."""
        return list(self._running)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._running[name]
        if process.poll() is None:
            process.send_signal(number)

    def _forget(self, name: str) -> None:
        self._readers.pop(name).join(1)
        del self._running[name]

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                with self._lock:
                    self._show(name, readable(line.rstrip("\n")))
