"""``pipeline consumer run --processes``: one supervisor, its workers, one set of metrics and probes."""

from __future__ import annotations

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
from servers import environment
from waiting import DEADLINE_S, wait_until
from working import Broker, members

from pipeline import Event, Job, Pipeline, RetryPolicy
from pipeline.local import Endpoints

QUICK = ("-X", "heartbeat.interval.ms=300")


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
                sys.stdout.write(line)  # shown where the test fails

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{re.escape(name)} ([0-9.e+-]+)$", self.get("/metrics")[1], re.MULTILINE)
        assert len(found) <= 1
        return float(found[0]) if found else 0.0

    def count(self, action: str) -> int:
        return sum(f'"action": "{action}"' in line for line in self.said)

    @property
    def workers(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    @property
    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def end(self, code: int) -> str:
        assert self.process.wait(DEADLINE_S) == code, "".join(self.said)
        self._reader.join(DEADLINE_S)
        return "".join(self.said)


@pytest.fixture
def start(endpoints: Endpoints, broker: Broker, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=4)
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    app.job(Crunch, retry=RetryPolicy(attempts=1))(lambda job, ctx: None)
    broker.create(app)
    env = {
        **environment(endpoints),
        "SEVERAL_PREFIX": f"{prefix}.",
        "SEVERAL_DIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    with ExitStack() as started:

        def begin(*words: str) -> Run:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "consumer", "run", "several:app", "--metrics-port", "0", *words],
                cwd=Path(__file__).parent,
                env=env,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return Run(process)

        yield begin


def put(broker: Broker, prefix: str, count: int, what: str = "quick") -> None:
    for n in range(count):
        broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": str(n), "what": what}, key=str(n))
    broker.flush()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_several_workers_are_one_and_a_crashed_one_comes_back_to_its_own_partitions(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--processes", "2", "--group", "billing", "--instance-id", "host", *QUICK)
    group, topic = f"{prefix}.shop.billing", f"{prefix}.outbox.event.order"
    done = f'pipeline_records_total{{group="{group}",outcome="done"}}'
    balanced = lambda: {"host-1", "host-2"} == {one for one, has in members(broker, group).items() if has}  # noqa: E731
    wait_until(lambda: balanced() and run.ready, why="both are ready")
    put(broker, prefix, 40)
    wait_until(lambda: run.metric(done) == 40, why="all are counted")
    assert len({path.name for path in tmp_path.glob("begun-*")}) == 2
    assert run.metric("several_own_total") == 40
    assert run.metric("pipeline_worker_processes") == 2
    assert run.metric('pipeline_ready{role="worker"}') == 1
    for number in (1, 2):
        assert run.metric(f'pipeline_worker_memory_bytes{{process="{number}"}}') > 20_000_000
        assert run.metric(f'pipeline_worker_cpu_seconds_total{{process="{number}"}}') > 0.1
    assert run.get("/metrics")[1].count("# TYPE pipeline_in_flight_records gauge") == 1
    rebalances, cpu_s = run.count("worker.assigned"), run.metric('pipeline_worker_cpu_seconds_total{process="1"}')

    victim = run.workers[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not run.ready, why="one is missing")
    assert run.get("/healthz")[0] == 200
    assert run.metric(done) == 40  # what it had counted is not forgotten
    assert run.metric('pipeline_worker_cpu_seconds_total{process="1"}') >= cpu_s
    wait_until(lambda: run.ready and victim not in run.workers, why="another is in its place")
    assert any("was ended by SIGKILL" in line and '"again_in_s": 1' in line for line in run.said)
    assert run.metric("pipeline_worker_restarts_total") == 1
    put(broker, prefix, 40)
    wait_until(lambda: run.metric(done) >= 80, why="all are handled")
    wait_until(lambda: broker.committed(group, topic) == 80)
    assert run.count("worker.assigned") == rebalances + 1  # its own; the other one was not asked to move

    workers = run.workers
    run.process.terminate()
    run.end(0)
    assert not any(map(alive, workers))
    assert run.count("worker.stopped") == 2
    assert set(members(broker, group)) == {"host-1", "host-2"}  # until the session times out, for who comes again


def test_each_of_them_drains_and_a_second_signal_ends_all_at_once(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--processes", "2", "--group", "billing", "--drain-timeout", "50", *QUICK)
    wait_until(lambda: run.ready)
    put(broker, prefix, 8, what="slow")
    wait_until(lambda: list(tmp_path.glob("begun-*")), why="handlers run")
    workers = run.workers
    run.process.terminate()
    wait_until(lambda: run.count("worker.draining") == 2)
    wait_until(lambda: not run.ready)
    run.process.terminate()
    run.end(2)
    assert not any(map(alive, workers))


def test_workers_drain_when_their_supervisor_is_killed(start: Callable[..., Run], broker: Broker, prefix: str) -> None:
    run = start("--processes", "2", "--group", "billing", *QUICK)
    wait_until(lambda: run.ready)
    workers = run.workers
    run.process.kill()
    wait_until(lambda: not any(map(alive, workers)), why="they ended")
    wait_until(lambda: run.count("worker.stopped") == 2)
    assert not members(broker, f"{prefix}.shop.billing")


def test_what_no_worker_can_go_on_from_ends_all_and_says_why(start: Callable[..., Run]) -> None:
    unknown = start("--processes", "2", "--group", "shipping")
    assert re.search(r"error: process \d: no handlers for .*\n.* groups are: ", unknown.end(1))


def test_what_handlers_count_in_processes_of_their_own_is_shown_too(
    start: Callable[..., Run], broker: Broker, prefix: str, tmp_path: Path
) -> None:
    run = start("--queue", "crunch", "--group", "billing", "--concurrency", "2")
    for n in range(20):
        broker.put(f"{prefix}.shop.jobs.crunch", "Crunch", {"n": n}, key=str(n), event_id=f"e{n}")
    put(broker, prefix, 5)
    wait_until(lambda: run.metric("several_own_total") == 25, why="all are counted")
    for group, count in (("jobs.crunch", 20), ("billing", 5)):
        done = f'pipeline_records_total{{group="{prefix}.shop.{group}",outcome="done"}}'
        wait_until(lambda done=done, count=count: run.metric(done) == count)
    run.process.terminate()
    run.end(0)
