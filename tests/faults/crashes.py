"""Relays and workers killed, stopped and replaced."""

from __future__ import annotations

import time

from tests.faults.faults import Fault, takeover
from tests.faults.processes import Member, wait
from tests.faults.world import ACCOUNT, World

__all__: list[str] = []


class RelayKilled(Fault):
    """The active relay dies; the standby goes on."""

    kind, part, hold_s = "relay killed", "relay", (0.5, 1.5)

    def inject(self, world: World) -> str:
        before, active = world.slot_pid(), world.active_relay()
        active.kill()
        return f"kill -9 {active.name}, {takeover(world, before)}"


class StandbyKilled(Fault):
    """The relay that waits dies; nobody should notice."""

    kind, part, hold_s = "standby relay killed", "relay", (0.5, 1.5)

    def inject(self, world: World) -> str:
        standby = world.standby_relay()
        standby.kill()
        return f"kill -9 {standby.name}"


class RelaysKilled(Fault):
    """Both die; rows wait in the WAL."""

    kind, part = "both relays killed", "relay"

    def inject(self, world: World) -> str:
        for relay in world.relays:
            relay.kill()
        return "kill -9 of both"


class RelayKilledWhileCatchingUp(Fault):
    """Both die, rows pile up, and who catches up dies three times in the middle."""

    kind, part, hold_s = "relay killed while it catches up", "relay", (1.0, 2.0)
    often = 1

    def inject(self, world: World) -> str:
        for relay in world.relays:
            relay.kill()
        return "kill -9 of both"

    def heal(self, world: World) -> str:
        relay = world.relays[0]
        for _ in range(3):
            relay.start()
            wait(lambda: relay.state().get("role") == "active", 15)
            time.sleep(self.rng.uniform(0, 0.15))  # into the midst of it
            relay.kill()
        return "kill -9 three times more"


class RelayKilledUnconfirmed(Fault):
    """The broker has acknowledged, the slot does not know it yet, and the relay dies: copies, nothing lost."""

    kind, part, hold_s = "relay killed between ack and confirm", "relay", (0.2, 0.6)

    def inject(self, world: World) -> str:
        seen = len(world.tail.ids)
        world.link("relay-postgres").silence("out")  # rows come, positions do not go back
        fresh = wait(lambda: len(world.tail.ids) > seen + 20, 10)
        for relay in world.relays:
            relay.kill()
        world.link("relay-postgres").restore(reset=True)
        return f"{len(world.tail.ids) - seen} records published and not confirmed{'' if fresh else ' (few)'}, kill -9"


class RelayStopped(Fault):
    """The active relay stands still for longer than all wait, itself too, and wakes up when another is active."""

    kind, part, hold_s = "relay stopped (SIGSTOP)", "relay", (30.5, 32.0)
    often = 1

    def inject(self, world: World) -> str:
        before, self.relay = world.slot_pid(), world.active_relay()
        self.relay.pause()
        return f"SIGSTOP {self.relay.name}, {takeover(world, before)}"

    def heal(self, world: World) -> str:
        self.relay.resume()
        return ""


class StandbyStopped(Fault):
    """The relay that waits stands still; when it wakes up, it takes over from the active one, which is killed."""

    kind, part, hold_s = "standby relay stopped (SIGSTOP)", "relay", (10.5, 12.0)
    often = 1

    def inject(self, world: World) -> str:
        self.standby = world.standby_relay()
        self.standby.pause()
        return f"SIGSTOP {self.standby.name}"

    def heal(self, world: World) -> str:
        before = world.slot_pid()
        for relay in world.relays:
            if relay is not self.standby:
                relay.kill()
        self.standby.resume()
        return f"awake, the active one killed, {takeover(world, before)}"


class RelayTerminated(Fault):
    """The active relay is told to end in good order."""

    kind, part, hold_s = "relay terminated (SIGTERM)", "relay", (0.3, 1.0)
    alone = True  # it waits for the broker as long as it may

    def inject(self, world: World) -> str:
        before, active = world.slot_pid(), world.active_relay()
        code = active.terminate()
        if code != 0:
            self.violations.append(f"{active.name} ended with code {code} after SIGTERM")
        return f"SIGTERM {active.name}: code {code}, {takeover(world, before)}"


class WorkerKilled(Fault):
    """One worker dies in the middle of its handlers."""

    kind, part = "worker killed", "worker"

    def inject(self, world: World) -> str:
        worker = self.rng.choice(world.workers)
        worker.kill()
        return f"kill -9 {worker.name}"


class WorkersKilled(Fault):
    """All workers die at once."""

    kind, part = "all workers killed", "worker"

    def inject(self, world: World) -> str:
        for worker in world.workers:
            worker.kill()
        return f"kill -9 of {len(world.workers)}"


