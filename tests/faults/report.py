"""A campaign's result in, a summary for a terminal or a page for the docs out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["lines", "markdown", "merged"]


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the summary, for a terminal."""
    verdict = result["verdict"]
    kinds = {fault["kind"] for fault in result["rounds"]}
    slowest = _slowest(result["rounds"])
    seed, seconds = result["plan"]["seed"], result["seconds"]
    text = [
        "",
        f"{len(result['rounds'])} faults of {len(kinds)} kinds in {seconds:.0f} s, seed {seed}",
        f"transactions {result['transactions']}, events and jobs committed {verdict['committed']}",
        f"rolled back {verdict['rolled_back']}",
        f"published {verdict['published']}, copies beyond the first {verdict['duplicate_records']}",
        f"dead letters of the relay {verdict['refused']}, of groups {verdict['dead']}",
        f"handled {verdict['handled']}, handled again {verdict['duplicate_handlings']}",
        f"waiting on a retry topic {verdict['waiting']}, effects with inbox {verdict['effects']}",
        f"longest recovery {slowest[0]:.1f} s ({slowest[1]})",
    ]
    if result["self_ended"]:
        text.append(f"processes that ended by themselves and were started again: {len(result['self_ended'])}")
        text += [f"  {line}" for line in result["self_ended"][:10]]
    text += [f"VIOLATION  {line}" for line in result["violations"]]
    text.append("lost: 0, invented: 0, order kept" if not result["violations"] else "FAILED")
    return text


def merged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return several campaigns as one."""
    found = dict(results[0])
    for other in results[1:]:
        found["plan"] = {**found["plan"], "seed": f"{found['plan']['seed']}, {other['plan']['seed']}"}
        for name in ("rounds", "self_ended", "violations"):
            found[name] = [*found[name], *other[name]]
        for name in ("seconds", "transactions"):
            found[name] += other[name]
        found["verdict"] = {name: value + other["verdict"][name] for name, value in found["verdict"].items()}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page ``docs/faults.md``."""
    verdict, rounds, plan = result["verdict"], result["rounds"], result["plan"]
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for fault in rounds:
        by_kind[fault["kind"]].append(fault)
    table = ["| part | kind | times | recovery: median | longest |", "|---|---|--:|--:|--:|"]
    for kind, found in sorted(by_kind.items(), key=lambda pair: (pair[1][0]["part"], pair[0])):
        took = sorted(fault["recovery_s"] for fault in found if fault["recovery_s"] is not None)
        missing = len(found) - len(took)
        longest = f"{took[-1]:.1f} s" if took else ""
        longest += f", {missing} never" if missing else ""
        median = f"{took[len(took) // 2]:.1f} s" if took else ""
        table.append(f"| {found[0]['part']} | {kind} | {len(found)} | {median} | {longest} |")
    takeovers = sorted(
        float(fault["detail"].split("taken over after ")[1].split(" ")[0])
        for fault in rounds
        if fault["kind"] == "relay killed" and "taken over after " in fault["detail"]
    )
    drains = [int(n) for fault in rounds for n in re.findall(r"(\d+) handled twice", fault["detail"])]
    slowest = _slowest(rounds)
    figures = [
        ("faults, kinds", f"{len(rounds)}, {len(by_kind)}"),
        ("seed; time", f"{plan['seed']}; {result['seconds'] / 60:.0f} min"),
        ("transactions; events and jobs committed; rolled back",
         f"{result['transactions']:,}; {verdict['committed']:,}; {verdict['rolled_back']:,}"),
        ("**lost; invented; out of order; effects with inbox twice**",
         "**0; 0; 0; 0**" if not verdict["findings"] else "**see below**"),
        ("copies on topics beyond the first", f"{verdict['duplicate_records']:,}"),
        ("handlings; beyond the first", f"{verdict['handled']:,}; {verdict['duplicate_handlings']:,}"),
        ("dead letters of groups; of the relay; still waiting for a retry",
         f"{verdict['dead']:,}; {verdict['refused']:,}; {verdict['waiting']:,}"),
        ("poison records, each on the DLQs of both groups that read it", f"{verdict['poison']:,}"),
        ("longest recovery", f"{slowest[0]:.1f} s ({slowest[1]})"),
        ("standby relay takes over from a killed one", f"{takeovers[len(takeovers) // 2]:.1f} s median, "
         f"{takeovers[-1]:.1f} s longest of {len(takeovers)}" if takeovers else "not seen"),
        ("workers ended in good order; with nothing handled again; handled again in all",
         f"{len(drains)}; {drains.count(0)}; {sum(drains)}"),
        ("processes that ended by themselves and were started again", str(len(result["self_ended"]))),
    ]  # fmt: skip
    words = [
        _HEAD,
        "## The last long campaigns\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in figures),
        "",
        "Recovery is from the end of a fault until all groups have handled fresh messages of every partition.",
        "",
        *table,
        "",
        "Shorter than as delivered, so that a stop of some seconds is longer than every time limit:",
        "",
        *(f"- {name}: {value}" for name, value in result["scaled"].items()),
        "",
        _TAIL,
    ]
    if result["violations"]:
        words += ["## What was broken\n", *(f"- {line[:240]}" for line in result["violations"]), ""]
    return "\n".join(words)


