"""The network between processes and servers cut, in the ways in which networks are."""

from __future__ import annotations

from tests.faults.faults import Fault, takeover
from tests.faults.world import World

__all__: list[str] = []


class _Cut(Fault):
    link = ""
    hold_s = (1.0, 5.0)

    def inject(self, world: World) -> str:
        link = world.link(self.link)
        self.reset = self.rng.random() < 0.5
        how = self.rng.choice(("refused", "silent", "silent", "silent to the server", "silent from the server"))
        if how == "refused":
            count = link.refuse()
        elif how == "silent":
            count = link.silence()
        else:
            count = link.silence("out" if how == "silent to the server" else "back")
        return f"{count} connections {how}"

    def heal(self, world: World) -> str:
        world.link(self.link).restore(reset=self.reset)
        return "back with a reset" if self.reset else "back"


class RelayFromKafka(_Cut):
    """Records leave and no acknowledgement comes, or nothing passes."""

    kind, part, link = "cut: relay and broker", "network", "relay-kafka"


class RelayFromPostgres(_Cut):
    """Rows do not come, or positions do not go back."""

    kind, part, link = "cut: relay and PostgreSQL", "network", "relay-postgres"


class WorkerFromKafka(_Cut):
    """Records, heartbeats and commits do not pass, at times for longer than a session."""

    kind, part, link, hold_s = "cut: workers and broker", "network", "worker-kafka", (1.0, 9.0)
    often = 1


class WorkerFromPostgres(_Cut):
    """Handlers do not reach their database."""

    kind, part, link = "cut: workers and PostgreSQL", "network", "worker-postgres"


class WorkerFromRegistry(_Cut):
    """Workers do not reach the registry, and one of them is new."""

    kind, part, link = "cut: workers and registry", "network", "worker-registry"
    often = 1

    def inject(self, world: World) -> str:
        told = super().inject(world)
        worker = self.rng.choice(world.workers)
        worker.kill()
        worker.start()
        return f"{told}, {worker.name} started"


class RelayForgotten(Fault):
    """A firewall forgets the relay's connections to the database: they stay silent for ever, new ones pass."""

    kind, part, hold_s = "connections forgotten: relay and PostgreSQL", "network", (0.5, 1.0)
    often = 1

    def inject(self, world: World) -> str:
        before = world.slot_pid()
        count = world.link("relay-postgres").forget()
        return f"{count} connections, {takeover(world, before, 60)}"


class RelayForgottenByKafka(Fault):
    """The same to the broker."""

    kind, part, hold_s = "connections forgotten: relay and broker", "network", (0.5, 1.0)
    often = 1

    def inject(self, world: World) -> str:
        return f"{world.link('relay-kafka').forget()} connections"


class WorkersForgottenByKafka(Fault):
    """The same for workers: they notice by their requests' time limit."""

    kind, part, hold_s = "connections forgotten: workers and broker", "network", (0.5, 1.0)
    often = 1

    def inject(self, world: World) -> str:
        return f"{world.link('worker-kafka').forget(0.5)} connections"
