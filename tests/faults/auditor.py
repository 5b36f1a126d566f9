"""Topics, tables and the handlers' logs in, what became of every event id out.

The judge of a campaign: plain psycopg and confluent-kafka clients, no code of what it judges, and everything read
from the beginning. What was committed is what the database's own ledger says.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, KafkaError, TopicPartition

__all__ = [
    "Copy",
    "Entry",
    "Finding",
    "Handling",
    "Verdict",
    "audit",
    "digest",
    "handlings",
    "ledger",
    "pending",
    "read",
]

_SILENT_S = 20.0
_SHOWN = 10

# kind of message → groups that must see it; those in _OBEYS let fates decide
_GROUPS = {"moved": ("ledger", "mirror"), "parcel": ("post",), "letter": ("mail",)}
_OBEYS = frozenset({"ledger", "mail"})
_ORDERED = ("ledger", "mirror", "post")


@dataclass(frozen=True, slots=True)
class Copy:
    """One record on a topic. ``life`` counts how often the topic was made anew; ``digest`` is of its value."""

    id: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    digest: bytes
    at_ms: int
    life: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed event, as its transaction noted it."""

    id: str
    kind: str
    key: str
    n: int
    fate: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Handling:
    """One line of a handler's log. ``what`` is start or done."""

    at_ns: int
    what: str
    group: str
    id: str
    key: str
    n: int
    attempt: int
    pid: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that was broken: which, for how many, and some of them."""

    promise: str
    count: int
    examples: list[str]


@dataclass(slots=True)
class Verdict:
    """Counts of ids, and what is wrong. ``duplicates`` are copies or handlings beyond the first."""

    committed: int = 0
    rolled_back: int = 0
    published: int = 0
    handled: int = 0
    dead: int = 0
    refused: int = 0
    waiting: int = 0
    duplicate_records: int = 0
    duplicate_handlings: int = 0
    effects: int = 0
    poison: int = 0
    findings: list[Finding] = field(default_factory=list)

    def check(self, promise: str, broken: Iterable[str]) -> None:
        """Note a finding where anything is broken."""
        found = sorted(broken)
        if found:
            self.findings.append(Finding(promise, len(found), found[:_SHOWN]))


def ledger(dsn: str) -> dict[str, Entry]:
    """Read what the database says was committed, with the payload of its outbox row."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT l.event_id::text, l.kind, l.key, l.n, l.fate, o.payload "
            "FROM faults.ledger l LEFT JOIN pipeline.outbox o ON o.id = l.event_id"
        )
        return {row[0]: Entry(*row[:5], digest=digest(row[5])) for row in rows}


def effects(dsn: str) -> list[tuple[str, str, int]]:
    """Read the effects with inbox in the order in which they happened: id, key, number."""
    with psycopg.connect(dsn) as conn:
        return list(conn.execute("SELECT event_id::text, key, n FROM faults.effect ORDER BY pos").fetchall())


def read(bootstrap: str, topics: Iterable[str], life: int = 0) -> list[Copy]:
    """Read topics from the beginning to their present end. Raises TimeoutError where the end is not reached."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "auditor",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    copies: list[Copy] = []
    try:
        known = consumer.list_topics(timeout=_SILENT_S).topics
        parts = [TopicPartition(name, part, 0) for name in topics if name in known for part in known[name].partitions]
        consumer.assign(parts)
        open_ends = {(part.topic, part.partition) for part in parts}
        heard = time.monotonic()
        while open_ends:
            messages = consumer.consume(1000, 0.1)
            heard = time.monotonic() if messages else heard
            if time.monotonic() - heard > _SILENT_S:
                raise TimeoutError(f"the broker is silent; ends not reached: {sorted(open_ends)[:5]}")
            for message in messages:
                error = message.error()
                if error is None:
                    copies.append(_copy(message, life))
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_ends.discard((message.topic(), message.partition()))
    finally:
        consumer.close()
    return copies


def handlings(folder: Path) -> list[Handling]:
    """Read the handlers' logs, all in the order of their clocks (one machine, one clock)."""
    found = []
    for path in folder.glob("handled-*.log"):
        for line in path.read_text().splitlines():
            at, what, group, event_id, key, n, attempt, pid = line.split()
            found.append(Handling(int(at), what, group, event_id, key, int(n), int(attempt), int(pid)))
    found.sort(key=lambda handling: handling.at_ns)
    return found