def _slowest(rounds: list[Mapping[str, Any]]) -> tuple[float, str]:
    return max(((f["recovery_s"], f["kind"]) for f in rounds if f["recovery_s"] is not None), default=(0.0, "none"))


_HEAD = """\
# Faults

`make faults` runs a campaign: real PostgreSQL, Kafka and registry of its own, two relays (one active, one standing by),
two workers, writers that commit and roll back, and one fault after another, some of them two at a time. At the end an
auditor that shares no code with the pipeline reads every topic, table and handler's log from the beginning and follows
every event id. It exits with 1, and keeps its logs, when a promise was broken.

```
make faults                                          # two minutes, seed 1
make faults FAULTS="--seconds 1500 --seed 20 --report docs/faults.md"
python -m tests.faults --list                        # all kinds
python -m tests.faults --only "relay killed" --faults 5 --keep
```

The same seed gives the same faults in the same order and the same writers; what happens between them is up to the
machine. `make test` has a short run with a fixed seed.

## What is checked

| promise | how |
|---|---|
| nothing lost | what the ledger (a row in the business transaction itself) has is on its topic or on the relay's DLQ; each group handled it, has it on its DLQ, or it waits on a retry topic |
| nothing invented | every id on a topic or in a handler's log is in the ledger; no id of a transaction or savepoint that was rolled back is anywhere; the bytes are those of the outbox row |
| order kept | the first copies of a key's events have rising numbers on one partition; the first handlings of a key too. The numbers are taken under a row lock that is held until the commit |
| duplicates harmless | a handler with an inbox table has each effect exactly once, in order |
| one bad record stops nobody | poison, rejected and exhausted records are on the DLQ of every group that reads them, and no healthy record is |
| a worker that ends in good order leaves next to nothing to be done twice | around a SIGTERM what is handled again is counted and bounded |

A topic that is deleted takes its records with it: nothing can bring those back. So that fault reads and counts them
first, once all of them are handled; what is committed while the topic is missing has to come when it is there again.
"""  # noqa: E501 — a table of Markdown

_TAIL = """\
## What campaigns found

| found | mended |
|---|---|
| a worker told to end while its group rebalanced: its last commit was refused, and what it had done since the one before was done again | it takes part in the rebalance, then commits |
| an acknowledgement that came after its topic was deleted ended the relay, or counted for a later record | counted where it belongs |
| a standby that took over said at once that nothing had been acknowledged for ten seconds | time counts while something is owed |
| a connection that a firewall forgot kept the relay from ever storing its position, and from ending at SIGTERM | a write without an answer is a lost connection |

## What is known

- A topic that is deleted and made again **while its consumers run** ends their worker: the group's old offsets, which the
  worker commits again, lie beyond the new topic's end. Stop the topic's consumers first, as the campaign does.
- For a moment behind a topic's deletion the broker still acknowledges records, and drops them with the topic. Two events
  of the campaign with seed 22 went so: the auditor found them, and the fault waits since until the topic's logs are gone.
- "NOT taken over" in a campaign's lines is no broken promise by itself: the other relay was down by the fault before, or PostgreSQL
  was, or the relay that was ended only believed to be active, as its connection had been forgotten by the network.
- A worker can take longer to end than its drain timeout. One did, of more than a hundred: told to end while the end of
  another made its group rebalance, the worker of one queue had drained and did not leave its group within 40 s. It was
  killed; nothing was lost. The faults `all workers terminated` look for it, and have its threads written down.
- What was handled behind an event that is not done yet, on the same partition, is handled again when the partition moves
  or the worker ends: behind one that waits in place for its next attempt, or in a queue of its key. The
  faults that drain workers let no event fail meanwhile.
- At a rebalance between live workers a few records can be handled twice: the group refuses commits until it is over.
"""  # noqa: E501 — a table of Markdown
