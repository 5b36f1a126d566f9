"""Share groups obey as other queues do: pause, rate; and their workers commit at every turn."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from jobbing import Desk, steady
from prometheus_client import CollectorRegistry
from servers import Database
from working import Broker, wait_until

from pipeline import Context, Job, Pipeline, jobs
from pipeline.config import RegistrySettings, Settings
from pipeline.definition import Group, Rate
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.share import RetryConsumer, ShareGroup, lock_of
from pipeline.metrics import PrometheusMeter
from pipeline.probes import Readiness
from pipeline.runtime.sharing import share_name
from pipeline.runtime.worker import _runs
from pipeline.worker import COMMIT_S, Limits

APP = """
from pipeline import Context, Job, Pipeline
from pipeline.definition import Rate

app = Pipeline({prefix!r}, topic_prefix="", partitions=1)
app.queue("limited", rate=Rate(10))

class Quick(Job, queue="quick", format="json"):
    n: int

class Limited(Job, queue="limited", format="json"):
    n: int

@app.job(Quick, timeout_s=10)
@app.job(Limited, timeout_s=10)
async def work(job: Quick | Limited, ctx: Context) -> None: ...
"""


class Quick(Job, queue="quick", format="json"):
    n: int


class Limited(Job, queue="limited", format="json"):
    n: int


class Untracked(Job, queue="untracked", format="json", track=False):
    n: int


def seconds(desk: Desk, ids: list[str]) -> list[float]:
    """When jobs were done, in seconds since the first of them was."""
    times = sorted(desk.until(one, "done")["finished_at"] for one in ids)
    return [(at - times[0]) / timedelta(seconds=1) for at in times]


def test_workers_of_share_groups_obey_pause_and_rate_and_one_alone_goes_on(
    database: Database, bootstrap_servers: str, prefix: str, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    app.queue("limited", rate=Rate(10))
    for model in (Quick, Limited):
        app.job(model, timeout_s=10)(lambda job, ctx: None)
    desk = Desk(app, database, Broker(bootstrap_servers))
    (tmp_path / "shared.py").write_text(APP.format(prefix=prefix))
    words = ["consumer", "run", "shared:app", "--mode", "share"]
    command = [sys.executable, "-m", "pipeline", *words]

    def put(model: type[Quick | Limited], count: int) -> list[str]:
        ids = []
        for n in range(count):
            ids.append(desk.put(model(n=n)))
            desk.carry()  # each a batch of its own
        return ids

    with ExitStack() as stack:
        stack.callback(desk.conn.close)
        log = stack.enter_context((tmp_path / "log").open("ab"))
        for _ in range(2):
            process = subprocess.Popen(command, cwd=tmp_path, env=cli_environment, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        # pause
        with desk.conn.transaction():
            app.run(desk.conn, jobs.pause(f"{prefix}.jobs.quick"))
        held, limited = put(Quick, 5), put(Limited, 25)
        # rate: both together; what a second allows may come at once
        at_s = seconds(desk, limited)
        assert at_s[-1] >= 1.4
        assert {desk.job(one)["attempts"] for one in limited} == {1}
        steady(lambda: {desk.job(one)["state"] for one in held}, 1)
        assert {desk.job(one)["state"] for one in held} == {"waiting"}
        with desk.conn.transaction():
            app.run(desk.conn, jobs.resume(f"{prefix}.jobs.quick"))
        seconds(desk, held)
        process.terminate()
        assert process.wait(60) == 0
        for _ in range(3):
            seconds(desk, put(Quick, 1))


def test_the_worker_of_a_share_group_commits_at_every_turn_and_its_other_side_as_all_do(
    bootstrap_servers: str, prefix: str
) -> None:
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    app.job(Untracked, timeout_s=10)(lambda job, ctx: None)
    kafka, meter = {"bootstrap.servers": bootstrap_servers}, PrometheusMeter(CollectorRegistry())
    groups, never = list(app.groups.values()), threading.Event().is_set
    settings = Settings(registry=RegistrySettings(url="http://localhost"))  # which nobody asks
    with ExitStack() as ends:
        runs = _runs(app, groups, settings, kafka, meter, Readiness("worker"), Limits(), "share", ends, never)
        commits_s = [run.worker._partitions._commit_s for run in runs]
        for run in runs:
            run.worker.close()
    assert commits_s == [0.0, COMMIT_S]  # the next batch comes only after a commit: tests/unit/test_share_turns.py


def test_what_is_held_by_a_pause_for_longer_than_its_lock_is_done_once_all_the_same(
    database: Database, bootstrap_servers: str, prefix: str
) -> None:
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    done: list[int] = []

    @app.job(Quick, timeout_s=10)
    def work(job: Quick, ctx: Context) -> None:
        done.append(job.n)

    desk = Desk(app, database, Broker(bootstrap_servers))
    (queue,) = app.groups
    options, aside = desk.broker.options, f"{queue}.retry.0s"

    def sources(group: Group) -> list[GroupConsumer | ShareGroup]:
        name = share_name(group.name)
        lock_of(options, name)
        share = ShareGroup(
            options, name, group.topics, most=4, lock_s=1, aside=aside, producer=AckProducer(options)
        )  # as the worker takes it
        return [share, RetryConsumer({**options, "group.protocol": "classic"}, group.name, group.retry_topics)]

    with desk.conn.transaction():
        app.run(desk.conn, jobs.pause(queue))
    ids = [desk.put(Quick(n=n)) for n in range(5)]
    desk.carry()
    with desk.working(sources=sources):
        wait_until(lambda: desk.broker.count(aside) == 5, why="they came too often, and wait on a retry topic")
        assert done == []
        with desk.conn.transaction():
            app.run(desk.conn, jobs.resume(queue))
        for one in ids:
            assert desk.until(one, "done")["attempts"] == 1
    assert sorted(done) == [0, 1, 2, 3, 4]
    desk.conn.close()
