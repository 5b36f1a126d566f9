from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.local import machine
from tests.faults.campaign import Plan, run


def test_a_campaign_that_cannot_be_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 60)
    said: list[str] = []
    result = run(Plan(seed=1), tmp_path, said.append)
    assert ["too little disk" in text for text in result.violations] == [True]
    assert "Traceback" in said[0]
