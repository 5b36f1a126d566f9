"""What the servers of the local stack have in common: prepare, launch, wait until ready, stop.

``start`` returns only once the server answered a real request, and says with the end of its log when it died.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.errors import LocalStackError
from pipeline.local.home import Home
from pipeline.local.ports import holder, is_free, is_free_soon
from pipeline.local.process import BackgroundProcess, Launch
from pipeline.local.progress import Progress

__all__ = ["Cancelled", "NotReady", "PortTaken", "Server", "ServerStatus", "State", "inherited_environment"]

POLL_S = 0.05
# Settings that Quarkus and the JVM would take from our environment before our own files.
FOREIGN_SETTINGS = ("QUARKUS_", "APICURIO_", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "PG")

State = Literal["healthy", "unhealthy", "stopped"]


class NotReady(Exception):
    """A probe found the server not (yet) able to work; the text says why."""


class Cancelled(Exception):
    """Somebody asked to end the start."""


class PortTaken(LocalStackError):
    """Between the choice of a port and the server's own bind, seconds later, somebody else took it."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server as it is now. ``address`` is ``host:port`` or a URL, ``data`` and ``log`` are paths."""

    name: str
    state: State
    pid: int | None
    address: str
    data: str
    log: str
    detail: str = ""


class Server(ABC):
    """One server of the stack. ``port_names`` are the ports it listens on, its clients' port first."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    ready_s: ClassVar[float] = 90
    stop_s: ClassVar[float] = 20

    def __init__(self, home: Home, progress: Progress) -> None:
        self.home = home
        self.progress = progress
        self.folder = home.data / self.name

    @property
    def process(self) -> BackgroundProcess:
        """The process, found by its pid file in the data folder."""
        return BackgroundProcess(self.folder / "pid", self.folder / f"{self.name}.log", self.marker())

    @abstractmethod
    def marker(self) -> str:
        """Return what stands in this server's command line and in no other's."""

    @abstractmethod
    def address(self) -> str:
        """Return where clients find it."""

    @abstractmethod
    def prepare(self) -> Launch:
        """Write what it needs on disk, and return how to start it."""

    @abstractmethod
    def probe(self) -> None:
        """Ask it something that only a working server answers. Raises NotReady."""

    def start(self, cancelled: threading.Event) -> bool:
        """Start it unless it runs, and wait until it is ready. Returns whether it was started by this call."""
        fresh = self.process.find() is None
        began = time.monotonic()
        if fresh:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            launch = self.prepare()
            self._check_ports()
            self.process.start(launch)
        self._wait_ready(cancelled, began + self.ready_s)
        if fresh:
            took_s = time.monotonic() - began
            self.progress.say(f"{self.name} is ready at {self.address()} ({took_s:.1f} s)")
        return fresh

    def stop(self) -> None:
        """Stop it in good order, or by force when it does not end in time."""
        if self.process.find() is not None and not self.process.stop(self.stop_signal, self.stop_s):
            self.progress.say(f"{self.name} did not stop within {self.stop_s:.0f} s and was killed")

    def status(self) -> ServerStatus:
        """Look at it now, with a real request."""
        pid = self.process.find()
        state: State = "stopped"
        detail = ""
        if pid is not None:
            try:
                self.probe()
                state = "healthy"
            except NotReady as error:
                state, detail = "unhealthy", str(error)
        log = self.process.log_file
        return ServerStatus(self.name, state, pid, self.address(), str(self.data_folder()), str(log), detail)

    def data_folder(self) -> Path:
        """Return where its data is."""
        return self.folder

    def transient(self, log: str) -> bool:
        """Whether a server that died with this log is worth another try at once."""
        del log
        return False

    def _wait_ready(self, cancelled: threading.Event, deadline: float) -> None:
        while True:
            if cancelled.is_set():
                raise Cancelled
            alive = self.process.find() is not None
            try:
                self.probe()
            except NotReady as error:
                reason = str(error)
            else:
                if alive:
                    return
                reason = "something else answers at its address"
            if not alive:
                if not self.transient(self.process.log_tail()):
                    raise self._died()
                time.sleep(0.2)
                self.process.start(self.prepare())
            if time.monotonic() > deadline:
                raise LocalStackError(
                    f"{self.name} runs but was not ready within {self.ready_s:.0f} s ({reason}); its log ends:\n"
                    + self.process.log_tail(),
                    remedy=f"see {self.process.log_file}; `pipeline down` and `pipeline up` start it again",
                    retryable=True,
                )
            time.sleep(POLL_S)

    def _died(self) -> LocalStackError:
        said = f"{self.name} died while starting; its log ends:\n{self.process.log_tail()}"
        taken = [port for port in self._ports() if not is_free(port)]
        if taken:
            return PortTaken(
                said,
                remedy=f"port {taken[0]} was taken by {holder(taken[0])} meanwhile: `pipeline up` chooses another",
                retryable=True,
            )
        return LocalStackError(said, remedy=f"see {self.process.log_file}")

    def _check_ports(self) -> None:
        for port in self._ports():
            if not is_free_soon(port):
                raise PortTaken(
                    f"{self.name}: port {port} is in use by {holder(port)}",
                    remedy="`pipeline up` chooses another port and says so",
                    retryable=True,
                )

    def _ports(self) -> list[int]:
        return [self.home.port(name) for name in self.port_names]


def inherited_environment() -> dict[str, str]:
    """Return our environment for a server, without what would override the settings we give it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)}
