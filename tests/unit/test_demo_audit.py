"""The demonstration's exit code hangs on its verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.demo import demo
from pipeline.demo.run import Summary

GOOD = Summary(
    committed=2, rolled_back=2, published=2, handled=2, retried=0, dead=0, redriven=0, lost=0, invented=0,
    duplicates=0, p50_ms=1.0, p99_ms=1.0, seconds=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("summary", "code"),
    [(GOOD, 0), (replace(GOOD, lost=1), 1), (replace(GOOD, invented=1), 1), (replace(GOOD, duplicates=3), 0)],
)
def test_exit_code_says_whether_anything_was_lost_or_invented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, summary: Summary, code: int
) -> None:
    monkeypatch.setattr("pipeline.demo.run.run", lambda *_args, **_options: summary)
    result = CliRunner().invoke(demo, ["-o", "json", "--data", str(tmp_path)])
    assert result.exit_code == code
