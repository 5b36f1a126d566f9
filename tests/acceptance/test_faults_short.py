"""A short campaign of faults with a fixed seed, as ``make faults`` runs a long one; servers of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
CAMPAIGN_S = 500  # one takes a tenth of it; what hangs is ended in good order, with its servers, and says where it was


@pytest.mark.timeout(CAMPAIGN_S + 60)
def test_a_short_campaign_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    only = [word for kind in KINDS for word in ("--only", kind)]
    limits = ["--faults", str(len(KINDS)), "--seconds", str(CAMPAIGN_S)]
    command = [sys.executable, "-m", "tests.faults", "--double", "0", "--seed", "7", *limits, *only]
    said, found = tmp_path / "said", tmp_path / "result.json"
    with said.open("w") as stderr:
        campaign = subprocess.Popen([*command, "--json", str(found)], cwd=ROOT, stdout=stderr, stderr=stderr)
        try:
            campaign.wait(CAMPAIGN_S)
        except subprocess.TimeoutExpired:
            campaign.terminate()
            campaign.wait(50)
    assert campaign.returncode in (0, 1), said.read_text()
    result = json.loads(found.read_text())
    assert result["violations"] == [], said.read_text()
    assert campaign.returncode == 0
    assert {fault["kind"] for fault in result["rounds"]} >= {"broker killed", "PostgreSQL restarted in recovery"}
    assert len(result["rounds"]) == len(KINDS)
    verdict = result["verdict"]
    assert verdict["committed"] > 300
    assert verdict["rolled_back"] > 10
    assert verdict["published"] + verdict["refused"] >= verdict["committed"]
    assert verdict["duplicate_records"] > 0, "the relay was killed with records that were not confirmed"
