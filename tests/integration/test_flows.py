"""Flows on a real database and broker: parents run when their children have finished, whatever crashes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jobbing import Desk
from working import wait_until

from pipeline import Context, Job, Pipeline, jobs
from pipeline.errors import ConfigError, JobError
from pipeline.flow import Flow, batch, chain
from pipeline.retry import RetryPolicy


class Step(Job, queue="steps", format="json"):
    name: str
    fails: bool = False


@pytest.fixture
def app(prefix: str) -> Pipeline:
    app = Pipeline(prefix, topic_prefix="", partitions=2)

    @app.job(Step, retry=RetryPolicy(attempts=1))
    def step(job: Step, ctx: Context) -> None:
        if job.fails:
            raise ValueError("as asked")
        ctx.result([job.name, *(child.result for child in ctx.children())])

    return app


def put(desk: Desk, flow: Flow) -> str:
    with psycopg.connect(desk.database.dsn) as conn:
        return str(desk.app.enqueue_flow(conn, flow))


def state(desk: Desk, job_id: str) -> tuple[str, Any]:
    with psycopg.connect(desk.database.dsn) as conn:
        row = conn.execute("SELECT state, result FROM pipeline.job WHERE id = %s", (job_id,)).fetchone()
    assert row is not None
    return row[0], row[1]


def until(desk: Desk, job_id: str, wanted: str) -> Any:
    wait_until(lambda: state(desk, job_id)[0] == wanted, why=f"{job_id} is {wanted}")
    return state(desk, job_id)[1]


def test_parents_run_after_their_children_with_their_results_in_order(desk: Desk) -> None:
    inner = Flow(Step(name="inner"), [Step(name=f"leaf{n}") for n in range(5)])
    root = put(desk, Flow(Step(name="root"), [Step(name="first"), inner, Step(name="last")]))
    assert state(desk, root)[0] == "blocked"
    with desk.carried(), desk.working():
        found = until(desk, root, "done")
    assert found == ["root", ["first"], ["inner", ["leaf0"], ["leaf1"], ["leaf2"], ["leaf3"], ["leaf4"]], ["last"]]


def test_a_chain_runs_one_after_another(desk: Desk) -> None:
    last = put(desk, chain(*(Step(name=name) for name in "abcd")))
    with desk.carried(), desk.working():
        assert until(desk, last, "done") == ["d", ["c", ["b", ["a"]]]]


def test_failure_rules(desk: Desk) -> None:
    children = [Step(name="good"), Step(name="bad", fails=True)]
    failing = put(desk, Flow(Step(name="top"), [Flow(Step(name="fail"), children)]))
    ignoring = put(desk, batch(children, Step(name="ignore")))
    going_on = put(
        desk, Flow(Step(name="continue"), [Flow(Step(name="never"), [Step(name="x")]), *children], "continue")
    )
    with desk.carried(), desk.working():
        until(desk, failing, "dead")  # through two levels
        assert until(desk, ignoring, "done") == ["ignore", ["good"], None]
        assert "continue" in until(desk, going_on, "done")
    row = psycopg.connect(desk.database.dsn, autocommit=True)
    assert row.execute("SELECT error FROM pipeline.job WHERE id = %s", (failing,)).fetchone() == ("ChildFailed",)
    assert row.execute("SELECT count(*) FROM pipeline.due WHERE id = %s", (failing,)).fetchone() == (0,)
    with row.transaction(), pytest.raises(JobError, match="never began") as refused:
        desk.app.run(row, jobs.retry(failing))
    assert "enqueue the flow anew" in (refused.value.remedy or "")
    row.close()


def test_a_cancelled_child_is_a_failed_one(desk: Desk) -> None:
    root = put(desk, Flow(Step(name="root"), [Flow(Step(name="mid"), [Step(name="leaf")])]))
    mid = desk.conn.execute("SELECT id FROM pipeline.job WHERE parent = %s", (root,)).fetchone()
    assert mid is not None
    desk.conn.execute("SELECT * FROM pipeline.cancel_jobs(ARRAY[%s])", (mid["id"],))
    assert state(desk, root)[0] == "dead"


def test_cycles_and_options_that_do_not_fit_are_refused(desk: Desk, app: Pipeline) -> None:
    children: list[Any] = [Step(name="leaf")]
    root = Flow(Step(name="root"), children)
    children.append(Flow(Step(name="mid"), [root]))
    with pytest.raises(ConfigError, match="its own child"):
        put(desk, root)
    with psycopg.connect(desk.database.dsn) as conn, pytest.raises(ConfigError, match="neither delayed"):
        app.enqueue_flow(conn, Flow(Step(name="root"), [Step(name="leaf")]), delay_s=5)
    with pytest.raises(ConfigError, match="on_failure"):
        put(desk, Flow(Step(name="r"), [Step(name="c")], "sometimes"))  # type: ignore[arg-type]
    assert desk.states() == {}


def test_many_workers_finish_children_at_once_and_the_parent_runs_once(desk: Desk) -> None:
    flows = [put(desk, batch([Step(name=str(n)) for n in range(20)], Step(name=f"p{flow}"))) for flow in range(10)]
    with desk.carried(), desk.working(), desk.working():
        for flow in flows:
            assert len(until(desk, flow, "done")) == 21
    parents = desk.conn.execute(
        "SELECT count(*) AS n, count(DISTINCT id) AS ids FROM pipeline.outbox WHERE payload::text LIKE '%%'"
    ).fetchone()
    assert parents == {"n": 210, "ids": 210}


WORKER = """
import time
from pipeline import Context, Job, Pipeline, RetryPolicy
app = Pipeline({prefix!r}, topic_prefix="", partitions=2)

