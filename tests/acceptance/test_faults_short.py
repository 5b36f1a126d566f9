"""A short campaign of faults with a fixed seed, as ``make faults`` runs a long one; servers of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = (
    "standby relay killed",
    "relay killed between ack and confirm",
    "all workers killed",
    "worker terminated",
    "broker killed",
    "PostgreSQL restarted in recovery",
    "cut: relay and broker",
)


def test_a_short_campaign_of_faults_breaks_no_promise() -> None:
    only = [word for kind in KINDS for word in ("--only", kind)]
    command = [sys.executable, "-m", "tests.faults", "--double", "0", "--seed", "7", "--faults", str(len(KINDS)), *only]
    done = subprocess.run([*command, "-o", "json"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr  # it could not be run
    result = json.loads(done.stdout)
    assert result["violations"] == [], done.stderr
    assert done.returncode == 0
    assert {fault["kind"] for fault in result["rounds"]} >= {"broker killed", "PostgreSQL restarted in recovery"}
    assert len(result["rounds"]) == len(KINDS)
    verdict = result["verdict"]
    assert verdict["committed"] > 300
    assert verdict["rolled_back"] > 10
    assert verdict["published"] + verdict["refused"] >= verdict["committed"]
    assert verdict["duplicate_records"] > 0, "the relay was killed with records that were not confirmed"
