"""``pipeline consumer`` as a person runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from servers import Database
from working import Broker, wait_until

from pipeline.local import Endpoints

APP = """
import os, sys, time
from pipeline import Event, Job, Pipeline, Reject

app = Pipeline("cli", topic_prefix="PREFIX.", partitions=2)

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str

class Mail(Job, queue="email", format="json"):
    n: int

@app.lifespan
def pool():
    print("pool opened", flush=True)
    yield {"pool": "a pool"}
    print("pool closed", flush=True)

@app.lifespan
async def client():
    print("client opened", flush=True)
    yield {"client": "a client"}
    print("client closed", flush=True)

@app.consumer(Placed, group="billing")
def bill(event, ctx):
    assert ctx.state.pool == "a pool"
    if event.order_id == "slow":
        print("begun", flush=True)
        time.sleep(600)

@app.job(Mail)
async def send(job, ctx):
    if job.n == 7:
        print(ctx.state.pool, ctx.state.client, flush=True)
        return
    raise ValueError("later")
"""

STOPPED = """
import os, time
from pipeline import Event, Job, Pipeline

app = Pipeline("cli", topic_prefix="PREFIX.", partitions=1)

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str

class Mail(Job, queue="email", format="json"):
    n: int

def hold(what):
    os.write(1, f"{what}\\n".encode())  # whole, whoever else writes
    while not os.path.exists("go"):
        time.sleep(0.01)

@app.consumer(Placed, group="billing", inbox=True)
def bill(event, ctx):
    hold("bill")
    ctx.conn.execute("SELECT 1")

@app.consumer(Placed, group="booking", inbox=True)
async def book(event, ctx):
    hold("book")
    await ctx.conn.execute("SELECT 1")

@app.job(Mail)
def send(job, ctx):
    hold("send")
