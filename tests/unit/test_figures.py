"""What tests measure is told at the end of a run, by passing tests too, in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
def test_passes(figure):
    print("swallowed")
    figure("takeover: 0 lost")
    figure("gap: 1.5 s")

def test_fails(figure):
    figure("handover: 1 lost")
    assert False

def test_says_nothing():
    pass
"""


@pytest.mark.parametrize("processes", ["0", "1"])
def test_figures_are_told_at_the_end(tmp_path: Path, processes: str) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    run = [sys.executable, "-m", "pytest", "-p", "figures", "-n", processes, "-q", "--rootdir", ".", "test_some.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1, found.stdout + found.stderr
    told = found.stdout.partition(" figures ")[2].splitlines()[1:6]
    assert told == [
        "test_some.py::test_fails",
        "  handover: 1 lost",
        "test_some.py::test_passes",
        "  takeover: 0 lost",
        "  gap: 1.5 s",
    ]
    assert "swallowed" not in found.stdout
