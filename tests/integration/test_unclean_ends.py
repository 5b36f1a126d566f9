"""Workers whose process ends in the midst of a handler: what is repeated, and what becomes of the record to blame."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from working import Broker, wait_until

from pipeline.local import Endpoints
from pipeline.progress import Mark, Progress

APP = """
import os, time
from pipeline import Event, Pipeline, RetryLater, RetryPolicy

app = Pipeline("unclean", topic_prefix="PREFIX.", partitions=1)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int

@app.consumer(Placed, group="billing", retry=RetryPolicy(attempts=3, first_s=0.05, factor=1))
def bill(event, ctx):
    if event.n % 10 == 3 and ctx.attempt == 1:
        raise ValueError("once")
    if event.order_id == "waits" and not os.path.exists("go"):
        raise RetryLater(600, counted=False)
    os.write(log, f"{event.n}\\n".encode())
    if event.order_id == "deadly":
        os._exit(9)
    if event.order_id == "slow":
        time.sleep(600)
"""


class Workers:
    """``pipeline consumer run`` as a static member, which is known again at once when it comes back."""

    def __init__(self, folder: Path, env: dict[str, str], topic: str, bootstrap: str) -> None:
        self._folder, self._env, self._topic, self._bootstrap = folder, env, topic, bootstrap
        self.alive: subprocess.Popen[bytes] | None = None

    def put(self, *keys: str) -> None:
        producer = Producer({"bootstrap.servers": self._bootstrap})
        for n, key in enumerate(keys):
            value = json.dumps({"order_id": key, "n": n})
            producer.produce(self._topic, value, key, headers=[("id", f"e{n}"), ("type", "Placed")])
        assert producer.flush(60) == 0

    def start(self) -> subprocess.Popen[bytes]:
        command = ["consumer", "run", "unclean:app", "-X", "group.instance.id=one"]
        command += ["-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=1000"]
        with (self._folder / "errors").open("ab") as errors:
            self.alive = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *command], cwd=self._folder, env=self._env, stderr=errors
            )
        return self.alive

    def cli(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(command, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=60)
        said = " ".join((done.stdout + done.stderr).split())
        return said if done.returncode == code else f"code {done.returncode}"

    def begun(self) -> Counter[int]:
        log = self._folder / "log"
        return Counter(map(int, log.read_text().split())) if log.exists() else Counter()

    def progress(self, group: str) -> Progress:
        prefix = self._topic.split(".")[0]
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": f"{prefix}.unclean.{group}"})
        [stored] = consumer.committed([TopicPartition(self._topic, 0)], timeout=60)
        consumer.close()
        return Progress.read(Mark(stored.offset, stored.metadata or ""))

    def errors(self) -> str:
        return (self._folder / "errors").read_text()


@pytest.fixture
def workers(cli_environment: dict[str, str], endpoints: Endpoints, prefix: str, tmp_path: Path) -> Iterator[Workers]:
    (tmp_path / "unclean.py").write_text(APP.replace("PREFIX", prefix))
    apply = [sys.executable, "-m", "pipeline", "topics", "apply", "unclean:app"]
    subprocess.run(apply, cwd=tmp_path, env=cli_environment, check=True, capture_output=True)
    made = Workers(tmp_path, cli_environment, f"{prefix}.outbox.event.order", endpoints.kafka)
    yield made
    if made.alive is not None:
        made.alive.kill()
        made.alive.wait()


def test_a_record_that_ends_its_workers_is_dead_after_three_alone_and_all_others_are_handled(
    workers: Workers, broker: Broker, prefix: str, tmp_path: Path
) -> None:
    keys = [f"k{n % 5}" for n in range(200)]  # some of each key fail once, and wait in place
    keys[20] = "waits"  # in flight at every end, and never to blame
    keys[77] = "deadly"
    workers.put(*keys)
    for _ in range(5):  # one that tells nothing, one in a window, three alone
        assert workers.start().wait(90) == 9
    (tmp_path / "go").touch()
    workers.start()
    wait_until(lambda: set(workers.begun()) == set(range(200)))
    [letter] = broker.read(f"{prefix}.unclean.billing.dlq", 1)
    assert (letter.key(), json.loads(letter.value() or b"")["n"]) == (b"deadly", 77)
    headers = dict(letter.headers() or [])
    assert b"ended uncleanly 3 times" in (headers["__dlq.errors.message"] or b"")
    assert workers.begun()[77] == 5
    assert '"condemned": ["' in workers.errors()
    assert '[0]@77"]' in workers.errors()


def test_after_a_kill_only_what_was_in_flight_is_repeated(workers: Workers) -> None:
    workers.put("slow", *(f"k{n}" for n in range(3000)))
    worker = workers.start()
    wait_until(lambda: len(workers.begun()) == 3001)
    wait_until(lambda: workers.progress("billing").settled(3000))  # all above the slow one, in the commit's metadata
    assert workers.progress("billing").offset == 0
    worker.kill()
    worker.wait()
    workers.start()
    wait_until(lambda: workers.begun()[0] == 2)
    assert workers.begun() == Counter({0: 2, **dict.fromkeys(range(1, 3001), 1)})


def test_a_group_that_is_reset_handles_again_what_its_metadata_called_settled(workers: Workers, prefix: str) -> None:
    workers.put("slow", *(f"k{n}" for n in range(30)))
    worker = workers.start()
    wait_until(lambda: workers.progress("billing").settled(30))
    group = f"{prefix}.unclean.billing"
    assert "stop its workers first" in workers.cli("consumer", "reset", group, "--to", "0", "--execute", code=1)
    worker.kill()
    worker.wait()
    topic = f"{prefix}.outbox.event.order"
    wait_until(lambda: "done" in workers.cli("consumer", "reset", group, "--to", "5", "--topic", topic, "--execute"))
    workers.start()
    wait_until(lambda: all(workers.begun()[n] == 2 for n in range(5, 31)))
    assert workers.begun()[4] == 1


def test_a_reset_is_planned_first_and_says_what_is_wrong(workers: Workers, prefix: str) -> None:
    workers.put("k", "k")
    group, topic = f"{prefix}.unclean.billing", f"{prefix}.outbox.event.order"
    reset = ("consumer", "reset", group, "--topic", topic, "--to")
    assert "nothing was changed" in workers.cli(*reset, "latest")
    assert workers.progress("billing").offset < 0
    assert "there is no offset 3" in workers.cli(*reset, "3", code=1)
    assert "has no zone" in workers.cli(*reset, "2026-11-01T00:00:00", code=2)
    assert "earliest, latest, an offset or an ISO time" in workers.cli(*reset, "soon", code=2)
    assert "nothing to reset" in workers.cli("consumer", "reset", group, "--to", "latest", code=1)
    assert "no such topic" in workers.cli("consumer", "reset", group, "--to", "latest", "--topic", "x", code=1)
    workers.cli(*reset, "2100-01-01T00:00:00+01:00", "--execute")
    assert workers.progress("billing").offset == 2
