"""A benchmark's figures in; a line for whoever watches and a row of the Markdown table out."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["FILE", "Row", "machine", "markdown", "missing", "read", "replaced", "told"]

FILE = "BENCHMARK_TABLE"
"""Names the file that rows are added to, a line of JSON each."""

_BEGIN, _END = "<!-- make bench: what stands below is written by it -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """One line of the table. ``target`` and ``met`` are empty where there is none."""

    what: str
    target: str
    measured: str
    met: str


def told(
    what: str,
    measured: str,
    figure: float | None = None,
    *,
    least: float | None = None,
    most: float | None = None,
    unit: str = "",
) -> None:
    """Print what was measured; where there is a target, whether ``figure``, a ratio or in ``unit``, is within it."""
    met = ""
    if figure is not None:
        measured = f"{figure:.3g}{unit} ({measured})"
        if least is not None or most is not None:
            met = "met" if (figure >= least if least is not None else figure <= (most or 0)) else "**missed**"
    _add(Row(what, _target(least, most, unit), measured, met))


def missing(what: str, why: str, *, least: float | None = None, most: float | None = None) -> None:
    """Say that a figure could not be had here."""
    _add(Row(what, _target(least, most, ""), f"not measured: {why}", ""))


def read(file: Path) -> list[Row]:
    """Return the rows that a benchmark has told."""
    return [Row(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def machine() -> str:
    """Return what the figures were taken on."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in cpus if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores ({next(names, platform.processor() or platform.machine())})"
    return f"{cores}, {memory:.0f} GB, Python {platform.python_version()}"


def markdown(parts: Iterable[tuple[str, list[Row]]], *, load: float, minutes: float, command: str) -> str:
    """Return the table: what each part told, under its name; and what it was taken with."""
    lines = ["| part | what | target | measured | |", "|---|---|---|---|---|"]
    lines += [f"| {part} | {' | '.join(row)} |" for part, rows in parts for row in rows]
    end = f"`{command}`, {time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes, on {machine()} that ran the servers too"
    return "\n".join([*lines, "", f"{end}; load {load:.1f} when it began.", ""])


def replaced(page: str, table: str) -> str:
    """Return a page with a new table between its two marks. Raises ValueError where it has none."""
    before, after = page.index(_BEGIN) + len(_BEGIN), page.index(_END)
    return page[:before] + table + page[after:]


def _target(least: float | None, most: float | None, unit: str) -> str:
    return f"≥ {least:.3g}{unit}" if least is not None else f"≤ {most:.3g}{unit}" if most is not None else ""


def _add(row: Row) -> None:
    print(f"{row.what:<64} {row.target:>7}  {row.measured} {row.met}".rstrip(), flush=True)
    if file := os.environ.get(FILE):
        with Path(file).open("a") as rows:
            rows.write(json.dumps(row) + "\n")
