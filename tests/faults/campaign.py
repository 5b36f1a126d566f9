"""A seed and a plan in, faults one after another under load, and the auditor's verdict out."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import crashes, cuts, outages, refusals  # noqa: F401 — they fill the table
from tests.faults.auditor import Verdict, audit, effects, handlings, ledger, pending, read
from tests.faults.faults import FAULTS, Fault
from tests.faults.processes import wait
from tests.faults.stack import SCALED
from tests.faults.world import ACCOUNT, DLQ, MAIL, PARCEL, World

__all__ = ["Plan", "Result", "Round", "run"]

GROUPS = {
    "ledger": ("bank.ledger", ("bank.ledger.retry.0s",)),
    "mirror": ("bank.mirror", ("bank.mirror.retry.0s",)),
    "post": ("bank.post", ("bank.post.retry.0s",)),
    "mail": (
        "bank.jobs.mail",
        ("bank.jobs.mail.retry.0s", "bank.jobs.mail.retry.500ms", "bank.jobs.mail.retry.1s"),
    ),
}
DRAIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: for how long or how many faults, from which seed, of which kinds."""

    seed: int
    seconds: float = 120.0
    faults: int = 0  # 0: as many as there is time for
    kinds: tuple[str, ...] = ()
    per_second: float = 25.0  # transactions
    workers: int = 2
    double: float = 0.15  # share of rounds with two faults at once


@dataclass(frozen=True, slots=True)
class Round:
    """One fault as it went. ``recovery_s`` is from the heal until a fresh event was handled; None: it never was."""

    number: int
    kind: str
    part: str
    at_s: float
    held_s: float
    detail: str
    recovery_s: float | None


@dataclass(slots=True)
class Result:
    """A campaign: its rounds, the verdict, and all that is wrong."""

    plan: Plan
    scaled: dict[str, str] = field(default_factory=lambda: dict(SCALED))
    rounds: list[Round] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    transactions: int = 0
    seconds: float = 0.0
    self_ended: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Result:
    """Run a campaign with its data in ``folder``. The servers are stopped at the end, the logs stay.

    A campaign that cannot be run to its end, for whatever reason, is a violation too, and ends with its result.
    """
    result = Result(plan)
    world = World(folder, plan.seed, per_second=plan.per_second, workers=plan.workers, say=say)
    began = time.monotonic()
    try:
        world.open()
        say(f"servers, relays and workers run after {time.monotonic() - began:.0f} s; seed {plan.seed}")
        began = time.monotonic()
        if world.recovered() is None:
            result.violations.append(f"nothing works before any fault: {world.whereabouts()}")
        _rounds(plan, world, result, began, say)
        _finish(world, result, say)
    except Exception as error:  # noqa: BLE001 — it is told, and what was found before it is not lost
        say(traceback.format_exc())
        result.violations.append(f"the campaign could not be run to its end: {type(error).__name__}: {error}")
    finally:
        result.seconds = round(time.monotonic() - began, 1)
        try:
            world.close()
        except Exception as error:  # noqa: BLE001 — no reason to lose the verdict
            say(f"what was started is not all gone: {type(error).__name__}: {error}")
    for finding in result.verdict.findings:
        result.violations.append(f"{finding.promise}: broken {finding.count} times, such as {finding.examples[:3]}")
    return result


def _rounds(plan: Plan, world: World, result: Result, began: float, say: Callable[[str], None]) -> None:
    rng = random.Random(plan.seed)
    names = list(plan.kinds or FAULTS)
    bag: list[str] = []
    while time.monotonic() - began < plan.seconds and not (plan.faults and len(result.rounds) >= plan.faults):
        while len(bag) < 2:
            fresh = [name for name in names for _ in range(FAULTS[name].often if len(names) == len(FAULTS) else 1)]
            rng.shuffle(fresh)
            bag += fresh
        chosen = [FAULTS[bag.pop(0)](random.Random(rng.random()))]
        other = FAULTS[bag[0]]
        if rng.random() < plan.double and other.kind != chosen[0].kind and not (other.alone or chosen[0].alone):
            chosen.append(FAULTS[bag.pop(0)](random.Random(rng.random())))
        _round(chosen, world, result, began, say)


