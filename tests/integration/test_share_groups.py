"""Queues read as share groups: more workers than partitions, settled as ever, and no record left to the broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jobbing import Desk
from working import Broker, wait_until

from pipeline import Context, Event, Job, Pipeline, RetryPolicy
from pipeline.definition import Group
from pipeline.errors import BrokerError, ConfigError
from pipeline.headers import RetryState
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.share import ShareGroup, lock_of
from pipeline.progress import Mark
from pipeline.record import Record
from pipeline.runtime.sharing import share_name, sides

APP = """
import asyncio
from pipeline import Context, Job, Pipeline, Reject, RetryPolicy

app = Pipeline({prefix!r}, topic_prefix="", partitions=1)

class Work(Job, queue="work", format="json"):
    n: int
    slow: bool = False

@app.job(Work, timeout_s=10, retry=RetryPolicy(attempts=3, first_s=0.2, factor=1, cap_s=0.2, jitter=0))
async def work(job: Work, ctx: Context) -> None:
    await asyncio.sleep(4 if job.slow else 0.1)
    if job.n == 7:
        raise Reject("not this one")
    if job.n % 10 == 0 and ctx.attempt == 1:
        raise ValueError("once")
    ctx.result(job.n)
"""


class Work(Job, queue="work", format="json"):
    n: int
    slow: bool = False


class Listener:
    def __init__(self) -> None:
        self.starts: list[dict[Any, Mark]] = []
        self.gone: list[Any] = []

    def assigned(self, starts: Mapping[Any, Mark]) -> None:
        self.starts.append(dict(starts))

    def revoked(self, partitions: Sequence[Any]) -> None: ...

    def lost(self, partitions: Sequence[Any]) -> None:
        self.gone += partitions

    def trouble(self, error: BrokerError) -> None: ...


@pytest.fixture
def app(prefix: str) -> Pipeline:
    app = Pipeline(prefix, topic_prefix="", partitions=1)

    @app.job(Work, timeout_s=10, retry=RetryPolicy(attempts=3, first_s=0.2, factor=1, cap_s=0.2, jitter=0))
    async def work(job: Work, ctx: Context) -> None: ...

    return app


def test_more_workers_than_partitions_share_a_queue_and_settle_as_ever(
    desk: Desk, app: Pipeline, prefix: str, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    (group,) = app.groups.values()
    lock_of(desk.broker.options, share_name(group.name), lock_s=15)  # the shortest that the broker allows
    (tmp_path / "shared.py").write_text(APP.format(prefix=prefix))
    words = ["consumer", "run", "shared:app", "--mode", "share", "--concurrency", "4", "--log-level", "error"]
    with ExitStack() as stack:
        processes = []
        for _ in range(2):
            log = stack.enter_context((tmp_path / "log").open("ab"))
            command = [sys.executable, "-m", "pipeline", *words]
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=cli_environment, stderr=log))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        ids: list[str] = []
        workers: set[str] = set()

        def both_worked() -> bool:
            for n in range(len(ids), len(ids) + 10):
                ids.append(desk.put(Work(n=n)))
                desk.carry()  # each a batch of its own: the broker hands out whole batches
            for n, job_id in enumerate(ids):
                row = desk.until(job_id, "dead" if n == 7 else "done")
                workers.add(row["worker"])
            return len(workers) == 2

        wait_until(both_worked, 120, "both have worked on the one partition")
        assert {desk.job(job_id)["attempts"] for job_id in ids[::10]} == {2}
        # a member that is killed: what it had comes to the other, when its locks have run out
        slow = [desk.put(Work(n=1, slow=True)) for _ in range(2)]
        desk.carry()
        held = desk.until(slow[0], "running")["worker"]
        victim = next(process for process in processes if held.endswith(f":{process.pid}"))
        victim.kill()
        processes.remove(victim)
        for job_id in slow:
            assert desk.until(job_id, "done")["worker"] != held
        for process in processes:
            process.terminate()
        assert [process.wait(60) for process in processes] == [0], (tmp_path / "log").read_text()
    assert desk.broker.count(group.dlq) == 1
    assert desk.job(ids[-1])["result"] == len(ids) - 1


def test_what_is_not_settled_is_released_and_what_comes_too_often_goes_to_a_retry_topic(
    app: Pipeline, bootstrap_servers: str
) -> None:
    broker = Broker(bootstrap_servers)
    broker.create(app)
    (group,) = app.groups.values()
    name, (topic,), aside = share_name(group.name), group.topics, f"{group.name}.retry.0s"
    lock_of(broker.options, name)
    for n in range(4):
        broker.put(topic, "Work", {"n": n}, event_id=str(n))
    broker.flush()

    def member(lock_s: float = 30) -> tuple[ShareGroup, Listener]:
        producer = AckProducer(broker.options)
        source = ShareGroup(broker.options, name, [topic], most=10, lock_s=lock_s, aside=aside, producer=producer)
        listener = Listener()
        source.open({}, listener)
        return source, listener

    def polled(source: ShareGroup) -> list[Record]:
        found: list[Record] = wait_until(lambda: source.poll(100, 0.5), 25, "records, before any lock has run out")
        return found

    first, listener = member()
    records = polled(first)
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert listener.starts == [{}, {(topic, 0): Mark(0)}]
    assert first.poll(100, 0.01) == []  # not before all is settled
    first.commit({(topic, 0): Mark(1)}, wait=False)
    first.close()
    assert listener.gone == []
    second, listener = member(lock_s=0)  # as when it has run out: given up, and the third time is the last one
    assert [record.offset for record in polled(second)] == [1, 2, 3]
    wait_until(lambda: second.poll(100, 0.2) == [] and broker.count(aside) == 3)
    assert listener.gone == [(topic, 0)]
    assert listener.starts == [{}, {(topic, 0): Mark(1)}]
    second.close()
    stored = [Record("", 0, 0, m.key(), m.value(), m.headers(), 0) for m in broker.read(aside, 3)]
    assert sorted(RetryState.of(record).origin.offset for record in stored) == [1, 2, 3]
    assert {RetryState.of(record).attempt for record in stored} == {1}


class Placed(Event, aggregate="order", key="n", format="json"):
    n: int


def test_what_a_share_group_cannot_keep_is_refused(bootstrap_servers: str, prefix: str) -> None:
    options = {"bootstrap.servers": bootstrap_servers}

    def refused(**declared: Any) -> str:
        app = Pipeline(prefix, topic_prefix="")
        app.job(Work, **declared)(lambda job, ctx: None)
        return _refused(app.groups.popitem()[1], options)

    assert "timeout_s=None" in refused()
    assert "locks a record for 30 s" in refused(timeout_s=29)
    assert "keeps none" in refused(timeout_s=5, order="key")
    app = Pipeline(prefix, topic_prefix="")
    app.consumer(Placed, group="billing", order="none", timeout_s=5)(lambda event, ctx: None)
    assert "run queues alone" in _refused(app.groups.popitem()[1], options)


def _refused(group: Group, options: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as error:
        sides(group, options, options, options, concurrency=4)
    return str(error.value)
