"""What an event costs as outbox, dead letters and topics grow a hundred times: it should cost the same.

    python -m tests.benchmarks.growth [--rows 100000] [--rounds 3]

Servers as PIPELINE_POSTGRES__DSN and PIPELINE_KAFKA__BOOTSTRAP_SERVERS say; databases and topics of its own. The small
and the large take turns; medians. The due table's growth is measured by ``jobs``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pipeline.deadletter import Place, Selection, Summary
from pipeline.postgres.dead_letters import DeadLetterTable
from pipeline.postgres.prune import prune, take_point
from tests.benchmarks.relay import Bench, drain, make_slot, servers
from tests.benchmarks.table import told

TIMES = 100
OUTBOX, LETTERS, TOPICS = 10_000, 2_000, 5
MOST = 1.2
_AGED = """
INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, seq, created_at)
OVERRIDING SYSTEM VALUE
SELECT gen_random_uuid(), 'order', 'order-1', 'shop.OrderPlaced', 'x', %s, number, now() - interval '2 days'
FROM generate_series(1, %s) AS number"""
_ENDED = """
SELECT 1 FROM pipeline.outbox WHERE seq = 1 AND xid < pg_snapshot_xmin(pg_current_snapshot())"""
_LETTERS = """
INSERT INTO pipeline.dead_letter (topic, partition, "offset", event_id, type, fingerprint, error, died_at)
SELECT 'old.dlq', number %% 6, number, gen_random_uuid(), 'shop.OrderPlaced', 'f', 'ValueError', now()
FROM generate_series(1, %s) AS number"""


def outbox(dsn: str, kafka: str, folder: Path, rows: int, rounds: int) -> None:
    """An event is inserted, relayed and pruned, among few and many rows that stay."""
    found: dict[str, dict[int, list[float]]] = {name: {1: [], TIMES: []} for name in ("insert", "relay's CPU", "prune")}
    with Bench(dsn, kafka, folder) as small, Bench(dsn, kafka, folder) as large:
        sizes = {1: small, TIMES: large}
        for times, bench in sizes.items():
            with psycopg.connect(bench.dsn, autocommit=True) as conn:
                conn.execute("SELECT setval(pg_get_serial_sequence('pipeline.outbox', 'seq'), 1000000)")
            bench.fill(OUTBOX * times)
            make_slot(bench)
        for _ in range(rounds):
            for times, bench in sizes.items():
                for name, us in _event(bench, rows).items():
                    found[name][times].append(us)
    for name, figures in found.items():
        _tell(f"outbox of {OUTBOX * TIMES:,} rows against {OUTBOX:,}: {name} an event", figures[1], figures[TIMES])


def _event(bench: Bench, rows: int) -> dict[str, float]:
    """Return what an event costs at each of its three places, in µs; leaves as many rows as there were."""
    with psycopg.connect(bench.dsn, autocommit=True) as conn:
        (before,) = conn.execute("SELECT max(seq) FROM pipeline.outbox").fetchone() or (0,)
        conn.execute(_AGED, (next(iter(bench.topics)), rows))
        while not conn.execute(_ENDED).fetchone():  # somebody's older transaction would keep the rows
            time.sleep(0.1)
        take_point(conn)
        insert = _us(lambda: bench.fill(rows), rows)
        relay = drain(bench, 2 * rows)["cpu_us"]
        pruned = _us(lambda: prune(conn, 86_400, batch=1000, execute=True), rows)
        (left,) = conn.execute("SELECT count(*) FROM pipeline.outbox WHERE seq <= %s", (rows,)).fetchone() or (0,)
        if left:
            raise SystemExit(f"{left} rows of {rows} were not pruned")
        conn.execute("DELETE FROM pipeline.outbox WHERE seq > %s", (before,))
        conn.execute("VACUUM ANALYZE pipeline.outbox")
        conn.execute("CHECKPOINT")
    return {"insert": insert, "relay's CPU": relay, "prune": pruned}


def dead_letters(dsn: str, kafka: str, folder: Path, rows: int, rounds: int) -> None:
    """A letter is entered, shown, claimed and marked, among few and many that are dead already."""
    found: dict[int, list[float]] = {1: [], TIMES: []}
    with Bench(dsn, kafka, folder) as small, Bench(dsn, kafka, folder) as large:
        sizes = {1: small, TIMES: large}
        for times, bench in sizes.items():
            with psycopg.connect(bench.dsn, autocommit=True) as conn:
                conn.execute(_LETTERS, (LETTERS * times,))
                conn.execute("VACUUM ANALYZE pipeline.dead_letter")
        for number in range(rounds):
            for times, bench in sizes.items():
                with psycopg.connect(bench.dsn, autocommit=True) as conn:
                    table = DeadLetterTable(conn)
                    found[times].append(_us(lambda: _die_and_return(table, number, rows), rows))  # noqa: B023 — at once
    what = f"dead letters: {LETTERS * TIMES:,} against {LETTERS:,}: entered, listed, claimed and marked, a letter"
    _tell(what, found[1], found[TIMES])


def _die_and_return(table: DeadLetterTable, number: int, rows: int) -> None:
    first = table.next_offset("new.dlq", 0)
    now = datetime.now(UTC)
    for begin in range(first, first + rows, 1000):
        places = [Place("new.dlq", 0, offset) for offset in range(begin, begin + 1000)]
        table.enter([Summary(one, f"e{one.offset}", "T", "ValueError", "f", now) for one in places])
    selection, after, taken = Selection(("new.dlq", "old.dlq"), since=now), None, 0
    table.page(selection, None, 100)
    selection = Selection(("new.dlq",))
    while taken < rows:
        with table.claim(selection, after, 500) as places:
            table.mark(places, "redriven")
        taken += len(places)
        after = places[-1]


def topics(dsn: str, kafka: str, folder: Path, rows: int, rounds: int) -> None:
    """The relay on rows for few and for many topics."""
    cpu: dict[int, list[float]] = {TOPICS: [], TOPICS * TIMES: []}
    wall: dict[int, list[float]] = {TOPICS: [], TOPICS * TIMES: []}
    with (
        Bench(dsn, kafka, folder, topics=TOPICS) as small,
        Bench(dsn, kafka, folder, topics=TOPICS * TIMES) as large,
    ):
        sizes = {TOPICS: small, TOPICS * TIMES: large}
        for bench in sizes.values():
            make_slot(bench)
        for _ in range(rounds):
            for many, bench in sizes.items():
                bench.fill(rows)
                figures = drain(bench, rows)
                cpu[many].append(figures["cpu_us"])
                wall[many].append(1e6 / figures["per_s"])
    for name, found in (("relay's CPU", cpu), ("relay's time", wall)):
        few, many = found.values()
        _tell(f"{TOPICS * TIMES} topics against {TOPICS}: {name} an event", few, many)


def _us(work: Callable[[], object], rows: int) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / rows * 1e6


def _tell(what: str, few: Sequence[float], many: Sequence[float]) -> None:
    small, large = statistics.median(few), statistics.median(many)
    told(what, f"{large:.1f} / {small:.1f} µs", large / small, most=MOST)


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    rows, rounds = (20_000, 1) if given.quick else (given.rows, given.rounds)
    dsn, kafka = servers(None)
    with tempfile.TemporaryDirectory() as folder:
        outbox(dsn, kafka, Path(folder), rows, rounds)
        dead_letters(dsn, kafka, Path(folder), rows // 10, rounds)
        topics(dsn, kafka, Path(folder), rows, rounds)


if __name__ == "__main__":
    main()
