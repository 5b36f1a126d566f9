"""A commit in, the start of its handler out: how long it takes, the whole way, as an application has it.

    python -m tests.benchmarks.path [--seconds 15] [--rate 200]

Servers as PIPELINE_POSTGRES__DSN and PIPELINE_KAFKA__BOOTSTRAP_SERVERS say; a database and topics of its own. Relay and
worker are processes of their own, with default settings. Single rows are committed at a steady rate: events by
``publish``, then tracked jobs by ``enqueue``; the clock runs from the commit's return to the handler's first line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from pipeline import Context, Event, Job, Pipeline
from pipeline.config import Settings
from pipeline.runtime.topics import apply_topics
from tests.benchmarks.relay import Bench, make_slot, servers
from tests.benchmarks.table import told

PREFIX = "BENCH_PREFIX"
P50_MS, P99_MS = 4, 12


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    note: str = "please leave it with the neighbours if nobody is at home " * 2


class Pack(Job, queue="pack", format="json"):
    order_id: str
    note: str = "please leave it with the neighbours if nobody is at home " * 2


def application(prefix: str) -> Pipeline:
    """Handlers that say when they began."""
    made = Pipeline("path", topic_prefix=prefix)

    @made.consumer(Placed, group="path")
    def placed(event: Placed, ctx: Context) -> None:
        os.write(1, f"event {event.order_id} {time.time_ns()}\n".encode())  # at once, in one piece

    @made.job(Pack)
    def pack(job: Pack, ctx: Context) -> None:
        os.write(1, f"job {job.order_id} {time.time_ns()}\n".encode())

    return made


app = application(os.environ.get(PREFIX, ""))


@contextmanager
def worker(bench: Bench, output: Path) -> Iterator[None]:
    """The worker as it is run in production, at all groups and queues."""
    code = "from pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", code, "consumer", "run", "tests.benchmarks.path:app", "--log-level", "warning"]
    with output.open("wb") as out, subprocess.Popen(command, env=environment(bench), stdout=out) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(40)


def environment(bench: Bench) -> dict[str, str]:
    nobody = "http://127.0.0.1:1"  # JSON needs no registry
    return bench.environment() | {PREFIX: f"{bench.name}.", "PIPELINE_REGISTRY__URL": nobody}


def commit(dsn: str, name: str, messages: Sequence[Placed] | Sequence[Pack], rate: int) -> dict[tuple[str, str], int]:
    """Commit messages one by one at a steady rate. Returns when each was, in ns."""
    ours, committed, begun = application(f"{name}."), {}, time.perf_counter()
    with psycopg.connect(dsn) as conn:
        for number, message in enumerate(messages):
            time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            if isinstance(message, Job):
                ours.enqueue(conn, message)
            else:
                ours.publish(conn, message)
            conn.commit()
            committed["job" if isinstance(message, Job) else "event", message.order_id] = time.time_ns()
    return committed


def handled(output: Path, committed: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Wait until all have begun; return when, in ns."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        lines = [line.split() for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]
        began = {(kind, name): int(at) for kind, name, at in lines}
        if began.keys() >= set(committed):
            return began
        time.sleep(0.1)
    raise SystemExit(f"of {len(committed)} messages some were not handled within 60 s")


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.path")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    total = int((2 if given.quick else given.seconds) * given.rate)
    dsn, kafka = servers(None)
    with tempfile.TemporaryDirectory() as folder, Bench(dsn, kafka, Path(folder)) as bench:
        apply_topics(application(f"{bench.name}."), Settings(kafka={"bootstrap_servers": kafka}))
        make_slot(bench)
        output = Path(folder) / "handled"
        with bench.relay(), worker(bench, output):
            for model, what in ((Placed, "event"), (Pack, "tracked job")):
                handled(output, commit(bench.dsn, bench.name, [model(order_id="first")], given.rate))
                messages = [model(order_id=f"order-{number}") for number in range(total)]
                committed = commit(bench.dsn, bench.name, messages, given.rate)
                began = handled(output, committed)
                cut = statistics.quantiles([(began[one] - at) / 1e6 for one, at in committed.items()], n=100)
                for name, value, most in (("p50", cut[49], P50_MS), ("p99", cut[98], P99_MS)):
                    told(
                        f"{what}: commit → start of its handler at {given.rate}/s, {name}",
                        "relay, broker and worker",
                        value,
                        most=most,
                        unit=" ms",
                    )


if __name__ == "__main__":
    main()
