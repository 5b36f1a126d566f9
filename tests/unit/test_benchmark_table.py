"""What benchmarks tell becomes the table of their README."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import table
from tests.benchmarks.__main__ import NAMES, README, shown


def test_a_row_says_what_was_wanted_what_was_measured_and_whether_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(table.FILE, str(tmp_path / "rows"))
    table.told("throughput", "80 / 100 records/s", 0.8, least=0.7)
    table.told("latency", "the whole way", 12.5, most=12, unit=" ms")
    table.told("rate", "5 jobs/s")
    table.missing("against a peer", "it needs more", least=3)
    assert table.read(tmp_path / "rows") == [
        ("throughput", "≥ 0.7", "0.8 (80 / 100 records/s)", "met"),
        ("latency", "≤ 12 ms", "12.5 ms (the whole way)", "**missed**"),
        ("rate", "", "5 jobs/s", ""),
        ("against a peer", "≥ 3", "not measured: it needs more", ""),
    ]


def test_the_table_replaces_the_one_in_the_readme_and_nothing_else() -> None:
    rows = [table.Row("throughput", "≥ 0.7", "0.8", "met")]
    made = table.markdown([("relay", rows)], load=0.1, minutes=2, command="make bench")
    assert "| relay | throughput | ≥ 0.7 | 0.8 | met |" in made
    assert "`make bench`" in made
    page = README.read_text()
    once = table.replaced(page, made)
    assert made in once
    assert table.replaced(once, "x\n").replace("x\n<", "<") == table.replaced(page, "")


def test_the_command_in_the_table_has_no_path() -> None:
    assert shown(NAMES, quick=False) == "make bench"
    assert shown(["relay", "path"], quick=True) == 'make bench BENCH="--only relay path --quick"'