def audit(
    *,
    entries: Mapping[str, Entry],
    acknowledged: set[str],
    rolled_back: set[str],
    events: Sequence[Copy],
    dead: Mapping[str, Sequence[Copy]],
    refused: Sequence[Copy],
    waiting: Mapping[str, set[str]],
    handled: Sequence[Handling],
    done_effects: Sequence[tuple[str, str, int]],
    poison: set[str],
    groups: Iterable[str],
) -> Verdict:
    """Follow every id. ``events`` are all copies on event and job topics, in order; ``dead`` those on each group's
    DLQ, ``refused`` on the relay's; ``waiting`` ids still on each group's retry topics; ``poison`` values that the
    campaign wrote itself, by digest in hex; ``groups`` that ran at all.
    """
    verdict = Verdict(committed=len(entries), rolled_back=len(rolled_back), poison=len(poison))
    own = [copy for copy in events if copy.digest.hex() not in poison]
    copies: dict[str, list[Copy]] = defaultdict(list)
    for copy in own:
        copies[copy.id].append(copy)
    on_relay_dlq = {copy.id for copy in refused}
    verdict.published = len(copies.keys() & entries.keys())
    verdict.refused = len(on_relay_dlq)
    verdict.duplicate_records = len(own) - len(copies)

    verdict.check("an acknowledged commit is in the database", acknowledged - entries.keys())
    verdict.check("nothing committed is lost on the way to its topic", entries.keys() - copies.keys() - on_relay_dlq)
    verdict.check("nothing is invented on a topic", (copies.keys() | on_relay_dlq) - entries.keys())
    verdict.check("nothing rolled back is on a topic", rolled_back & copies.keys())
    verdict.check("bytes arrive as written", _changed(own, entries))
    verdict.check("a key has one partition", _split(own))
    verdict.check("first copies of a key are in commit order", _disordered_copies(own, entries))
    _judge_handlers(verdict, entries, copies.keys(), dead, waiting, handled, set(groups))
    if "mirror" in set(groups):
        _judge_effects(verdict, entries, copies.keys() & entries.keys(), dead.get("mirror", ()), done_effects)
    for group, letters in dead.items():
        found = {copy.digest.hex() for copy in letters}
        verdict.check(f"poison is on the DLQ of {group}", poison - found if group in ("ledger", "mirror") else ())
    return verdict


def _judge_handlers(
    verdict: Verdict,
    entries: Mapping[str, Entry],
    published: Iterable[str],
    dead: Mapping[str, Sequence[Copy]],
    waiting: Mapping[str, set[str]],
    handled: Sequence[Handling],
    groups: set[str],
) -> None:
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for handling in handled:
        if handling.what == "done":
            done[handling.group][handling.id] += 1
    published = set(published)
    verdict.handled = sum(len(found) for found in done.values())
    verdict.duplicate_handlings = sum(sum(found.values()) - len(found) for found in done.values())
    for group in sorted(groups):
        letters = {copy.id: copy for copy in dead.get(group, ()) if copy.id in entries}
        verdict.dead += len(letters)
        verdict.waiting += len(waiting.get(group, ()))
        wanted = {e.id for e in entries.values() if group in _GROUPS[e.kind]} & published
        finished = done[group].keys()
        lost = wanted - finished - letters.keys() - waiting.get(group, set())
        verdict.check(f"{group}: nothing published is lost", lost)
        verdict.check(
            f"{group}: nothing is invented in a handler", {h.id for h in handled if h.group == group} - entries.keys()
        )
        doomed = {i for i in wanted if group in _OBEYS and entries[i].fate != "done"}
        wrongly = letters.keys() - doomed
        verdict.check(f"{group}: no healthy record is dead-lettered", (f"{i} ({letters[i].error})" for i in wrongly))
        verdict.check(f"{group}: what must die is not handled", doomed & finished)
        verdict.check(f"{group}: what must die is on the DLQ", doomed - letters.keys() - waiting.get(group, set()))
    for group in _ORDERED:
        if group in groups:
            first = _first(h for h in handled if h.group == group and h.what == "done")
            verdict.check(f"{group}: handlers of a key run in order", _disordered(first))