class Step(Job, queue="steps", format="json"):
    name: str
    fails: bool = False

@app.job(Step, retry=RetryPolicy(attempts=1))
def step(job: Step, ctx: Context) -> None:
    time.sleep(0.3)
    ctx.result([job.name, *(child.result for child in ctx.children())])
"""


def test_workers_and_schedulers_killed_in_the_middle_of_flows_leave_none_stuck(
    desk: Desk, prefix: str, tmp_path: Path, endpoints: Any, cli_environment: dict[str, str]
) -> None:
    (tmp_path / "steps.py").write_text(WORKER.format(prefix=prefix))
    commands: list[list[str]] = [
        ["consumer", "run", "steps:app", "--log-level", "error"],
        ["consumer", "run", "steps:app", "--log-level", "error"],
        ["scheduler", "run", "steps:app", "--log-level", "error"],
    ]

    def start(words: list[str]) -> subprocess.Popen[bytes]:
        kafka = ["-X", "session.timeout.ms=6000"] if words[0] == "consumer" else []
        return subprocess.Popen([sys.executable, "-m", "pipeline", *words, *kafka], cwd=tmp_path, env=cli_environment)

    flows = [put(desk, chain(*(Step(name=f"{flow}.{n}") for n in range(3)))) for flow in range(10)]
    flows += [put(desk, batch([Step(name=str(n)) for n in range(30)], Step(name="then"))) for _ in range(30)]
    stop, chance = threading.Event(), random.Random(5)
    carrier = threading.Thread(target=lambda: [desk.carry() or time.sleep(0.02) for _ in iter(stop.is_set, True)])
    carrier.start()
    processes = [start(words) for words in commands]
    killed_busy = 0
    try:
        for _ in range(6):
            before = desk.states().get("done", 0)
            wait_until(lambda before=before: desk.states().get("done", 0) >= before + 60, why="jobs are done")
            number = chance.randrange(3)
            os.kill(processes[number].pid, signal.SIGKILL)
            processes[number].wait()
            processes[number] = start(commands[number])
            killed_busy += bool({"waiting", "running", "blocked"} & set(desk.states()))
        for flow in flows:
            wait_until(lambda flow=flow: state(desk, flow)[0] == "done", why=lambda flow=flow: state(desk, flow))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        stop.set()
        carrier.join()
    assert killed_busy >= 3
    assert desk.states() == {"done": 10 * 3 + 30 * 31}
    rows = desk.conn.execute("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM pipeline.outbox").fetchone()
    assert rows == {"n": 960, "ids": 960}  # each parent left once