def _round(faults: list[Fault], world: World, result: Result, began: float, say: Callable[[str], None]) -> None:
    """Inject, hold, heal, wait until all works, look."""
    at_s = time.monotonic() - began
    told: dict[Fault, list[str]] = {fault: [] for fault in faults}

    def step(name: str, order: list[Fault]) -> None:
        for fault in order:
            try:
                told[fault].append(getattr(fault, name)(world))
            except Exception as error:  # noqa: BLE001 — the campaign goes on; the line and the summary say it
                told[fault].append(f"{name} failed: {type(error).__name__}: {error}")
                if len(faults) == 1:
                    result.violations.append(f"fault {fault.kind}: {name} failed: {error}")

    step("inject", faults)
    time.sleep(max(fault.hold for fault in faults))
    step("heal", faults[::-1])
    healed = time.monotonic()
    try:
        world.restore()
    except Exception as error:  # noqa: BLE001 — as above
        result.violations.append(f"restoring after {faults[0].kind}: {type(error).__name__}: {error}")
    recovery_s = world.recovered()
    if len(faults) == 1:
        step("after", faults)
    world.load.calm.clear()
    if recovery_s is None:
        result.violations.append(f"no recovery after {' and '.join(f.kind for f in faults)}: {world.whereabouts()}")
    else:
        recovery_s = round(time.monotonic() - healed if recovery_s > 1 else recovery_s, 1)
    for fault in faults:
        number = len(result.rounds) + 1
        detail = "; ".join(text for text in told[fault] if text)
        result.rounds.append(Round(number, fault.kind, fault.part, round(at_s, 1), fault.hold, detail, recovery_s))
        result.violations += [f"fault {number}, {fault.kind}: {text}" for text in fault.violations]
        back = "NOT RECOVERED" if recovery_s is None else f"recovered in {recovery_s:.1f} s"
        together = " (with the one before)" if fault is not faults[0] else ""
        say(f"{at_s:7.1f} s  {number:3}  {fault.kind}{together}: {detail}; held {fault.hold:.1f} s, {back}")


def _finish(world: World, result: Result, say: Callable[[str], None]) -> None:
    """Stop the load, let everything arrive, end all processes in good order, and audit."""
    world.load.stop()
    world.restore()
    say("load stopped; waiting until all is handled or dead")
    dsn, kafka = world.ends.postgres_dsn, world.ends.kafka
    entries = ledger(dsn)
    dead: set[tuple[str, str]] = set()

    def open_ids() -> list[tuple[str, str]]:
        world.handled.update()
        return [
            (group, entry.id)
            for entry in entries.values()
            for group in {"moved": ("ledger", "mirror"), "parcel": ("post",), "letter": ("mail",)}[entry.kind]
            if (group, entry.id) not in world.handled.done and (group, entry.id) not in dead
        ]

    def drained() -> bool:
        world.look_after()
        if not open_ids():
            return True
        for group, (name, _) in GROUPS.items():
            dead.update((group, copy.id) for copy in read(kafka, [f"{name}.dlq"]))
        for copy in read(kafka, [DLQ]):
            dead.update((group, copy.id) for group in GROUPS)
        return not open_ids()

    if not wait(drained, DRAIN_S):
        result.violations.append(f"not drained within {DRAIN_S:.0f} s: {len(open_ids())} open; {world.whereabouts()}")
    for member in (*world.workers, *world.relays):
        code = member.terminate()
        if code != 0:
            result.violations.append(f"{member.name} ended with code {code} at the end: {member.last_words(3)[-300:]}")
    say("auditing every event id")
    events = [*world.archive, *read(kafka, [ACCOUNT, MAIL]), *read(kafka, [PARCEL], world.lives)]
    result.verdict = audit(
        entries=entries,
        acknowledged=world.load.acknowledged,
        rolled_back=world.load.rolled_back,
        events=events,
        dead={group: read(kafka, [f"{name}.dlq"]) for group, (name, _) in GROUPS.items()},
        refused=read(kafka, [DLQ]),
        waiting={group: pending(kafka, name, tiers) for group, (name, tiers) in GROUPS.items()},
        handled=handlings(world.folder),
        done_effects=effects(dsn),
        poison=world.poison,
        groups=GROUPS,
    )
    result.transactions = world.load.transactions
    result.self_ended = world.self_ended
    result.violations += [text for text in world.self_ended if text.startswith("relay")]
