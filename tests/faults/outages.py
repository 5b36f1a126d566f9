"""PostgreSQL, Kafka and the registry killed, stopped, restarted and in recovery."""

from __future__ import annotations

import contextlib
import signal

import psutil
import psycopg

from tests.faults.faults import Fault
from tests.faults.processes import wait
from tests.faults.world import World

__all__: list[str] = []


class _Killed(Fault):
    server = ""

    def inject(self, world: World) -> str:
        world.servers.local.kill(self.server)
        return f"kill -9 {self.server}"

    def heal(self, world: World) -> str:
        world.servers.local.start(self.server)
        return ""


class BrokerKilled(_Killed):
    """The broker dies and recovers its logs."""

    kind, part, server, hold_s = "broker killed", "kafka", "kafka", (0.2, 1.5)
    often = 1


class PostgresKilled(_Killed):
    """The database dies and recovers from its WAL."""

    kind, part, server = "PostgreSQL killed", "postgres", "postgres"


class RegistryKilled(_Killed):
    """The registry dies; a worker that starts meanwhile knows no schema."""

    kind, part, server, hold_s = "registry killed, worker started without it", "registry", "registry", (1.5, 3.0)
    often = 1

    def inject(self, world: World) -> str:
        worker = self.rng.choice(world.workers)
        told = super().inject(world)
        worker.kill()
        worker.start()
        wait(lambda: bool(worker.state()), 15)
        return f"{told}, {worker.name} started"


class BrokerRestarted(Fault):
    """The broker stops in good order and comes back."""

    kind, part, hold_s = "broker restarted", "kafka", (0.1, 1.0)
    often = 1

    def inject(self, world: World) -> str:
        world.servers.local.stop("kafka")
        return "SIGTERM"

    def heal(self, world: World) -> str:
        world.servers.local.start("kafka")
        return ""


class PostgresRestarted(Fault):
    """The database stops in good order, which waits for the relay to have read all, and comes back."""

    kind, part, hold_s = "PostgreSQL restarted", "postgres", (0.1, 1.0)

    def inject(self, world: World) -> str:
        world.servers.local.stop("postgres")
        return "fast shutdown"

    def heal(self, world: World) -> str:
        world.servers.local.start("postgres")
        return ""


class PostgresRecovering(Fault):
    """An immediate shutdown: the database comes back in crash recovery."""

    kind, part, hold_s = "PostgreSQL restarted in recovery", "postgres", (0.0, 0.5)

    def inject(self, world: World) -> str:
        parent, *children = world.servers.processes("postgres")
        parent.send_signal(signal.SIGQUIT)
        psutil.wait_procs([parent, *children], 10)
        return "immediate shutdown"

    def heal(self, world: World) -> str:
        world.servers.local.start("postgres")
        return ""


class BackendKilled(Fault):
    """The process that feeds the relay dies: the server throws everybody out and recovers."""

    kind, part, hold_s = "walsender killed", "postgres", (0.5, 1.5)

    def inject(self, world: World) -> str:
        pid = world.slot_pid()
        if not pid:
            return "there was none"
        psutil.Process(pid).kill()
        wait(lambda: world.slot_pid() not in (0, pid), 20)
        return "kill -9 of it: all sessions end"


class BackendTerminated(Fault):
    """Somebody ends the replication connection, twice."""

    kind, part, hold_s = "walsender terminated", "postgres", (0.3, 1.0)

    def inject(self, world: World) -> str:
        for _ in range(2):
            wait(lambda: world.slot_pid() > 0, 10)
            with contextlib.suppress(psycopg.Error):
                world.sql("SELECT pg_terminate_backend(%s)", world.slot_pid())
        return "pg_terminate_backend, twice"


class _Stopped(Fault):
    server = ""

    def inject(self, world: World) -> str:
        self.stopped = world.servers.processes(self.server)
        for process in self.stopped:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        return f"SIGSTOP of {len(self.stopped)} processes"

    def heal(self, world: World) -> str:
        for process in reversed(self.stopped):
            with contextlib.suppress(psutil.Error):
                process.resume()
        return ""


class BrokerStopped(_Stopped):
    """The broker stands still for longer than requests and sessions may take."""

    kind, part, server, hold_s = "broker stopped (SIGSTOP)", "kafka", "kafka", (10.5, 12.5)
    often = 1


class PostgresStopped(_Stopped):
    """The database stands still until the relay takes its stream for dead."""

    kind, part, server, hold_s = "PostgreSQL stopped (SIGSTOP)", "postgres", "postgres", (30.5, 33.0)
    often = 1


class RegistryStopped(_Stopped):
    """The registry stands still for longer than a request may take."""

    kind, part, server, hold_s = "registry stopped (SIGSTOP)", "registry", "registry", (5.5, 8.0)
    often = 1
