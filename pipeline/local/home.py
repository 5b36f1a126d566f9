"""A folder in, its ports, passwords and lock out: what the local stack remembers between commands.

``stack.json`` is replaced in one step and readable by its owner only. One command at a time changes a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from pipeline.errors import LocalStackError
from pipeline.local.ports import free_port, is_free_soon
from pipeline.local.progress import Progress

__all__ = ["Home", "Memory"]

VERSION = 1


class Memory(TypedDict, total=False):
    """What ``stack.json`` holds. ``connect`` is whether Kafka Connect was wanted last time."""

    version: int
    ports: dict[str, int]
    passwords: dict[str, str]
    connect: bool


class Home:
    """The data folder of one local stack."""

    def __init__(self, data: Path) -> None:
        self.data = data.expanduser().resolve()
        self.file = self.data / "stack.json"

    @property
    def exists(self) -> bool:
        """Whether a stack was ever started here."""
        return self.file.exists()

    @contextlib.contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Hold the folder for one command; a second one waits. Makes the folder."""
        self._make()
        with (self.data / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"waiting for another command that works on {self.data}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def memory(self) -> Memory:
        """Read what is remembered; empty when nothing is."""
        try:
            memory: Memory = json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}
        except PermissionError as error:
            raise LocalStackError(
                f"{self.file} belongs to another user", remedy="use a folder of your own: --data DIR"
            ) from error
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if memory.get("version") != VERSION:
            raise self._unreadable(f"version {memory.get('version')!r}, wanted {VERSION}")
        return memory

    def remember(self, memory: Memory) -> None:
        """Replace what is remembered, in one step."""
        memory["version"] = VERSION
        handle, name = tempfile.mkstemp(dir=self.data, prefix="stack.")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(memory, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def port(self, name: str) -> int:
        """Return a remembered port."""
        ports = self.memory().get("ports", {})
        if name not in ports:
            raise LocalStackError(
                f"no server was ever started in {self.data}", remedy=f"pipeline up --data {self.data}"
            )
        return ports[name]

    def password(self, name: str) -> str:
        """Return a remembered password."""
        return self.memory()["passwords"][name]

    def settle(self, stopped_ports: Iterable[str], progress: Progress) -> None:
        """Choose what is not chosen yet; choose again the ports of stopped servers that somebody took."""
        memory = self.memory()
        ports = memory.setdefault("ports", {})
        for name in stopped_ports:
            before = ports.get(name)
            if before is None or not is_free_soon(before):
                ports[name] = free_port(ports.values())
                if before is not None:
                    progress.say(f"port {before} of {name} is in use by another program; now {ports[name]}")
        passwords = memory.setdefault("passwords", {})
        for name in ("postgres", "registry"):
            passwords.setdefault(name, secrets.token_urlsafe(24))
        self.remember(memory)

    def _make(self) -> None:
        # As root another user must get through to PostgreSQL's folder; nothing else in it is open to him.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            if not self.data.is_dir():
                self.data.mkdir(parents=True, exist_ok=True)
                self.data.chmod(mode)
            ignore = self.data / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise LocalStackError(
                f"{self.data} cannot be used as data folder: {error.strerror}",
                remedy="choose a folder of your own: --data DIR",
            ) from error

    def _unreadable(self, why: str) -> LocalStackError:
        return LocalStackError(
            f"{self.file} cannot be read: {why}",
            remedy=f"`pipeline down --delete --data {self.data}` starts over (its data is lost)",
        )
