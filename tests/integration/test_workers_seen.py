"""``pipeline consumer workers``: what people see of workers, on the real broker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import CommandLine
from servers import Topics, environment
from waiting import DEADLINE_S, wait_until
from working import Broker

from pipeline import Context, Event, Job, Pipeline
from pipeline.beat import Beat
from pipeline.config import Settings
from pipeline.local import Endpoints
from pipeline.runtime.topics import apply_topics, plan_topics
from pipeline.runtime.worker import run_worker
from pipeline.runtime.workers import crew

APP = """
import time
from pipeline import Event, Pipeline

app = Pipeline("shop", topic_prefix="PREFIX.", partitions=1)

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str

@app.consumer(Placed, group="billing")
def bill(event, ctx):
    time.sleep(600)

@app.consumer(Placed, group="idle")
def idle(event, ctx): ...
"""
QUICK = ("--heartbeat", "0.3", "-X", "group.protocol=classic", "-X", "session.timeout.ms=6000")


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


class Work(Job, queue="work", format="json", track=False):
    n: int


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(pipeline: CommandLine, cli_environment: dict[str, str], prefix: str, tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "seen.py").write_text(APP.replace("PREFIX", prefix))
    assert pipeline("topics", "apply", "seen:app").code == 0
    with ExitStack() as started:

        def begin(*words: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "consumer", "run", "seen:app", *QUICK, *words],
                cwd=tmp_path,
                env=cli_environment,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield begin


class Watched:
    """What the command says."""

    def __init__(self, pipeline: CommandLine) -> None:
        self._pipeline = pipeline

    def look(self, *words: str) -> tuple[int, dict[int, dict[str, Any]]]:
        """Return the exit code and the rows by process."""
        found = self._pipeline("consumer", "workers", "seen:app", *words, "-o", "json")
        return found.code, {row["pid"]: row for row in json.loads(found.stdout)}

    def await_states(self, states: dict[int, str]) -> int:
        """Wait until these and no others stand so; return the exit code."""
        said: list[object] = []

        def there() -> bool:
            said[:] = self.look()
            return {pid: row["state"] for pid, row in said[1].items()} == states  # type: ignore[attr-defined]

        wait_until(there, why=lambda: f"{states}, but {said}")
        return int(said[0])  # type: ignore[call-overload]


def test_a_worker_is_seen_with_its_job_silent_when_killed_and_gone_when_it_drained(
    start: Start, pipeline: CommandLine, broker: Broker, prefix: str
) -> None:
    watched = Watched(pipeline)
    killed, drained = start("--group", "billing"), start("--group", "idle")
    assert watched.await_states({killed.pid: "ready", drained.pid: "ready"}) == 0
    broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": "42"}, key="k-42", event_id="e-42")
    broker.flush()

    def billing() -> dict[str, Any]:
        [group] = watched.look()[1][killed.pid]["groups"]
        return dict(group)

    wait_until(lambda: billing()["running"], why="the job is seen")
    assert billing()["group"] == f"{prefix}.shop.billing"
    [job] = json.loads(pipeline("consumer", "workers", "--jobs", "seen:app", "-o", "json").stdout)
    assert (job["id"], job["type"], job["attempt"]) == ("e-42", "Placed", 1)
    assert job["age_s"] >= 0

    killed.kill()
    drained.terminate()
    assert drained.wait(DEADLINE_S) == 0
    assert watched.await_states({killed.pid: "silent"}) == 2
    found = pipeline("consumer", "workers", "seen:app")
    assert f"groups without a worker: {prefix}.shop.billing, {prefix}.shop.idle" in found.stderr
    assert f"{prefix}.shop.billing" in found.stdout
    assert watched.look("--within", "1s") == (2, {})  # of the groups


def test_each_of_several_processes_has_its_own_and_who_comes_for_a_killed_one_replaces_it(
    start: Start, pipeline: CommandLine
) -> None:
    watched = Watched(pipeline)
    supervisor = start("--processes", "2")

    def members() -> dict[int, int]:
        rows = watched.look()[1]
        assert all(row["supervisor"] == supervisor.pid for row in rows.values())
        return {row["number"]: pid for pid, row in rows.items()}

    before = wait_until(lambda: found if len(found := members()) == 2 else None, why="both are seen")
    subprocess.run(["kill", "-9", str(before[1])], check=True)
    after = wait_until(lambda: found if (found := members()).get(1) not in {None, before[1]} else None, why="another")
    assert after == {1: after[1], 2: before[2]}
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    assert watched.await_states({}) == 2  # nobody works on the groups


@contextmanager
def working(app: Pipeline, **options: Any) -> Iterator[None]:
    """``run_worker`` in a thread of the test's process, which drains at the end."""
    until = threading.Event()
    ended: list[bool] = []

    def run() -> None:
        ended.append(run_worker(app, settings=Settings.load(), until=until, heartbeat_s=0.3, **options))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join(DEADLINE_S)
    assert ended == [True]


@pytest.fixture
def settings(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(endpoints).items():
        if name.startswith("PIPELINE_"):
            monkeypatch.setenv(name, value)
    return Settings.load()


def test_a_worker_whose_heartbeats_have_no_topic_says_so_once_and_works(
    settings: Settings, broker: Broker, topics: Topics, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline.worker")
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=1)
    handled = threading.Event()

    @app.consumer(Placed, group="billing")
    def bill(_event: Placed, _ctx: Context) -> None:
        handled.set()

    broker.create(app)
    topics.delete([app.names.workers])
    wait_until(lambda: app.names.workers not in topics.names(prefix))

    def said(action: str) -> list[Any]:
        return [one for one in caplog.records if getattr(one, "action", "") == action]

    with working(app, options={"group.protocol": "classic"}):
        broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": "1"}, key="1")
        broker.flush()
        assert handled.wait(DEADLINE_S)
        [lost] = wait_until(lambda: said("worker.beats"))
        assert app.names.workers in lost.why
        assert app.names.workers not in topics.names(prefix)  # nor made by the broker
        made = [change.topic for change in apply_topics(app, settings) if change.action == "create"]
        assert made == [app.names.workers]
        wait_until(lambda: said("worker.beats_back"))
        assert len(said("worker.beats")) == 1
    wait_until(lambda: not any(change.open for change in plan_topics(app, settings)), why="as it was declared")


def test_a_member_of_a_share_group_is_one_worker_of_its_queue(settings: Settings, broker: Broker, prefix: str) -> None:
    app = Pipeline(prefix, topic_prefix="", partitions=1)

    @app.job(Work, timeout_s=10)
    def work(_job: Work, _ctx: Context) -> None: ...

    broker.create(app)

    def seen() -> list[Beat]:
        return [one.beat for one in crew(settings, app, within_s=60).workers]

    with working(app, mode="share", options={"group.protocol": "classic"}):
        for n in range(3):
            broker.put(f"{prefix}.jobs.work", "Work", {"n": n}, event_id=f"e{n}")
        broker.flush()
        [beat] = wait_until(lambda: [one for one in seen() if one.groups[0].handled == 3], why="3 handled")
        assert beat.worker.mode == "share"
        assert [group.group for group in beat.groups] == [f"{prefix}.jobs.work"]
    assert seen() == []  # gone
