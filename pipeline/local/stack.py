"""A folder in, running servers and their addresses out.

``up`` can be called again at any time, also after a kill in the middle: it finds what runs, starts what does not,
and returns only when all answer. What it started is stopped again when one of them fails or somebody interrupts.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import LocalStackError
from pipeline.local.connect import Connect
from pipeline.local.home import Home
from pipeline.local.jars import JarCache
from pipeline.local.kafka import Kafka
from pipeline.local.machine import check_disk, check_memory
from pipeline.local.postgres import Postgres
from pipeline.local.progress import Progress, silent
from pipeline.local.registry import USERNAME, Registry
from pipeline.local.server import Cancelled, PortTaken, Server, ServerStatus

__all__ = ["Endpoints", "LocalStack", "ServerName"]

ServerName = Literal["postgres", "kafka", "registry", "connect"]
PORT_CHOICES = 3  # how often up chooses anew when somebody was faster at a port

_OURS = frozenset({"lock", "stack.json", "postgres", "kafka", "registry", "connect"})
"""What a folder may hold that was begun and not finished."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the servers are, with what a client needs to get in."""

    postgres_dsn: str
    kafka: str
    registry: str
    registry_username: str | None
    registry_password: str | None
    connect: str | None


class LocalStack:
    """The servers of one data folder."""

    def __init__(self, data: Path, *, progress: Progress = silent) -> None:
        self._home = Home(data)
        self._progress = progress
        self._jars = JarCache()
        self.postgres = Postgres(self._home, progress)
        self.kafka = Kafka(self._home, progress, self._jars)
        self.registry = Registry(self._home, progress, self._jars)
        self.connect = Connect(self._home, progress, self._jars)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self._home.data

    def up(self, *, connect: bool = False) -> Endpoints:
        """Start what does not run, side by side, and return when all are ready.

        Raises LocalStackError; then nothing that this call started is left running.
        """
        for _ in range(PORT_CHOICES - 1):
            try:
                return self._up(connect)
            except PortTaken as error:
                self._progress.say(f"{error.remedy}; starting again")
        return self._up(connect)

    def _up(self, connect: bool) -> Endpoints:
        with self._changing():
            servers = [self.postgres, self.kafka, self.registry, *([self.connect] if connect else [])]
            stopped = [server for server in servers if server.process.find() is None]
            if stopped:
                check_disk(self._home.data)
                check_memory([server.name for server in stopped])
                idle = [server for server in (*stopped, self.connect) if server.process.find() is None]
                self._home.settle([port for server in idle for port in server.port_names], self._progress)
            memory = self._home.memory()
            wanted = connect or self.connect.process.find() is not None
            if memory.get("connect", False) != wanted:
                memory["connect"] = wanted
                self._home.remember(memory)
            self._start_all(servers, stopped)
        return self._endpoints()

    def down(self, *, delete: bool = False) -> None:
        """Stop all servers, clients before those they need. ``delete`` removes the data folder too."""
        if not self._home.data.is_dir():
            return
        if delete:
            self._check_ours()
        with self._changing():
            for layer in ((self.connect, self.registry), (self.kafka, self.postgres)):
                with ThreadPoolExecutor(len(layer)) as pool:
                    for done in [pool.submit(server.stop) for server in layer]:
                        done.result()
            if delete:
                self.postgres.delete_data()
                shutil.rmtree(self._home.data)

    def _check_ours(self) -> None:
        """Refuse to delete a folder in which no stack was ever begun."""
        others = {entry.name for entry in self._home.data.iterdir()} - _OURS
        if others and not self._home.exists:
            raise LocalStackError(
                f"{self._home.data} is not a folder of the local stack: it holds {', '.join(sorted(others)[:3])}",
                remedy="nothing was deleted; give the folder that pipeline up was given, or an empty one",
            )

    def status(self) -> list[ServerStatus]:
        """Look at each server with a real request."""
        if not self._home.exists:
            return []
        servers: list[Server] = [self.postgres, self.kafka, self.registry]
        if self._home.memory().get("connect", False):
            servers.append(self.connect)
        with ThreadPoolExecutor(len(servers)) as pool:
            return list(pool.map(lambda server: server.status(), servers))

    def endpoints(self) -> Endpoints | None:
        """Return where the servers are, or None when not all of the three run."""
        if not self._home.exists:
            return None
        running = [server.process.find() for server in (self.postgres, self.kafka, self.registry)]
        return self._endpoints() if None not in running else None

    def start(self, name: ServerName) -> None:
        """Start one server where it was, and wait until it is ready."""
        with self._changing():
            server, cancelled = self._server(name), threading.Event()
            self._fetch([server] if server.process.find() is None else [], cancelled)
            server.start(cancelled)

    def stop(self, name: ServerName) -> None:
        """Stop one server in good order."""
        with self._changing():
            self._server(name).stop()

    def kill(self, name: ServerName) -> None:
        """Kill one server as a crash does (SIGKILL)."""
        with self._changing():
            self._server(name).process.kill()

    def _server(self, name: ServerName) -> Server:
        servers: dict[ServerName, Server] = {
            "postgres": self.postgres,
            "kafka": self.kafka,
            "registry": self.registry,
            "connect": self.connect,
        }
        return servers[name]

    def _start_all(self, servers: Sequence[Server], stopped: Sequence[Server]) -> None:
        cancelled = threading.Event()
        with ThreadPoolExecutor(5) as pool:
            jars = pool.submit(self._fetch, stopped, cancelled)
            postgres = pool.submit(self.postgres.start, cancelled)
            kafka = pool.submit(_after([jars], self.kafka, cancelled))
            registry = pool.submit(_after([jars, postgres], self.registry, cancelled))
            work: list[Future[bool]] = [jars, postgres, kafka, registry]
            if self.connect in servers:
                work.append(pool.submit(_after([kafka], self.connect, cancelled)))
            try:
                _raise_first(work)
            except BaseException:
                cancelled.set()
                pool.shutdown()
                for server in reversed(stopped):
                    server.stop()
                raise

    def _fetch(self, stopped: Sequence[Server], cancelled: threading.Event) -> bool:
        uses = set()
        if self.kafka in stopped:
            uses.add("kafka")
        if self.connect in stopped:
            uses |= {"kafka", "debezium", "converter"}
        if self.registry in stopped and self.registry.needs_archive():
            uses.add("registry")
        self._jars.fetch(uses, self._progress, cancelled)
        return True

    def _endpoints(self) -> Endpoints:
        return Endpoints(
            postgres_dsn=self.postgres.dsn(),
            kafka=self.kafka.address(),
            registry=self.registry.address(),
            registry_username=USERNAME,
            registry_password=self._home.password("registry"),
            connect=self.connect.address() if self.connect.process.find() is not None else None,
        )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with self._home.locked(self._progress):
                yield
        except OSError as error:
            raise _translated(error, self._home.data) from error
        except subprocess.SubprocessError as error:
            raise LocalStackError(str(error), remedy=f"look at the logs in {self._home.data}") from error


def _translated(error: OSError, data: Path) -> LocalStackError:
    where = error.filename or data
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LocalStackError(
            f"the disk is full ({where})", remedy="free some space, then run it again", retryable=True
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return LocalStackError(
            f"{where}: {error.strerror}",
            remedy="it was probably made by another user: use a folder of your own (--data DIR)",
        )
    return LocalStackError(f"{where}: {error.strerror or error}", remedy=f"look at {data}")


def _after(needed: Sequence[Future[bool]], server: Server, cancelled: threading.Event) -> Callable[[], bool]:
    """Return a task that starts a server once the others are there, and gives up when one of them failed."""

    def task() -> bool:
        for future in needed:
            if future.exception() is not None:
                raise Cancelled
        return server.start(cancelled)

    return task


def _raise_first(work: Sequence[Future[bool]]) -> None:
    """Wait for all; at the first failure raise its cause, not what was given up because of it."""
    done, _ = wait(work, return_when=FIRST_EXCEPTION)
    errors = [error for future in work if future in done and (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, Cancelled)):
        raise error
