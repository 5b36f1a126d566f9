"""Jobs as a user runs them: relay, workers and schedulers as processes, Avro and a real registry, killed at random."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from relays import RelayProcess, connector_file, until
from servers import Database
from waiting import wait_until

from tests.faults.processes import Member

pytestmark = pytest.mark.timeout(280)

APP = """
import os, time
import psycopg
from pipeline import Context, Job, Pipeline, RetryPolicy

app = Pipeline({prefix!r}, topic_prefix="", partitions=2)

class Work(Job, queue="work"):
    n: int

@app.job(Work, retry=RetryPolicy(attempts=4, first_s=0.5, factor=1, cap_s=0.5, jitter=0))
def work(job: Work, ctx: Context) -> None:
    time.sleep(0.05)
    with psycopg.connect(os.environ["PIPELINE_POSTGRES__DSN"]) as conn:
        conn.execute("INSERT INTO public.effect VALUES (%s)", (job.n,))
    if job.n % 10 == 0 and ctx.attempt == 1:
        raise ValueError("once")
    ctx.result(job.n)
"""
JOBS = 600


def test_committed_jobs_now_and_later_are_done_whoever_is_killed_and_rolled_back_ones_never_are(
    database: Database, prefix: str, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    (tmp_path / "work_app.py").write_text(APP.format(prefix=prefix))
    env = {**cli_environment, "PYTHONPATH": str(tmp_path)}

    def pipeline(*words: str) -> str:
        command = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def member(name: str, *words: str) -> Member:
        return Member(
            name, [*words, "--log-level", "error"], env | {"FAULTS_PYTHON": sys.executable}, tmp_path, tmp_path
        )

    def effects() -> list[int]:
        return [row[0] for row in conn.execute("SELECT n FROM public.effect").fetchall()]

    pipeline("schema", "generate", "work_app:app")
    pipeline("schema", "push", "work_app:app")
    pipeline("topics", "apply", "work_app:app")
    sys.path.insert(0, str(tmp_path))
    try:
        from work_app import Work, app
    finally:
        sys.path.remove(str(tmp_path))
    conn = psycopg.connect(database.dsn, autocommit=True)
    conn.execute("CREATE TABLE public.effect (n bigint)")

    worker = ("consumer", "run", "work_app:app", "-X", "session.timeout.ms=6000")
    scheduler = ("scheduler", "run", "work_app:app")
    members = [member(f"worker-{n}", *worker) for n in (1, 2)] + [member(f"scheduler-{n}", *scheduler) for n in (1, 2)]
    chance = random.Random(11)
    with RelayProcess(connector_file(tmp_path, f"{prefix}-outbox"), env) as relay:
        relay.reading()
        try:
            for one in members:
                one.start()
            for part in range(6):
                with conn.transaction():
                    for n in range(part * 100, part * 100 + 100):
                        app.enqueue(conn, Work(n=n), delay_s=chance.choice([0, 0, 0.2, 3]))
                with conn.transaction(force_rollback=True):
                    app.enqueue(conn, Work(n=-1))
                    app.enqueue(conn, Work(n=-2), delay_s=0.1)
                before = len(effects())
                until(lambda: len(effects()) >= before + 30, "jobs run")  # noqa: B023
                until(lambda: all(one.state() for one in members), "those that were killed are there again")
                victim = chance.choice(members)
                victim.kill()
                victim.start()
            wait_until(lambda: _states(conn) == {"done": JOBS}, 150, lambda: f"all done: {_states(conn)}")
            assert [one.terminate(60) for one in members] == [0] * len(members)
        finally:
            for one in members:
                one.kill()
    assert set(effects()) == set(range(JOBS))
    rows = conn.execute("SELECT attempts, result FROM pipeline.job ORDER BY result").fetchall()
    assert [row[1] for row in rows] == list(range(JOBS))
    assert {row[0] for row in rows[::10]} == {2}
    counts = json.loads(pipeline("jobs", "list", "--counts", "-o", "json"))
    assert [(row["state"], row["count"]) for row in counts] == [("done", JOBS)]
    conn.close()


def _states(conn: psycopg.Connection[tuple[str, int]]) -> dict[str, int]:
    return dict(conn.execute("SELECT state, count(*) FROM pipeline.job GROUP BY state").fetchall())
