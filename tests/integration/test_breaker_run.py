"""A handler's breaker on the real broker: on threads, on an event loop, before processes; what can be seen of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from working import Broker, running, wait_until

from pipeline import Breaker, Context, Event, Pipeline, RetryPolicy
from pipeline.worker import Limits


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


class Down(Exception):
    pass


POLICY = RetryPolicy(attempts=2, first_s=0.1, factor=1, cap_s=1, jitter=0, uncounted=(Down,))
BREAKER = Breaker(threshold=3, cool_down_s=0.5, factor=1)


@pytest.mark.parametrize("awaits", [False, True])
def test_it_opens_pauses_the_partitions_is_seen_and_closes_with_every_key_in_order(
    broker: Broker, prefix: str, awaits: bool
) -> None:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=3)
    up = threading.Event()
    calls: list[float] = []
    seen: defaultdict[str, list[int]] = defaultdict(list)

    def bill(event: Placed, ctx: Context) -> None:
        calls.append(time.monotonic())
        if not up.is_set():
            raise Down
        assert ctx.attempt == 1
        seen[event.order_id].append(event.n)

    async def abill(event: Placed, ctx: Context) -> None:
        bill(event, ctx)

    app.consumer(Placed, group="billing", retry=POLICY, breaker=BREAKER)(abill if awaits else bill)
    (group,) = app.groups.values()
    broker.create(app)
    for n in range(1_000):
        broker.put(group.topics[0], "Placed", {"order_id": f"k{n % 50}", "n": n}, key=f"k{n % 50}")
    broker.flush()
    with running(broker, group, limits=Limits(concurrency=4, drain_s=10)) as worker:
        paused = ("pipeline_paused_partitions", group.name, "breaker")
        wait_until(lambda: worker.meter.values[paused] == 6, why="all partitions paused, retries too")
        opened = ("pipeline_breaker_opened_total", group.name, "Placed")
        before = len(calls) - worker.meter.values[opened]
        wait_until(lambda: worker.meter.values[opened] >= 3)
        assert len(calls) - worker.meter.values[opened] < before + 12  # a probe at a time, and each opens it again
        assert worker.meter.values["pipeline_breaker_waiting_records", group.name, "Placed"] > 0
        state: dict[str, Any] = worker.health.state()
        assert state["ready"]
        assert state["notes"][f"{group.name} Placed"].startswith("breaker ")
        up.set()
        wait_until(lambda: broker.committed(group.name, group.topics[0]) == 1_000, why="all handled")
        assert worker.health.state()["notes"] == {}
        wait_until(lambda: worker.meter.values["pipeline_breaker_state", group.name, "Placed"] == 0)
        assert worker.meter.values[paused] == 0
    assert {key: list(range(int(key[1:]), 1_000, 50)) for key in seen} == dict(seen)
    assert len(seen) == 50


def test_a_drain_hands_back_what_waits_for_a_breaker_and_the_next_worker_goes_on(broker: Broker, prefix: str) -> None:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=3)
    up = threading.Event()
    done: list[int] = []

    @app.consumer(Placed, group="billing", retry=POLICY, breaker=Breaker(threshold=2, cool_down_s=300))
    def bill(event: Placed, ctx: Context) -> None:
        if not up.is_set():
            raise Down
        done.append(event.n)

    (group,) = app.groups.values()
    broker.create(app)
    for n in range(100):
        broker.put(group.topics[0], "Placed", {"order_id": str(n), "n": n}, key=str(n))
    broker.flush()
    with running(broker, group) as worker:
        wait_until(lambda: worker.health.state()["notes"], why="it opens")
        worker.stop()
        assert worker.clean
    up.set()
    with running(broker, group):
        wait_until(lambda: broker.committed(group.name, group.topics[0]) == 100, why="all handled")
    assert sorted(done) == list(range(100))


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> Pipeline:
    monkeypatch.setenv("PROCESS_TEST_DIR", str(tmp_path))
    monkeypatch.setenv("PROCESS_TEST_PREFIX", f"{prefix}.")
    sys.modules.pop("fragile", None)
    found: Pipeline = importlib.import_module("fragile").app
    return found


def test_handlers_in_processes_wait_for_it_too_and_readyz_and_metrics_tell(
    broker: Broker, fragile: Pipeline, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    (group,) = fragile.groups.values()
    broker.create(fragile)
    for n in range(60):
        broker.put(group.topics[0], "Fetch", {"n": n}, key=str(n), event_id=f"e{n}")
    broker.flush()
    with worker_of("fragile:app", cli_environment) as get:
        wait_until(lambda: f'breaker_state{{group="{group.name}",type="Fetch"}} 2.0' in get("/metrics")[1])

        def told() -> str:
            code, text = get("/readyz")
            assert code == 200
            # a supervisor tells it, a moment after the metric
            return str(json.loads(text)["notes"].get(f"process 1 {group.name} Fetch"))

        # half open, too, while a record is tried
        wait_until(lambda: told() == "breaker open after fragile.Down: tried again every 1 s or later")
        assert get("/healthz")[0] == 200
        begun = len((tmp_path / "calls").read_text().splitlines())
        assert begun < 30
        (tmp_path / "up").touch()
        done = tmp_path / "done"
        wait_until(lambda: done.exists() and len(done.read_text().splitlines()) == 60, why="all handled")
    assert {line.split()[1] for line in done.read_text().splitlines()} == {"1"}


@contextmanager
def worker_of(app: str, env: dict[str, str]) -> Iterator[Any]:
    import re
    import urllib.error
    import urllib.request

    words = [sys.executable, "-m", "pipeline", "consumer", "run", app, "--metrics-port", "0", "--concurrency", "4"]
    with subprocess.Popen(
        words, cwd=Path(__file__).parent, env={**env, **_ours()}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            found = next(match for line in process.stderr if (match := re.search(r"port (\d+)", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()

            def get(path: str) -> tuple[int, str]:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=60) as answer:
                        return answer.status, answer.read().decode()
                except urllib.error.HTTPError as error:
                    return error.code, error.read().decode()

            yield get
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def _ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PROCESS_TEST_")}