def _judge_effects(
    verdict: Verdict,
    entries: Mapping[str, Entry],
    published: Iterable[str],
    dead: Sequence[Copy],
    done: Sequence[tuple[str, str, int]],
) -> None:
    counts = Counter(event_id for event_id, _, _ in done)
    verdict.effects = len(done)
    wanted = {i for i in published if entries[i].kind == "moved"}
    verdict.check("effects with inbox happen at most once", (i for i, count in counts.items() if count > 1))
    verdict.check("effects with inbox happen", wanted - counts.keys() - {copy.id for copy in dead})
    verdict.check("effects with inbox are of committed events", counts.keys() - entries.keys())
    verdict.check("effects of a key are in order", _disordered(done))


def _first(handled: Iterable[Handling]) -> list[tuple[str, str, int]]:
    """Return id, key and number of the first handling of each id, in order."""
    seen: set[str] = set()
    first = []
    for handling in handled:
        if handling.id not in seen:
            seen.add(handling.id)
            first.append((handling.id, handling.key, handling.n))
    return first


def _disordered(sequence: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return where a key's number goes back."""
    last: dict[str, int] = {}
    wrong = []
    for event_id, key, n in sequence:
        if n < last.get(key, 0):
            wrong.append(f"{event_id}: {key} number {n} after {last[key]}")
        last[key] = max(n, last.get(key, 0))
    return wrong


def _disordered_copies(copies: Sequence[Copy], entries: Mapping[str, Entry]) -> list[str]:
    """Return where the first copies of a key's events are out of order. Jobs have no order."""
    ordered = sorted(copies, key=lambda copy: (copy.life, copy.topic, copy.partition, copy.offset))
    seen: set[str] = set()
    last: dict[str, tuple[int, str]] = {}
    wrong = []
    for copy in ordered:
        entry = entries.get(copy.id)
        if entry is None or copy.id in seen or entry.kind == "letter":
            continue
        seen.add(copy.id)
        before, where = last.get(entry.key, (0, ""))
        here = f"{copy.topic}[{copy.partition}]@{copy.offset}"
        if entry.n < before:
            wrong.append(f"{entry.key}: number {entry.n} at {here}, after {before} at {where}")
        else:
            last[entry.key] = (entry.n, here)
    return wrong


def _changed(copies: Iterable[Copy], entries: Mapping[str, Entry]) -> set[str]:
    return {copy.id for copy in copies if copy.id in entries and entries[copy.id].digest != copy.digest}


def _split(copies: Iterable[Copy]) -> list[str]:
    places: dict[tuple[str, bytes | None, int], set[int]] = defaultdict(set)
    for copy in copies:
        places[copy.topic, copy.key, copy.life].add(copy.partition)
    return [f"{topic} {key!r}: {sorted(found)}" for (topic, key, _), found in places.items() if len(found) > 1]


def _copy(message: object, life: int) -> Copy:
    headers = {name: value or b"" for name, value in message.headers() or ()}  # type: ignore[attr-defined]
    where = (message.topic(), message.partition(), message.offset())  # type: ignore[attr-defined]
    return Copy(
        id=headers.get("id", f"{where[0]}[{where[1]}]@{where[2]}".encode()).decode(),
        topic=where[0],
        partition=where[1],
        offset=where[2],
        key=message.key(),  # type: ignore[attr-defined]
        digest=digest(message.value()),  # type: ignore[attr-defined]
        at_ms=message.timestamp()[1],  # type: ignore[attr-defined]
        life=life,
        error=headers.get("__dlq.errors.exception.class", b"").decode(),
    )


def digest(value: bytes | None) -> bytes:
    """Return what tells a value from others."""
    return hashlib.blake2b(value or b"", digest_size=12).digest()


def pending(bootstrap: str, group: str, topics: Sequence[str]) -> set[str]:
    """Return the ids on topics at or behind what a group has committed."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False, "log_level": 0}
    )
    try:
        known = consumer.list_topics(timeout=_SILENT_S).topics
        parts = [TopicPartition(name, part) for name in topics if name in known for part in known[name].partitions]
        committed = {(p.topic, p.partition): p.offset for p in consumer.committed(parts, timeout=_SILENT_S)}
    finally:
        consumer.close()
    copies = read(bootstrap, topics)
    return {copy.id for copy in copies if copy.offset >= committed.get((copy.topic, copy.partition), -1)}