"""

Cli = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def cli(cli_environment: dict[str, str], prefix: str, tmp_path: Path) -> Iterator[Cli]:
    (tmp_path / "shopcli.py").write_text(APP.replace("PREFIX", prefix))
    with ExitStack() as started:

        def start(*words: str, **env: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *words],
                cwd=tmp_path,
                env=cli_environment | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)  # comes first: a test that failed leaves none behind
            return process

        yield start


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


def test_run_drains_at_sigterm_and_lag_shows_what_is_left(
    cli: Cli, endpoints: Endpoints, prefix: str, tmp_path: Path
) -> None:
    broker = Broker(endpoints.kafka)
    ended(cli("topics", "apply", "shopcli:app"), 0)
    for n in range(5):
        broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": str(n)}, key=str(n))
    broker.put(f"{prefix}.cli.jobs.email", "Mail", {"n": 1}, key="1")
    broker.flush()

    before = json.loads(ended(cli("consumer", "lag", "shopcli:app", "--group", "billing", "-o", "json"), 0)[0])
    assert sum(row["lag"] for row in before) == 5
    assert {row["committed"] for row in before} == {None}

    worker = cli("consumer", "run", "shopcli:app", "--metrics-port", "0", "-X", "session.timeout.ms=6000")
    assert worker.stderr is not None
    port = re.search(r"port (\d+)", worker.stderr.readline())
    assert port is not None
    wait_until(lambda: get(port[1], "/readyz")[0] == 200)
    group = f"{prefix}.cli.billing"
    wait_until(lambda: broker.committed(group, f"{prefix}.outbox.event.order") == 5)
    wait_until(lambda: f'pipeline_records_total{{group="{group}",outcome="done"}} 5.0' in get(port[1], "/metrics")[1])
    wait_until(lambda: broker.count(f"{prefix}.cli.jobs.email.retry.5s") == 1)
    worker.send_signal(signal.SIGTERM)
    _, err = ended(worker, 0)
    assert all(json.loads(line)["action"] for line in err.splitlines() if line.startswith("{"))

    after = {
        (row["topic"].removeprefix(f"{prefix}."), row["lag"])
        for row in json.loads(ended(cli("consumer", "lag", "shopcli:app", "-o", "json"), 0)[0])
        if row["lag"]
    }
    assert after in ({("cli.jobs.email.retry.5s", 1)}, {("cli.jobs.email.retry.20s", 1)})
    table = ended(cli("consumer", "lag", "--group", group), 0)[0]
    assert "lag_s" in table


def test_a_drain_that_does_not_end_in_time_is_exit_code_2(cli: Cli, endpoints: Endpoints, prefix: str) -> None:
    broker = Broker(endpoints.kafka)
    ended(cli("topics", "apply", "shopcli:app"), 0)
    broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": "slow"}, key="slow")
    broker.flush()
    for signals, drain in ((1, "0.5"), (2, "600")):  # the second signal ends the drain
        worker = cli("consumer", "run", "shopcli:app", "--group", "billing", "--drain-timeout", drain)
        assert worker.stdout is not None
        assert worker.stderr is not None
        assert "begun\n" in iter(worker.stdout.readline, "")
        worker.send_signal(signal.SIGTERM)
        if signals == 2:
            assert any("worker.draining" in line for line in worker.stderr)
            worker.send_signal(signal.SIGTERM)
        ended(worker, 2)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_database_that_hangs_does_not_keep_a_worker_from_ending_within_its_drain_timeout(
    cli: Cli, endpoints: Endpoints, prefix: str, tmp_path: Path, database: Database, signals: int
) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED.replace("PREFIX", prefix))
    broker = Broker(endpoints.kafka)
    ended(cli("topics", "apply", "stopped:app"), 0)
    broker.put(f"{prefix}.outbox.event.order", "Placed", {"order_id": "1"}, key="1")
    broker.put(f"{prefix}.cli.jobs.email", "Mail", {"n": 1}, key="1", event_id=str(uuid.uuid4()))
    broker.flush()
    worker = cli("consumer", "run", "stopped:app", "--drain-timeout", "1" if signals == 1 else "600")
    assert worker.stdout is not None
    assert {next(iter(worker.stdout.readline, "")) for _ in range(3)} == {"bill\n", "book\n", "send\n"}
    with psycopg.connect(database.dsn, autocommit=True) as conn, ExitStack() as stopped:
        names = ["pipeline-jobs", "pipeline-inbox"]
        rows = conn.execute(
            "SELECT application_name, pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = ANY(%s)",
            (names,),
        ).fetchall()
        assert sorted(name for name, _ in rows) == ["pipeline-inbox", "pipeline-inbox", "pipeline-jobs"]
        for _, pid in rows:  # a server that takes bytes and never answers
            stopped.callback(os.kill, pid, signal.SIGCONT)
            os.kill(pid, signal.SIGSTOP)
        (tmp_path / "go").touch()
        worker.send_signal(signal.SIGTERM)
        if signals == 2:
            assert worker.stderr is not None
            assert any("worker.draining" in line for line in iter(worker.stderr.readline, ""))
            worker.send_signal(signal.SIGTERM)
        ended(worker, 2)
    for group in ("billing", "booking"):
        assert broker.committed(f"{prefix}.cli.{group}", f"{prefix}.outbox.event.order") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--group", "nobody"), "no handlers for"),
        (("-X", "nonsense"), "KEY=VALUE"),
        (("-X", "no.such.setting=1"), 'Kafka: consumer: No such configuration property: "no.such.setting"'),
        (("-X", "enable.auto.commit=true"), "enable.auto.commit"),
        ((), "pipeline topics apply"),
    ],
)
def test_what_cannot_start_says_why(cli: Cli, words: tuple[str, ...], said: str) -> None:
    _, err = ended(cli("consumer", "run", "shopcli:app", *words), 1)
    assert said in err
    assert "Traceback" not in err


def get(port: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_lifespans_are_entered_before_the_first_record_and_left_after_the_last(
    cli: Cli, endpoints: Endpoints, prefix: str
) -> None:
    ended(cli("topics", "apply", "shopcli:app"), 0)
    broker = Broker(endpoints.kafka)
    broker.put(f"{prefix}.cli.jobs.email", "Mail", {"n": 7})
    broker.flush()
    worker = cli("consumer", "run", "shopcli:app", "--queue", "email")
    assert worker.stdout is not None
    said = [worker.stdout.readline().strip() for _ in range(3)]
    assert said == ["pool opened", "client opened", "a pool a client"]
    worker.send_signal(signal.SIGTERM)
    out, _ = ended(worker, 0)
    assert out.split("\n")[:2] == ["client closed", "pool closed"]
