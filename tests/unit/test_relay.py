"""The relay's promises, on an in-memory source and broker with injected faults."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.capture import Batch, Lost, Refused, Routed, Unroutable, identity
from pipeline.errors import BrokerError, SourceError
from pipeline.metrics import SilentMeter
from pipeline.relay import Keep, Relay

PARTITIONS = 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


@dataclass
class Health:
    role: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def ready(self, part: str = "start", *, role: str | None = None) -> None:
        self.reasons.pop(part, None)
        self.role = role or self.role

    def not_ready(self, part: str, why: str) -> None:
        self.reasons[part] = why
        self.seen.append(f"{part}: {why}")


@dataclass
class Broker:
    """Partitions of one cluster. ``poison`` values are refused, with the whole batch that they are in."""

    poison: set[bytes] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    oversize: set[bytes] = field(default_factory=set)
    log: dict[tuple[str, int], list[Routed]] = field(default_factory=lambda: defaultdict(list))
    stored: list[Routed] = field(default_factory=list)

    def append(self, partition: int, record: Routed) -> None:
        self.log[record[0], partition].append(record)
        self.stored.append(record)

    def values(self, topic: str = "t") -> list[bytes | None]:
        return [record[2] for record in self.stored if record[0] == topic]


class Counter:
    def __init__(self) -> None:
        self.sent = self.acknowledged = 0


class FakeMark:
    def __init__(self, goals: list[tuple[Counter, int]]) -> None:
        self.goals = goals

    def acknowledged(self) -> bool:
        return all(counter.acknowledged >= sent for counter, sent in self.goals)


class FakeProducer:
    """As librdkafka with gapless idempotence: per partition in order, and nothing after a failed delivery.

    ``choose(n)`` gives a number below n: how much is acknowledged, and whether a delivery fails.
    """

    def __init__(self, broker: Broker, choose: Callable[[int], int], clock: Clock, faults: bool) -> None:
        self.broker, self.choose, self.clock, self.faults = broker, choose, clock, faults
        self.queues: dict[int, list[Routed]] = {p: [] for p in range(PARTITIONS)}
        self.counters = {p: Counter() for p in range(PARTITIONS)}
        self.broken = False

    def send(self, records: Sequence[Routed], start: int) -> int:
        assert not self.broken, "sent with a producer that had failed"
        for index in range(start, len(records)):
            topic, key, value, _, _, _ = records[index]
            if topic in self.broker.missing or value in self.broker.oversize:
                if index > start:
                    return index
                if topic in self.broker.missing:
                    raise BrokerError(f"no topic {topic}", retryable=True)
                raise Refused("too large", frozenset({identity(records[index])}))
            if self.faults and index > start and self.choose(10) == 0:
                return index  # queue full
            partition = sum(key or b"") % PARTITIONS
            self.queues[partition].append(records[index])
            self.counters[partition].sent += 1
        return len(records)

    def mark(self) -> FakeMark:
        return FakeMark([(c, c.sent) for c in self.counters.values()])

    def poll(self, wait_s: float, *, hurry: bool) -> str:
        self.clock.sleep(wait_s)
        if self.faults and self.choose(8) == 0 and any(self.queues.values()):
            self.broken = True
            self._store_some(acknowledge=False)
            raise BrokerError("delivery failed", retryable=True)
        for partition, queue in self.queues.items():
            size = self.choose(len(queue) + 1) if self.faults else len(queue)
            batch = queue[:size]
            if any(record[2] in self.broker.poison for record in batch):
                self.broken = True
                raise Refused("refused", frozenset(identity(record) for record in batch))
            for record in batch:
                self.broker.append(partition, record)
                self.counters[partition].acknowledged += 1
            del queue[:size]
        return ""

    def close(self) -> None:
        self.broken = True
        if self.faults:
            self._store_some(acknowledge=False)

    def _store_some(self, *, acknowledge: bool) -> None:
        """Requests under way may still be stored, in order, though nobody hears of it."""
        for partition, queue in self.queues.items():
            for record in queue[: self.choose(len(queue) + 1)]:
                if record[2] in self.broker.poison:
                    break
                self.broker.append(partition, record)
            queue.clear()


class Stop:
    def __init__(self) -> None:
        self.set = False

    def is_set(self) -> bool:
        return self.set


class Crash(Exception):
    """The process is killed."""


Transaction = tuple[int, list[Routed]]  # end_lsn, rows


class FakeSource:
    """Transactions of a WAL; ``server`` is what the server remembers, so that it outlives a relay."""

    def __init__(
        self, transactions: list[Transaction], server: dict[str, int], broker: Broker, choose: Callable[[int], int],
        clock: Clock, stop: Stop, *, faults: bool, crash_after: int = 10**9,
    ) -> None:  # fmt: skip
        self.transactions, self.server, self.broker = transactions, server, broker
        self.choose, self.clock, self.stop, self.faults = choose, clock, stop, faults
        self.handed_out = server["confirmed"]
        self.at = (0, 0)
        self.calls = 0
        self.crash_after = crash_after
        self.dead: dict[bytes, str] = {}

    def start(self) -> bool:
        first = next(
            (i for i, (end, _) in enumerate(self.transactions) if end > self.handed_out), len(self.transactions)
        )
        self.at = (first, 0)
        return True

    def read(self, wait_s: float) -> Batch:
        self.calls += 1
        if self.calls > self.crash_after:
            raise Crash
        if self.faults and self.choose(12) == 0:
            raise SourceError("connection lost", retryable=True)
        batch = Batch()
        number, row = self.at
        for _ in range(1 + (self.choose(6) if self.faults else 1000)):
            if number == len(self.transactions):
                break
            end, rows = self.transactions[number]
            if row < len(rows):
                record = rows[row]
                if record[2] in self.dead:
                    batch.dead[len(batch.records)] = (Unroutable("bad row", record), end)
                batch.records.append(record)
                batch.size += 100
                row += 1
            else:
                batch.position = end
                number, row = number + 1, 0
        self.at = (number, row)
        batch.open = row > 0
        if batch.position:
            self.handed_out = batch.position
        if not batch.records and batch.position is None:
            self.clock.sleep(wait_s)
            self.stop.set = self.server["confirmed"] >= (self.transactions[-1][0] if self.transactions else 0)
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        assert position >= self.server["confirmed"] or position == 0, "a position went back"
        stored = set(map(identity, self.broker.stored))
        buried = {record[3][0] for record in self.broker.stored if record[0] == "outbox.dlq"}
        for end, rows in self.transactions:
            if end <= position:
                missing = [r for r in rows if identity(r) not in stored and r[3][0] not in buried]
                assert not missing, f"confirmed {position} before {missing}"
        self.server["confirmed"] = max(self.server["confirmed"], position)

    def close(self) -> None:
        pass


def unkept(record: Routed, topic: str) -> None:
    raise AssertionError(f"kept: {record}")


def record(number: int, key: int = 0, topic: str = "t") -> Routed:
    return (topic, b"k%d" % key, b"v%d" % number, [("id", str(number))], 1_000_000 + number, -1)


def history(sizes: list[int], keys: Callable[[int], int] = lambda n: n % 4) -> list[Transaction]:
    """Transactions of these sizes; LSNs grow, and a commit's end can equal what follows."""
    made: list[Transaction] = []
    number = 0
    for index, size in enumerate(sizes):
        made.append((100 * (index + 1), [record(number + i, keys(number + i)) for i in range(size)]))
        number += size
    return made


