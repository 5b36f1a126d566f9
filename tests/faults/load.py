"""A seed in, business transactions from several writers at once out.

Each event has its key's next number, taken under a row lock that is held until the commit: the numbers of a key are
its commit order. A ledger row stands in the same transaction, so the database itself says what was committed, also
where a writer never heard. Some transactions are rolled back, some roll back to a savepoint.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg
from confluent_kafka import murmur2

from pipeline.errors import PipelineError
from tests.faults.bank import Letter, Moved, Parcel, app

__all__ = ["Load"]

ACCOUNTS = 40
PARTITIONS = 6
CANARIES = sorted({murmur2(f"canary-{n}".encode(), PARTITIONS): f"canary-{n}" for n in range(60)}.values())
_ERRORS = (psycopg.Error, PipelineError, OSError)


class Load:
    """Writers. ``acknowledged`` are ids whose commit returned, ``rolled_back`` those of transactions undone."""

    def __init__(self, dsn: str, seed: int, *, writers: int, per_second: float) -> None:
        self.acknowledged: set[str] = set()
        self.rolled_back: set[str] = set()
        self.transactions = 0
        self.parcels = threading.Event()
        self.parcels.set()
        self.calm = threading.Event()  # while set, no handler of an account event fails, and no key gets many
        self._dsn = dsn
        self._pause_s = writers / per_second
        self._stop = threading.Event()
        self._writing = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(f"{seed}-{n}"),), daemon=True)
            for n in range(writers)
        ]

    def start(self) -> None:
        """Start the writers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the writers, each after its transaction."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def canaries(self, timeout_s: float = 60) -> list[tuple[str, str]]:
        """Commit fresh messages for every partition of every topic, trying until they are committed for sure.

        Return what has to be handled: group and id.
        """
        deadline = time.monotonic() + timeout_s
        rng = random.Random(0)
        while True:
            try:
                with psycopg.connect(self._dsn, connect_timeout=3) as conn:
                    moved = [_moved(conn, key, rng, plain=True) for key in CANARIES]
                    letters = [_letter(conn, rng, plain=True) for _ in range(2 * PARTITIONS)]
                    parcels = [_parcel(conn, f"parcel-{n}") for n in range(2 * PARTITIONS)]
            except _ERRORS:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                self._committed([*moved, *letters, *parcels])
                both = [(group, event_id) for group in ("ledger", "mirror") for event_id in moved]
                return [*both, *(("mail", i) for i in letters), *(("post", i) for i in parcels)]

    def _committed(self, ids: list[str]) -> None:
        with self._lock:
            self.acknowledged.update(ids)
            self.transactions += 1

    def _write(self, rng: random.Random) -> None:
        conn: psycopg.Connection[Any] | None = None
        while not self._stop.is_set():
            try:
                conn = conn or psycopg.connect(self._dsn, connect_timeout=3)
                self._transaction(conn, rng)
            except _ERRORS:
                if conn is not None:
                    conn.close()
                conn = None
                self._stop.wait(0.2)
            self._stop.wait(rng.uniform(0.2, 1.8) * self._pause_s)
        if conn is not None:
            conn.close()

    def _transaction(self, conn: psycopg.Connection[Any], rng: random.Random) -> None:
        with self._lock:
            self._writing += 1
        try:
            parcels = self.parcels.is_set() and rng.random() < 0.15
            ids: list[str] = []
            undone: list[str] = []
            bulk = rng.random() < 0.01 and not self.calm.is_set()
            keys = sorted({f"a{rng.randrange(ACCOUNTS):02}" for _ in range(rng.randint(1, 3))})
            for key in keys:
                count = 40 if bulk else rng.randint(1, 3)
                ids += [_moved(conn, key, rng, calm=self.calm.is_set()) for _ in range(count)]
            if rng.random() < 0.3:
                ids.append(_letter(conn, rng))
            if rng.random() < 0.1:
                conn.execute("SAVEPOINT part")
                undone += [_moved(conn, keys[-1], rng), _letter(conn, rng)]
                conn.execute("ROLLBACK TO SAVEPOINT part")
            if parcels:
                key = f"p{rng.randrange(6)}"
                ids += [_parcel(conn, key) for _ in range(2)]
            if rng.random() < 0.1:
                conn.rollback()
                undone += ids
                ids = []
            else:
                conn.commit()
            self._committed(ids)
            with self._lock:
                self.rolled_back.update(undone)
        finally:
            with self._lock:
                self._writing -= 1

    def hold_parcels(self, timeout_s: float = 30) -> bool:
        """Let no writer send parcels; tell whether all transactions with some have ended."""
        self.parcels.clear()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._lock:
                if not self._writing:
                    return True
            time.sleep(0.002)
        return False


def _moved(
    conn: psycopg.Connection[Any], key: str, rng: random.Random, *, plain: bool = False, calm: bool = False
) -> str:
    dice = rng.uniform(0.01, 0.96) if plain or calm else rng.random()
    fate = "reject" if dice < 0.003 else "exhaust" if dice < 0.005 else "done"
    event = Moved(
        account=key,
        n=_next(conn, key),
        fails=rng.choice((1, 1, 2)) if dice > 0.97 else 0,
        fate=fate,
        pause_ms=0 if plain else rng.choice((0, 0, 0, 2, 5, 20)),
        filler="" if plain else rng.randbytes(2000 if 0.1 < dice < 0.104 else rng.randint(0, 30)).hex(),
    )
    return _note(conn, str(app.publish(conn, event)), "moved", key, event.n, fate)


def _letter(conn: psycopg.Connection[Any], rng: random.Random, *, plain: bool = False) -> str:
    dice = 0.5 if plain else rng.random()
    fate = "reject" if dice < 0.01 else "exhaust" if dice < 0.02 else "done"
    job = Letter(
        letter="letters",
        n=rng.randrange(1_000_000),
        fails=rng.choice((1, 2, 3)) if fate == "done" and dice > 0.9 else 0,
        fate=fate,
        pause_ms=0 if plain else rng.choice((0, 5, 20, 200)),
    )
    return _note(conn, str(app.enqueue(conn, job)), "letter", "letters", job.n, fate)


def _parcel(conn: psycopg.Connection[Any], key: str) -> str:
    event = Parcel(parcel=key, n=_next(conn, key))
    return _note(conn, str(app.publish(conn, event)), "parcel", key, event.n, "done")


def _next(conn: psycopg.Connection[Any], key: str) -> int:
    row = conn.execute(
        "INSERT INTO faults.counter VALUES (%s, 1) ON CONFLICT (key) DO UPDATE SET n = counter.n + 1 RETURNING n",
        (key,),
    ).fetchone()
    assert row is not None
    return int(row[0])


def _note(conn: psycopg.Connection[Any], event_id: str, kind: str, key: str, n: int, fate: str) -> str:
    conn.execute("INSERT INTO faults.ledger VALUES (%s, %s, %s, %s, %s)", (event_id, kind, key, n, fate))
    return event_id
