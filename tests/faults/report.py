"""A campaign's result in, a summary for a terminal or the figures of ``docs/faults.md`` out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["lines", "markdown", "merged", "put"]

_HEADING = "## The last long campaign"


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
    """Return the section with the figures, for ``put``."""
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
        f"{_HEADING}\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in figures),
        "",
        "Recovery is from the end of a fault until all groups have handled fresh messages of every partition.",
        "",
        *table,
        "",
        "Shorter than as delivered, so that a stop of some seconds is longer than these limits:",
        "",
        *(f"- {name}: {value}" for name, value in result["scaled"].items()),
        "",
    ]
    if result["violations"]:
        words += ["What was broken:\n", *(f"- {line[:240]}" for line in result["violations"]), ""]
    return "\n".join(words)


def _slowest(rounds: list[Mapping[str, Any]]) -> tuple[float, str]:
    return max(((f["recovery_s"], f["kind"]) for f in rounds if f["recovery_s"] is not None), default=(0.0, "none"))


def put(path: Path, section: str) -> None:
    """Put the section into a page in place of the one that stands there; a page without it gets it at its end."""
    text = path.read_text() if path.exists() else ""
    head, found, rest = text.partition(f"{_HEADING}\n")
    tail = rest[rest.index("\n## ") + 1 :] if found and "\n## " in rest else ""
    path.write_text(f"{head}{section}\n{tail}")