def first_copies(broker: Broker) -> dict[bytes | None, list[bytes | None]]:
    seen: dict[bytes | None, list[bytes | None]] = defaultdict(list)
    for stored in broker.stored:
        if stored[0] == "t" and stored[2] not in seen[stored[1]]:
            seen[stored[1]].append(stored[2])
    return seen


def run(
    transactions: list[Transaction], broker: Broker, choose: Callable[[int], int], *, faults: bool = False,
    server: dict[str, int] | None = None, crash_after: int = 10**9, dead: dict[bytes, str] | None = None,
    limit_bytes: int = 1000, keep: Keep = lambda _record, topic: None,
) -> tuple[dict[str, int], Health]:  # fmt: skip
    clock, stop, health = Clock(), Stop(), Health()
    server = server if server is not None else {"confirmed": 0}
    source = FakeSource(transactions, server, broker, choose, clock, stop, faults=faults, crash_after=crash_after)
    source.dead = dead or {}
    relay = Relay(
        "outbox", source, lambda: FakeProducer(broker, choose, clock, faults), keep=keep, meter=SilentMeter(),
        health=health, limit_bytes=limit_bytes, clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    return server, health


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(0, 7), max_size=12),
    poison=st.sets(st.integers(0, 40), max_size=3),
    oversize=st.sets(st.integers(0, 40), max_size=2),
    crashes=st.lists(st.integers(1, 15), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_whatever_fails_nothing_is_lost_confirmed_early_or_overtaken(sizes, poison, oversize, crashes, seed) -> None:
    broker = Broker(poison={b"v%d" % n for n in poison}, oversize={b"v%d" % n for n in oversize})
    # values that only the DLQ takes: there they are poison no more, as it has limits of its own
    transactions = history(sizes)
    server = {"confirmed": 0}
    choose = random.Random(seed).randrange
    refusing = (broker.poison, broker.oversize)
    for crash_after in [*crashes, None]:
        try:
            run(transactions, broker, choose, faults=True, server=server, crash_after=crash_after or 10**9)
        except Crash:
            continue
    wrong = refusing[0] | refusing[1]
    expected: dict[bytes | None, list[bytes | None]] = defaultdict(list)
    for _, rows in transactions:
        for row in rows:
            if row[2] not in wrong:
                expected[row[1]].append(row[2])
    found = {key: values for key, values in first_copies(broker).items() if values}
    assert found == dict(expected)
    if transactions:
        assert server["confirmed"] == transactions[-1][0]
    dead = {r[3][0] for r in broker.stored if r[0] == "outbox.dlq"}
    assert dead == {("id", str(n)) for n in range(sum(sizes)) if b"v%d" % n in wrong}


def test_without_faults_every_row_is_published_once_in_order() -> None:
    broker = Broker()
    server, health = run(history([3, 0, 5, 1]), broker, lambda n: 0)
    assert broker.values() == [b"v%d" % n for n in range(9)] or sorted(broker.values()) == [
        b"v%d" % n for n in range(9)
    ]
    assert server["confirmed"] == 400
    assert health.reasons == {}


def test_a_row_that_cannot_be_routed_goes_to_the_dlq_with_its_story() -> None:
    broker = Broker()
    run(history([3]), broker, lambda n: 0, dead={b"v1": "bad"})
    (letter,) = [stored for stored in broker.stored if stored[0] == "outbox.dlq"]
    assert letter[1:3] == (b"k1", b"v1")
    headers = dict(letter[3])
    assert headers["id"] == "1"
    assert headers["__dlq.errors.topic"] == "t"
    assert headers["__dlq.errors.message"] == "bad row"
    assert headers["__dlq.errors.lsn"] == "0/64"
    assert broker.values() == [b"v0", b"v2"] or sorted(broker.values()) == [b"v0", b"v2"]


def test_a_batch_refused_as_a_whole_buries_only_the_row_that_fails_alone() -> None:
    broker = Broker(poison={b"v2"})
    keys: Callable[[int], int] = lambda n: 0  # noqa: E731 — all in one partition, so in one batch
    broker_poison_for_dlq = run(history([5], keys), broker, lambda n: 0)
    assert broker.values() == [b"v0", b"v1", b"v3", b"v4"]
    (letter,) = [stored for stored in broker.stored if stored[0] == "outbox.dlq"]
    assert dict(letter[3])["__dlq.errors.value.bytes"] == "2"  # the DLQ refused the value too
    assert broker_poison_for_dlq[0]["confirmed"] == 100


def test_a_row_that_not_even_the_dlq_takes_is_kept_before_its_letter_and_waited_for_until_it_is() -> None:
    for broker in (Broker(poison={b"v2"}), Broker(oversize={b"v2"})):  # refused by the broker, and by the client
        kept: list[tuple[bytes | None, str, int]] = []
        tries = iter([False, False, True])

        def keep(
            record: Routed, topic: str, *, broker: Broker = broker, tries: Iterator[bool] = tries,
            kept: list[tuple[bytes | None, str, int]] = kept,
        ) -> None:  # fmt: skip
            if not next(tries):
                raise SourceError("the database is away", retryable=True)
            kept.append((record[2], topic, sum(stored[0] == "outbox.dlq" for stored in broker.stored)))

        server, _ = run(history([5], lambda n: 0), broker, lambda n: 0, keep=keep)
        assert kept == [(b"v2", "t", 0)]
        assert list(dict.fromkeys(broker.values())) == [b"v0", b"v1", b"v3", b"v4"]
        assert [stored[2] for stored in broker.stored if stored[0] == "outbox.dlq"] == [None]
        assert server["confirmed"] == 100


def test_a_missing_topic_is_waited_for_and_never_a_dead_letter() -> None:
    broker = Broker(missing={"t"})
    waits: list[int] = []

    def choose(_n: int) -> int:
        return 0

    clock, stop, health = Clock(), Stop(), Health()
    server = {"confirmed": 0}

    class Impatient(FakeSource):
        def confirm(self, position: int, *, final: bool = False) -> None:
            waits.append(position)
            if len(waits) == 500:
                assert "no topic t" in health.reasons["broker"]
                broker.missing.clear()
            super().confirm(position, final=final)

    source = Impatient(history([2]), server, broker, choose, clock, stop, faults=False)
    relay = Relay(
        "outbox", source, lambda: FakeProducer(broker, choose, clock, False), keep=unkept, meter=SilentMeter(),
        health=health, clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    assert sorted(v for v in broker.values() if v) == [b"v0", b"v1"]
    assert [stored for stored in broker.stored if stored[0] == "outbox.dlq"] == []
    assert health.reasons == {}
    assert waits[0] == 0  # the server was answered meanwhile


def test_a_client_that_can_never_send_again_is_replaced() -> None:
    clock, stop, broker, made = Clock(), Stop(), Broker(), []

    class Fatal(FakeProducer):
        def send(self, records: Sequence[Routed], start: int) -> int:
            if made[0] is self:
                raise Lost("fatal", retryable=True)
            return super().send(records, start)

        def poll(self, wait_s: float, *, hurry: bool) -> str:
            self.clock.sleep(max(wait_s, 0.01))
            stop.set = clock.now > 1030 or len(broker.stored) == 2
            return super().poll(wait_s, hurry=hurry)

    def producers() -> Fatal:
        made.append(Fatal(broker, lambda n: n - 1, clock, False))
        return made[-1]

    source = FakeSource(history([2]), {"confirmed": 0}, broker, lambda n: 0, clock, stop, faults=False)
    Relay(
        "outbox", source, producers, keep=unkept, meter=SilentMeter(), health=Health(),
        clock=clock, now=clock, sleep=clock.sleep,
    ).run(stop)  # fmt: skip
    assert len(made) == 2
    assert sorted(value for value in broker.values() if value) == [b"v0", b"v1"]


def test_a_broker_that_does_not_answer_makes_the_relay_not_ready() -> None:
    clock, stop, health = Clock(), Stop(), Health()
    broker = Broker()

    class Silent(FakeProducer):
        def poll(self, wait_s: float, *, hurry: bool) -> str:
            self.clock.sleep(max(wait_s, 0.01))
            if clock.now > 1030:
                stop.set = True
            return "all brokers are down"

    source = FakeSource(history([2]), {"confirmed": 0}, broker, lambda n: 0, clock, stop, faults=False)
    relay = Relay(
        "outbox", source, lambda: Silent(broker, lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=health, clock=clock, now=clock, sleep=clock.sleep, drain_s=1,
    )  # fmt: skip
    relay.run(stop)
    assert health.reasons == {"broker": "all brokers are down"}
    assert source.server["confirmed"] == 0


def test_a_standby_is_ready_and_drops_what_it_had_in_flight() -> None:
    clock, stop, health = Clock(), Stop(), Health()

    class Busy(FakeSource):
        def start(self) -> bool:
            self.calls += 1
            self.stop.set = self.calls > 3
            return False

    source = Busy([], {"confirmed": 0}, Broker(), lambda n: 0, clock, stop, faults=False)
    relay = Relay(
        "outbox", source, lambda: FakeProducer(Broker(), lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=health, clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    assert (health.role, health.reasons) == ("standby", {})


def test_a_relay_that_takes_over_after_long_is_ready_all_the_time() -> None:
    clock, stop, broker = Clock(), Stop(), Broker()

    class Later(FakeSource):
        def start(self) -> bool:
            return self.clock.now > 1060 and super().start()

    class Slow(FakeProducer):
        def poll(self, wait_s: float, *, hurry: bool) -> str:
            return "" if self.clock.now < 1062 and self.clock.sleep(0.2) is None else super().poll(wait_s, hurry=hurry)

    source = Later(history([2]), {"confirmed": 0}, broker, lambda n: 0, clock, stop, faults=False)
    health = Health()
    relay = Relay(
        "outbox", source, lambda: Slow(broker, lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=health, clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    assert (source.server["confirmed"], health.seen) == (100, [])


def test_an_error_that_no_retry_helps_ends_the_relay() -> None:
    clock, stop = Clock(), Stop()

    class Lost(FakeSource):
        def start(self) -> bool:
            raise SourceError("slot lost")

    source = Lost([], {"confirmed": 0}, Broker(), lambda n: 0, clock, stop, faults=False)
    relay = Relay(
        "outbox", source, lambda: FakeProducer(Broker(), lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=Health(), clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    with pytest.raises(SourceError, match="slot lost"):
        relay.run(stop)


def test_what_is_in_flight_is_bounded_by_bytes() -> None:
    clock, stop = Clock(), Stop()
    broker = Broker()
    most = 0

    class Slow(FakeProducer):
        def poll(self, wait_s: float, *, hurry: bool) -> str:
            nonlocal most
            most = max(most, sum(len(queue) for queue in self.queues.values()))
            self.clock.sleep(0.001)
            for partition, queue in self.queues.items():
                if queue:
                    self.broker.append(partition, queue.pop(0))
                    self.counters[partition].acknowledged += 1
            return ""

    source = FakeSource(history([1] * 300), {"confirmed": 0}, broker, lambda n: 0, clock, stop, faults=True)
    source.choose = lambda n: n - 1  # no fault, small batches
    relay = Relay(
        "outbox", source, lambda: Slow(broker, lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=Health(), limit_bytes=2000, clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    assert len(broker.values()) == 300
    assert most <= 26


def test_told_to_stop_inside_a_transaction_the_relay_reads_it_to_its_end() -> None:
    clock, stop = Clock(), Stop()
    broker = Broker()

    class Halfway(FakeSource):
        def read(self, wait_s: float) -> Batch:
            batch = super().read(wait_s)
            self.stop.set = True  # SIGTERM, whatever was read
            return batch

    source = Halfway(history([5, 5]), {"confirmed": 0}, broker, lambda n: 0, clock, stop, faults=True)
    source.choose = lambda n: min(n - 1, 1)  # no fault; two steps a batch: never a whole transaction
    relay = Relay(
        "outbox", source, lambda: FakeProducer(broker, lambda n: 0, clock, False), keep=unkept, meter=SilentMeter(),
        health=Health(), clock=clock, now=clock, sleep=clock.sleep,
    )  # fmt: skip
    relay.run(stop)
    assert sorted(v for v in broker.values() if v) == [b"v%d" % n for n in range(5)]
    assert source.server["confirmed"] == 100  # all that was published, and no row of the next transaction
