"""What several processes count, as one: nothing that was counted is forgotten, and gauges are of the living."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from waiting import wait_until

from pipeline.metrics import PrometheusMeter
from pipeline.runtime.tally import FOLDER, Tally, Together, held_folder

COUNTS = """
import sys
from prometheus_client import CollectorRegistry
from pipeline.metrics import PrometheusMeter
meter = PrometheusMeter(CollectorRegistry())
meter.add("pipeline_broker_errors_total", 3, role="worker")
meter.observe_many("pipeline_handler_seconds", [0.2, 20], group="g", type="t")
meter.set("pipeline_in_flight_records", 5, group="g")
meter.set("pipeline_oldest_in_flight_seconds", float(sys.argv[1]), group="g")
print("counted", flush=True)
sys.stdin.read()
"""

HOLDS = """
import subprocess, sys
from pipeline.runtime.tally import held_folder
with held_folder() as (folder, held):
    with subprocess.Popen(["cat"], pass_fds=(held,), stdin=sys.stdin, stdout=subprocess.DEVNULL):
        print(folder, flush=True)
"""


@contextmanager
def counting(folder: Path, oldest_s: float) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", COUNTS, str(oldest_s)],
        env={FOLDER: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        yield process
        process.kill()


def test_counters_stay_and_gauges_go_with_their_process(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    PrometheusMeter(registry).set("pipeline_worker_processes", 2)
    together = Together(registry, Tally(tmp_path))

    def told() -> dict[str, float]:
        lines = [line for line in generate_latest(together).decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    errors, seconds = 'pipeline_broker_errors_total{role="worker"}', "pipeline_handler_seconds"
    in_flight, oldest = 'pipeline_in_flight_records{group="g"}', 'pipeline_oldest_in_flight_seconds{group="g"}'
    with counting(tmp_path, 7) as first, counting(tmp_path, 4):
        both = told()
        assert both[errors] == 6
        assert both[in_flight] == 10  # of all
        assert both[oldest] == 7  # the worst
        assert both["pipeline_worker_processes"] == 2
    for _ in range(2):  # the second time from what was kept of the dead
        none = told()
        assert none[errors] == 6
        assert none[f'{seconds}_count{{group="g",type="t"}}'] == 4
        assert none[f'{seconds}_bucket{{group="g",le="0.25",type="t"}}'] == 2
        assert in_flight not in none
        assert oldest not in none
    (tmp_path / f"summary_{first.pid}.db").touch()  # it ended at the moment in which it made one
    with counting(tmp_path, 1) as third:
        (tmp_path / f"summary_{third.pid}.db").touch()
        assert told()[errors] == 9
        assert told()[in_flight] == 5
    assert not list(tmp_path.glob(f"*_{first.pid}.db"))


def test_a_folder_whose_owner_was_killed_goes_with_the_next_once_no_process_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], env={"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        owner.kill()
        owner.wait()
        with held_folder() as (folder, _):
            assert {left, folder} == set(tmp_path.iterdir())  # what it had started still counts there
        assert owner.stdin is not None
        owner.stdin.close()

    def removed() -> bool:
        with held_folder():
            return not left.exists()

    wait_until(removed, why="its process has ended")
    assert not list(tmp_path.iterdir())
