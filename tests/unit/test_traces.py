"""What a test leaves behind in its process is told, so that no other test fails of it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from traces import left, state


def test_each_change_to_the_process_is_told_and_none_once_it_is_undone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, root, taken = state(), logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handler, level = logging.NullHandler(), root.level
    with monkeypatch.context() as patch:
        patch.setenv("PIPELINE_LEFT", "1")
        patch.delenv("PATH")
        patch.chdir(tmp_path)
        patch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        root.addHandler(handler)
        root.setLevel(logging.CRITICAL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        found = left(before)
        root.removeHandler(handler)
        root.setLevel(level)
        signal.signal(signal.SIGTERM, taken)
    assert found == [
        "$PATH", "$PIPELINE_LEFT", "handler of SIGTERM", "handlers of the root logger", "level of the root logger",
        "sys.path", "working directory",
    ]  # fmt: skip
    assert left(before) == []
    assert "PIPELINE_LEFT" not in os.environ
