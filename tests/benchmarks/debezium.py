"""The relay against Debezium on Kafka Connect: the same rows, the same file, in one run on one machine.

    python -m tests.benchmarks.debezium [--rows 1000000] [--deep 10000000] [--seconds 10]

Servers as PIPELINE_POSTGRES__DSN, PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_CONNECT__URL say (``pipeline up
--connect``). Debezium is warm: it has published 50,000 rows before. Both drain a backlog, from their first record of it
to the last; CPU is that of all threads of the process, Connect's own among them. Latency with ``poll.interval.ms`` 10.
The relay alone then meets a backlog ten times as deep, for its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.benchmarks.relay import (
    Bench,
    drain,
    latency,
    make_slot,
    peak_mb,
    servers,
    tell,
    throughput,
    wait_free,
    wait_started,
)
from tests.benchmarks.table import missing, told

WARM_UP = 50_000
DEEP_S = 30.0


def ask(method: str, path: str, body: object = None) -> object:
    """Ask Connect, again while it rebalances."""
    until = time.monotonic() + 60
    while True:
        request = urllib.request.Request(
            os.environ["PIPELINE_CONNECT__URL"].rstrip("/") + path,
            json.dumps(body).encode() if body is not None else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code not in {404, 409, 500} or time.monotonic() > until:
                raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from error
            time.sleep(0.5)


def connect_process() -> psutil.Process:
    """Return the JVM that answers at Connect's port."""
    port = int(os.environ["PIPELINE_CONNECT__URL"].rstrip("/").rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                return process
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    raise SystemExit(f"nobody listens at port {port} here")


@contextmanager
def debezium(bench: Bench) -> Iterator[None]:
    """Run the bench's file on Connect."""
    config = json.loads(bench.file.read_text())["config"]
    config |= {"database.dbname": bench.name, "topic.prefix": bench.name, "poll.interval.ms": "10"}
    ask("PUT", f"/connectors/{bench.name}/config", config)
    try:
        wait_started(bench)
        yield
    finally:
        ask("DELETE", f"/connectors/{bench.name}")
        wait_free(bench)


def drained(bench: Bench, rows: int) -> dict[str, float]:
    """Drain a backlog with Debezium, after it has warmed up."""
    jvm = connect_process()
    with debezium(bench):
        bench.fill(WARM_UP)
        while (before := bench.published()) < WARM_UP:
            time.sleep(0.05)
        ask("PUT", f"/connectors/{bench.name}/stop")
        bench.fill(rows)
        ask("PUT", f"/connectors/{bench.name}/resume")
        while not (first := bench.published() - before):
            time.sleep(0.005)
        began, cpu = time.perf_counter(), sum(jvm.cpu_times()[:2])
        while (done := bench.published() - before) < rows:
            time.sleep(0.02)
        took, cpu = time.perf_counter() - began, sum(jvm.cpu_times()[:2]) - cpu
    return {"per_s": (done - first) / took, "cpu_us": cpu / (done - first) * 1e6, "peak_mb": peak_mb(jvm.pid)}


def main() -> None:
    """Run both and print their ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.debezium")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--deep", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.deep, given.seconds = 50_000, 200_000, 3
    dsn, kafka = servers(None)
    theirs: dict[str, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        if os.environ.get("PIPELINE_CONNECT__URL"):
            with Bench(dsn, kafka, Path(folder)) as bench:
                theirs = drained(bench, given.rows)
                theirs |= latency(bench, given.seconds, given.rate, lambda: debezium(bench))
        with Bench(dsn, kafka, Path(folder)) as bench:
            ours = throughput(bench, given.rows)
            ours |= latency(bench, given.seconds, given.rate, bench.relay)
        with Bench(dsn, kafka, Path(folder)) as bench:
            make_slot(bench)
            bench.fill(given.deep)
            deep = drain(bench, given.deep, at_most_s=DEEP_S)["peak_mb"]
    tell(ours, given.rows)
    told(
        f"relay's peak memory with a backlog of {given.deep:,} rows, against {given.rows:,}",
        f"{deep:.0f} / {ours['peak_mb']:.0f} MB",
        deep / ours["peak_mb"],
        most=1.2,
    )
    beside(ours, theirs, given.rows, given.rate)


def beside(ours: dict[str, float], theirs: dict[str, float] | None, rows: int, rate: int) -> None:
    """Tell what both did with the same rows."""
    figures = (
        (f"throughput, backlog of {rows:,} rows", "per_s", ",.0f", "events/s", {"least": 3}),
        ("CPU an event, all threads", "cpu_us", ".1f", "µs", {"most": 1 / 5}),
        (f"peak memory, backlog of {rows:,} rows", "peak_mb", ".0f", "MB", {"most": 1 / 8}),
        (f"commit → consumer at {rate}/s, p50", "p50_ms", ".2f", "ms", {"most": 1 / 4}),
        (f"commit → consumer at {rate}/s, p99", "p99_ms", ".2f", "ms", {"most": 1 / 3}),
    )
    for what, name, form, unit, target in figures:
        if theirs is None:
            missing(f"relay against Debezium: {what}", "PIPELINE_CONNECT__URL names no Kafka Connect", **target)
            continue
        shown = f"{ours[name]:{form}} / {theirs[name]:{form}} {unit}"
        told(f"relay against Debezium: {what}", shown, ours[name] / theirs[name], **target)


if __name__ == "__main__":
    main()
