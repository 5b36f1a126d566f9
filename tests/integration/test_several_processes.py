"""``pipeline consumer run --processes``: one supervisor, its workers, one set of metrics and probes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from working import Broker, wait_until

from pipeline import Event, Job, Pipeline
from pipeline.local import Endpoints


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    what: str


class Crunch(Job, queue="crunch", format="json", track=False):
    n: int


class Run:
    """The command, and what its supervisor serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        assert process.stderr is not None
        self.port = ""
        for line in process.stderr:
            self.said.append(line)
            if found := re.search(r"probes on port (\d+)", line):
                self.port = found[1]
                break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError):  # closed at the end of a test that failed
            for line in self.process.stderr:
                self.said.append(line)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{re.escape(name)} ([0-9.e+]+)$", self.get("/metrics")[1], re.MULTILINE)
        assert len(found) <= 1
        return float(found[0]) if found else 0.0

    @property
    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    @property
    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def end(self, code: int, deadline_s: float = 40) -> str:
        assert self.process.wait(deadline_s) == code, "".join(self.said)
        self._reader.join(10)
        return "".join(self.said)


@pytest.fixture
def broker(endpoints: Endpoints) -> Broker:
    return Broker(endpoints.kafka)


@pytest.fixture
def start(cli_environment: dict[str, str], broker: Broker, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=4)
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    app.job(Crunch)(lambda job, ctx: None)
    broker.create(app)
    env = {**cli_environment, "SEVERAL_PREFIX": f"{prefix}.", "SEVERAL_DIR": str(tmp_path)}
    with ExitStack() as started:

        def begin(*words: str, **more: str) -> Run:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "consumer", "run", "several:app", "--metrics-port", "0", *words],
                cwd=Path(__file__).parent,
                env=env | more,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return Run(process)

        yield begin


def put(broker: Broker, prefix: str, count: int, what: str = "quick", begin: int = 0) -> None:
    for n in range(begin, begin + count):
        broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": str(n), "what": what}, key=str(n))
    broker.flush()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_several_workers_are_one_in_metrics_and_probes_and_a_crashed_one_comes_back(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--processes", "2", "--group", "billing", "-X", "session.timeout.ms=6000")
    wait_until(lambda: run.ready, 40, "both are ready")
    group = f"{prefix}.shop.billing"
    done = f'pipeline_records_total{{group="{group}",outcome="done"}}'
    both = lambda: len({path.name for path in tmp_path.glob("begun-*")}) == 2  # noqa: E731
    count = 0
    while not both():  # a rebalance can take a moment until each has its share
        put(broker, prefix, 40, begin=count)
        count += 40
        wait_until(lambda count=count: run.metric(done) == count, 30, "all are counted")
    assert run.metric("several_own_total") == count
    assert run.metric("pipeline_worker_processes") == 2
    assert run.metric('pipeline_ready{role="worker"}') == 1
    assert run.get("/metrics")[1].count("# TYPE pipeline_in_flight_records gauge") == 1

    victim = run.workers[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not run.ready, 10, "one is missing")
    state = json.loads(run.get("/readyz")[1])
    assert any("ended by SIGKILL: again in 1 s" in why for why in state["reasons"].values()) or state["ready"]
    assert run.get("/healthz")[0] == 200
    assert run.metric(done) == count  # what it had counted is not forgotten
    wait_until(lambda: run.ready and victim not in run.workers, 40, "another is in its place")
    assert run.metric("pipeline_worker_restarts_total") == 1
    put(broker, prefix, 40, begin=count)
    wait_until(lambda: run.metric(done) >= count + 40, 60, "all are handled")
    wait_until(lambda: broker.committed(group, f"{prefix}.outbox.event.order") == count + 40, 30)

    workers = run.workers
    run.process.terminate()
    run.end(0)
    assert not any(map(alive, workers))


def test_each_of_them_drains_and_a_second_signal_ends_all_at_once(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--processes", "2", "--group", "billing", "--drain-timeout", "50")
    wait_until(lambda: run.ready, 40)
    put(broker, prefix, 8, what="slow")
    wait_until(lambda: list(tmp_path.glob("begun-*")), 30, "handlers run")
    workers = run.workers
    run.process.terminate()
    wait_until(lambda: any("draining" in line for line in run.said), 10)
    run.process.terminate()
    run.end(2, 20)
    assert not any(map(alive, workers))


def test_workers_drain_when_their_supervisor_is_killed(start: Callable[..., Run], broker: Broker, prefix: str) -> None:
    run = start("--processes", "2", "--group", "billing")
    wait_until(lambda: run.ready, 40)
    workers = run.workers
    run.process.kill()
    wait_until(lambda: not any(map(alive, workers)), 60, "they ended")
    put(broker, prefix, 4)
    run = start("--group", "billing")
    wait_until(lambda: run.metric(f'pipeline_records_total{{group="{prefix}.shop.billing",outcome="done"}}') == 4, 30)
    assert not any("uncleanly" in line for line in run.said)
    run.process.terminate()
    run.end(0)


def test_what_no_worker_can_go_on_from_ends_all_and_says_why(
    start: Callable[..., Run], broker: Broker, prefix: str
) -> None:
    failed = start("--processes", "2", "--group", "billing", SEVERAL_FAILS="1")
    assert "this module cannot be imported" in failed.end(1).splitlines()[-1]
    unknown = start("--processes", "2", "--group", "shipping")
    assert "no handlers for" in unknown.end(1)
    broker.delete(f"{prefix}.shop.billing.retry.0s")
    missing = start("--processes", "2", "--group", "billing")
    assert re.search(r"error: process \d: group .* no such topic: .*retry.0s\n.*pipeline topics apply", missing.end(1))


def test_what_handlers_count_in_processes_of_their_own_is_shown_too(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--queue", "crunch", "--concurrency", "2")
    for n in range(20):
        broker.put(f"{prefix}.shop.jobs.crunch", "Crunch", {"n": n}, key=str(n), event_id=f"e{n}")
    broker.flush()
    wait_until(lambda: run.metric("several_own_total") == 20, 40, "all are counted")
    done = f'pipeline_records_total{{group="{prefix}.shop.jobs.crunch",outcome="done"}}'
    wait_until(lambda: run.metric(done) == 20, 10)
    run.process.terminate()
    run.end(0)


def test_without_processes_what_handlers_count_is_shown_beside_the_catalogue(
    start: Callable[..., Run], broker: Broker, prefix: str
) -> None:
    run = start("--group", "billing")
    put(broker, prefix, 5)
    wait_until(lambda: run.metric("several_own_total") == 5, 40)
    assert "process_cpu_seconds_total" in run.get("/metrics")[1]
    run.process.terminate()
    run.end(0)
