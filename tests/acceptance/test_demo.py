"""``pipeline demo`` as a newcomer runs it, on servers of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(240)

TESTS = Path(__file__).parents[1]
# as tests/quick.py has it: the other run is one as delivered
QUICK = ("-c", "from quick import quick_java; quick_java(); from pipeline.__main__ import main; main()")
FIELDS = {"committed", "rolled_back", "published", "handled", "retried", "dead", "redriven", "lost", "duplicates"}


def run(*words: str, data: Path, begin: Sequence[str] = ("-m", "pipeline")) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    env["PYTHONPATH"] = str(TESTS)
    command = [sys.executable, *begin, *words, "--data", str(data)]
    return subprocess.run(command, env=env, cwd=data.parent, capture_output=True, text=True, timeout=220)


def processes_of(data: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(data) in words or str(data) in str((process.info["environ"] or {}).get("PIPELINE_DATA_DIR", "")):
            found.append(words)
    return found


def test_demo_loses_nothing_invents_nothing_and_leaves_nothing_running(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    done = run("demo", "--orders", "400", "-o", "json", data=data)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert set(summary) >= {*FIELDS, "p50_ms", "p99_ms"}
    assert summary["committed"] == summary["published"] == 2 * 380
    assert summary["rolled_back"] == 2 * 20
    assert summary["lost"] == summary["invented"] == 0
    assert summary["redriven"] == 4  # one customer in a hundred, whose bank was closed
    assert summary["dead"] == 5  # … and the poison record, which stays
    assert summary["handled"] == 2 * 380
    assert summary["retried"] >= 8
    assert processes_of(data) == []
    assert not data.exists()


def test_demo_can_be_kept_and_looked_into(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    done = run("demo", "--orders", "100", "--keep", data=data, begin=QUICK)
    try:
        assert done.returncode == 0, done.stderr
        assert "pipeline dlq list" in done.stderr
        env = {**os.environ, "PIPELINE_DATA_DIR": str(data)}
        listed = subprocess.run(
            [sys.executable, "-m", "pipeline", "dlq", "list", "pipeline.demo.shop:app", "--state", "all", "-o", "json"],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert listed.returncode == 0, listed.stderr
        assert {letter["state"] for letter in json.loads(listed.stdout)} == {"open", "redriven"}
    finally:
        run("down", "--delete", data=data)
    assert processes_of(data) == []
