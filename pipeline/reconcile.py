"""Rows that are retained and records that are on the topics in, what is missing out; and that, if told, published.

Compared by event id, on disk, so that millions of ids fit. A row counts as missing only once capture has passed it and
its topics were read to an end that came after that. Nothing is published that was found.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from pipeline.capture import Batch, Routed, Unroutable, weight
from pipeline.errors import BrokerError
from pipeline.headers import EVENT_ID, ORIGINAL_TIME
from pipeline.record import Record
from pipeline.relay.delivery import Delivery

__all__ = ["Archive", "Comparison", "Missing", "Rows", "Source", "TopicCount", "publish"]

_SKEW_MS = 600_000  # the broker's clock, or a writer's, may be so far behind
_IDS = 10_000
_ROWS = 50  # whole rows in memory
_LIMIT_BYTES = 24_000_000
_STALLED_S = 60.0
_CACHE_KIB = 64_000


class Rows(Protocol):
    """The tables."""

    def ids(self) -> Iterator[list[tuple[str, str, int]]]:
        """Event id, topic ("" where there is none) and time in ms (0 where unknown) of each retained row."""

    def await_passed(self, wait_s: float) -> None:
        """Wait until capture has passed what ``ids`` gave. Raises SourceError where it does not."""

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Routed | Unroutable]:
        """The records of rows that are still there."""


class Archive(Protocol):
    """The topics."""

    def topics(self) -> frozenset[str]:
        """Names of all topics."""

    def starts(self, topic: str, at_ms: int) -> dict[int, tuple[int, int]]:
        """Partition → the first offset with this or a later time, and the one after the last."""

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Record]:
        """The records between two offsets."""

    def gone(self, topic: str) -> tuple[int, bool]:
        """Time (ms) before which records may have been deleted, 0: none; and whether the topic is compacted."""


class Source(Protocol):
    """Where batches of missing rows come from, encoded or not."""

    def read(self, wait_s: float) -> Batch:
        """The next ones."""


@dataclass(frozen=True, slots=True)
class TopicCount:
    """One topic: retained rows, how many of them are missing, and the times (ms) of the oldest and newest of these."""

    topic: str
    rows: int
    missing: int
    oldest_ms: int | None
    newest_ms: int | None


class Comparison:
    """One run. ``dlqs`` are the dead-letter topics of its connectors: what is there is not missing. Close it."""

    def __init__(self, rows: Rows, archive: Archive, dlqs: frozenset[str], *, step: Callable[[str], None]) -> None:
        self._rows = rows
        self._archive = archive
        self._dlqs = dlqs
        self._step = step
        self._ids = _Ids()
        self._ends: dict[tuple[str, int], int] = {}

    def run(self, *, wait_s: float, despite_retention: bool) -> list[TopicCount]:
        """Compare; return a count for each topic. ``wait_s``: for capture to pass what is not found at once.

        Raises BrokerError where a topic may have deleted records of these rows, unless ``despite_retention``;
        SourceError where it cannot be told what was lost.
        """
        for found in self._rows.ids():
            self._ids.add(found)
        retained = self._ids.topics()
        self._step(f"{sum(rows for rows, _ in retained.values())} rows are retained, for {len(retained)} topics")
        there = self._archive.topics()
        oldest = {topic: at for topic, (_, at) in retained.items() if topic in there}
        if not despite_retention:
            for topic, at_ms in oldest.items():
                _refuse_deleted(topic, at_ms, *self._archive.gone(topic))
        for dlq in self._dlqs & there if retained else ():
            oldest[dlq] = min(at for _, at in retained.values())
        for topic, at_ms in oldest.items():
            self._look(topic, max(0, at_ms - _SKEW_MS))
        if left := self._ids.count():
            self._step(f"{left} of them are not there: waiting until capture has passed them")
            self._rows.await_passed(wait_s)
            for topic in self._archive.topics() & {*retained, *self._dlqs}:
                self._look(topic, max(0, oldest.get(topic, 0) - _SKEW_MS))
        missing = self._ids.missing()
        return [TopicCount(topic, rows, *missing.get(topic, (0, None, None))) for topic, (rows, _) in retained.items()]

    def missing(self) -> Missing:
        """Return what is missing, to be published."""
        return Missing(self._ids, self._rows)

    def close(self) -> None:
        """Remove what is on disk."""
        self._ids.close()

    def _look(self, topic: str, at_ms: int) -> None:
        """Read what of a topic was not read yet, and strike the ids that are there."""
        for partition, (start, end) in self._archive.starts(topic, at_ms).items():
            begin = self._ends.get((topic, partition), start)
            records = self._archive.read(topic, partition, begin, end)
            while some := list(islice(records, _IDS)):
                self._ids.strike([_event_id(record) for record in some])
            self._ends[topic, partition] = max(begin, end)


class Missing:
    """What is missing, as a source of batches: stamped now, with the time that the row has in a header."""

    def __init__(self, ids: _Ids, rows: Rows, *, now: Callable[[], float] = time.time) -> None:
        self._left = ids.each(_ROWS)
        self._rows = rows
        self._now = now
        self._done = 0
        self.total = ids.count()
        self.pruned = 0
        """Rows that are not there any more."""

    def start(self) -> bool:
        """Begin."""
        return True

    def read(self, wait_s: float) -> Batch:  # noqa: ARG002 — it never waits
        """Return the next batch; its position is how many ids were given so far."""
        batch = Batch()
        ids = next(self._left, [])
        found = self._rows.fetch(ids) if ids else {}
        for event_id in ids:
            record = found.get(event_id)
            if record is None:
                self.pruned += 1
                continue
            if isinstance(record, Unroutable):
                batch.dead[len(batch.records)] = (record, 0)
                record = record.record
            topic, key, value, headers, at_ms, partition = record
            told = [*headers, (ORIGINAL_TIME, str(at_ms))]
            batch.records.append((topic, key, value, told, int(self._now() * 1000), partition))
            batch.size += weight(record)
        self._done += len(ids)
        batch.position = self._done
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        """Nothing is stored: what is published is found by the next comparison."""

    def close(self) -> None:
        """End."""


def publish(
    source: Source,
    total: int,
    delivery: Delivery,
    why: Callable[[], str],
    *,
    clock: Callable[[], float] = time.monotonic,
    step: Callable[[int], None] = lambda _done: None,
) -> None:
    """Send all of ``source``, whose last position is ``total``, and wait for the acknowledgements.

    Raises BrokerError where nothing is acknowledged for a minute, with ``why`` as its reason.
    """
    taken = seen = 0
    heard = clock()
    while delivery.position < total:
        idle = True
        if taken < total and delivery.size < _LIMIT_BYTES:
            batch = source.read(_IDLE_S)
            if batch.position:
                taken, idle = batch.position, False
                delivery.take(batch)
        delivery.serve(_IDLE_S if idle else 0, hurry=idle)
        if delivery.position > seen:
            step(delivery.position - seen)
            seen, heard = delivery.position, clock()
        if clock() > heard + _STALLED_S:
            raise BrokerError(
                f"nothing was acknowledged for {_STALLED_S:.0f} s: {why() or 'the broker says nothing'}",
                remedy="compare again when this is mended: what was acknowledged is not missing any more",
                retryable=True,
            )


_IDLE_S = 0.05


def _refuse_deleted(topic: str, oldest_ms: int, before_ms: int, compacted: bool) -> None:
    """Refuse to call missing what the topic has deleted itself."""
    anyway = "or publish what is not there all the same with --despite-retention"
    if compacted:
        raise BrokerError(
            f"topic {topic} is compacted: a row whose key came again may have been removed from it", remedy=anyway
        )
    if before_ms > oldest_ms:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before_ms // 1000 + 1))
        raise BrokerError(
            f"topic {topic} has deleted records, perhaps of rows that are retained", remedy=f"--since {since}, {anyway}"
        )


def _event_id(record: Record) -> str:
    return next((value.decode(errors="replace") for name, value in record.headers if name == EVENT_ID and value), "")


class _Ids:
    """Ids, topics and times on disk, in the order in which they came. SQLite keeps 64 MB of them in memory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a file without a name, which goes with the process
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute("CREATE TABLE ids (n INTEGER PRIMARY KEY, id TEXT UNIQUE, topic INTEGER, at INTEGER)")
        self._names: dict[str, int] = {}

    def add(self, rows: Sequence[tuple[str, str, int]]) -> None:
        names = self._names
        values = [(event_id, names.setdefault(topic, len(names)), at) for event_id, topic, at in rows]
        self._all("INSERT OR IGNORE INTO ids (id, topic, at) VALUES (?, ?, ?)", values)

    def strike(self, ids: Sequence[str]) -> None:
        self._all("DELETE FROM ids WHERE id = ?", [(event_id,) for event_id in ids])

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM ids").fetchone()[0])

    def topics(self) -> dict[str, tuple[int, int]]:
        """Topic → how many, and the lowest time."""
        return {topic: (rows, oldest) for topic, (rows, oldest, _) in self.missing().items()}

    def missing(self) -> dict[str, tuple[int, int, int]]:
        """Topic → how many, and the lowest and highest time."""
        names = list(self._names)
        grouped = self._db.execute("SELECT topic, count(*), min(at), max(at) FROM ids GROUP BY topic").fetchall()
        return {name: (rows, low, high) for name, rows, low, high in sorted((names[n], *rest) for n, *rest in grouped)}

    def each(self, size: int) -> Iterator[list[str]]:
        """Give all ids, ``size`` at a time, in the order in which they came."""
        after = 0
        while rows := self._db.execute(
            "SELECT n, id FROM ids WHERE n > ? ORDER BY n LIMIT ?", (after, size)
        ).fetchall():
            after = rows[-1][0]
            yield [row[1] for row in rows]

    def close(self) -> None:
        self._db.close()

    def _all(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(statement, values)
        self._db.execute("COMMIT")
