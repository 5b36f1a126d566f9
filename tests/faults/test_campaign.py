from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.local import machine
from pipeline.postgres.wal import WalSettings
from pipeline.registry import client
from tests.faults.campaign import Plan, run
from tests.faults.faults import FAULTS
from tests.faults.world import RELAY_OPTIONS, WORKER_OPTIONS


def test_a_campaign_that_cannot_be_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_BYTES", 1 << 60)
    said: list[str] = []
    result = run(Plan(seed=1), tmp_path, said.append)
    assert ["too little disk" in text for text in result.violations] == [True]
    assert "Traceback" in said[0]


def test_who_is_stopped_stands_still_for_longer_than_every_time_limit_that_waits_for_him() -> None:
    liveness_s = WalSettings("s", "p", lambda _schema, _table: True, "t").liveness_s
    request_s = client._TIMEOUT_S
    options = dict(option.split("=") for option in (*RELAY_OPTIONS, *WORKER_OPTIONS))
    kafka_s = max(int(options[name]) for name in options if name.endswith("timeout.ms") or "max.poll" in name) / 1000
    waited_s = {
        "broker stopped (SIGSTOP)": kafka_s,
        "PostgreSQL stopped (SIGSTOP)": liveness_s,
        "registry stopped (SIGSTOP)": request_s,
        "relay stopped (SIGSTOP)": max(liveness_s, kafka_s),
        "standby relay stopped (SIGSTOP)": kafka_s,
        "worker stopped (SIGSTOP)": kafka_s,
    }
    stopped = {kind: fault.hold_s[0] for kind, fault in FAULTS.items() if "SIGSTOP" in kind}
    assert stopped.keys() == waited_s.keys()
    assert {kind: stopped[kind] for kind in stopped if stopped[kind] <= waited_s[kind]} == {}