class WorkerStopped(Fault):
    """A worker stands still for longer than it may without a poll, and wakes up with handlers of what it lost."""

    kind, part, hold_s = "worker stopped (SIGSTOP)", "worker", (10.5, 12.0)
    often = 1

    def inject(self, world: World) -> str:
        self.worker = self.rng.choice(world.workers)
        self.worker.pause()
        return f"SIGSTOP {self.worker.name}"

    def heal(self, world: World) -> str:
        self.worker.resume()
        return ""


class _Drained(Fault):
    """Workers that end in good order leave hardly anything to be done twice.

    What was done behind a record that is not done yet, on the same partition, is done again by the next owner: behind
    one that waits in place for its next attempt, or was queued behind others of its key. So no account event has to
    fail while this goes on, no key gets many at once, and what failed before is waited for. What is left of it is
    counted, and bounded for a worker that ends while its group is at rest.
    """

    alone = True
    allowed: int | None = None

    def begin(self, world: World) -> None:
        world.load.calm.set()
        world.recovered()

        def quiet() -> bool:
            world.handled.update()
            tries = [at for (group, _), at in world.handled.failing.items() if group == "ledger"]
            again = [at for at, *_ in world.handled.repeats[-1:]]
            return max(tries + again, default=0) < time.time_ns() - 1_500_000_000

        wait(quiet, 10)
        self.began_ns = time.time_ns()

    def end(self, member: Member) -> str:
        wait(member.ready, 30)  # an interpreter that just starts ends by the signal itself
        code = member.terminate()
        if code != 0:
            self.violations.append(f"{member.name} ended with code {code} after SIGTERM")
        return f"SIGTERM {member.name}: code {code}"

    def after(self, world: World) -> str:
        world.load.calm.clear()
        world.handled.update()
        repeats = [repeat for repeat in world.handled.repeats if repeat[0] >= self.began_ns]
        if self.allowed is not None and len(repeats) > self.allowed:
            self.violations.append(f"{len(repeats)} handled twice around a drain, such as {repeats[0][1:]}")
        return f"{len(repeats)} handled twice"


class WorkerTerminated(_Drained):
    """A worker drains and ends; another has its partitions."""

    kind, part, hold_s = "worker terminated (SIGTERM)", "worker", (0.5, 1.5)
    allowed = 30

    def inject(self, world: World) -> str:
        self.begin(world)
        return self.end(self.rng.choice(world.workers))


class WorkersTerminated(_Drained):
    """All workers are told to end, each in the rebalance that the end of the one before began."""

    kind, part, hold_s = "all workers terminated (SIGTERM)", "worker", (0.1, 0.5)
    often = 1

    def inject(self, world: World) -> str:
        self.begin(world)
        told = []
        for worker in world.workers:
            told.append(self.end(worker))
            time.sleep(self.rng.uniform(0, 1.2))  # into the midst of it
        return ", ".join(told)


class WorkersRolled(_Drained):
    """All workers are replaced one after the other, as in a deployment."""

    kind, part, hold_s = "workers restarted one by one", "worker", (0.1, 0.2)
    often = 1

    def inject(self, world: World) -> str:
        self.begin(world)
        told = []
        for worker in world.workers:
            told.append(self.end(worker))
            worker.start()
            wait(worker.ready, 30)
        return ", ".join(told)


class WorkerAdded(_Drained):
    """A worker joins in the middle of handlers, takes partitions, and leaves again."""

    kind, part, hold_s = "rebalance: worker added and removed", "worker", (1.5, 3.0)
    often = 1

    def inject(self, world: World) -> str:
        self.begin(world)
        world.spare.start()
        wait(world.spare.ready, 20)
        return "one more worker"

    def heal(self, world: World) -> str:
        return self.end(world.spare)


class WorkerAddedAndKilled(Fault):
    """A worker joins, and dies in the rebalance or soon after."""

    kind, part, hold_s = "rebalance: worker added and killed", "worker", (0.1, 2.0)
    often = 1

    def inject(self, world: World) -> str:
        world.spare.start()
        wait(world.spare.ready, 20)
        return "one more worker"

    def heal(self, world: World) -> str:
        world.spare.kill()
        return "kill -9 of it"


class Poison(Fault):
    """Bytes that nothing decodes, on a key that others use: no frame at all, or a known schema's and then rubbish."""

    kind, part, hold_s = "poison record", "worker", (0.1, 0.3)

    def inject(self, world: World) -> str:
        from tests.faults.auditor import digest

        value = b"\xffnot avro " + self.rng.randbytes(8)
        if self.rng.random() < 0.5:
            (payload,) = world.sql("SELECT payload FROM pipeline.outbox WHERE type = 'Moved' LIMIT 1")[0]
            value = bytes(payload[:5]) + b"\xff" * 12 + self.rng.randbytes(8)
        world.send_poison(value, b"a01")
        world.poison.add(digest(value).hex())
        return f"on {ACCOUNT}"
