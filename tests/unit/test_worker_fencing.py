"""The worker against a source and a producer in memory: what a real broker shows only now and then."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from waiting import wait_until

from pipeline import Context, Event, Pipeline, RetryPolicy
from pipeline.codec import Decoder
from pipeline.errors import BrokerError, PipelineError
from pipeline.metrics import SilentMeter
from pipeline.probes import Readiness
from pipeline.progress import Mark
from pipeline.record import Record
from pipeline.worker import Limits, Worker


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


TOPIC = "outbox.event.order"


class Source:
    """A consumer group's records; ``do`` runs in the poll thread, as rebalance callbacks do."""

    def __init__(self) -> None:
        self.batches: deque[list[Record]] = deque()
        self.calls: deque[Callable[[], None]] = deque()
        self.commits: list[dict[tuple[str, int], int]] = []
        self.paused: set[tuple[str, int]] = set()
        self.listener: Any = None
        self.polls = 0

    def open(self, topics: Mapping[str, Any], listener: Any) -> None:
        self.listener = listener
        listener.assigned({(TOPIC, 0): Mark(0), (TOPIC, 1): Mark(0)})

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        self.polls += 1
        while self.calls:
            self.calls.popleft()()
        if self.batches:
            return self.batches.popleft()
        time.sleep(min(wait_s, 0.005))
        return []

    def commit(self, marks: Mapping[tuple[str, int], Mark], *, wait: bool) -> None:
        self.commits.append({partition: mark.offset for partition, mark in marks.items()})

    def close(self) -> None:
        pass

    def pause(self, partitions: Sequence[tuple[str, int]]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Sequence[tuple[str, int]]) -> None:
        self.paused.difference_update(partitions)

    def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return {}

    def reachable(self) -> bool:
        return True

    def do(self, call: Callable[[], None]) -> None:
        done = threading.Event()
        self.calls.append(lambda: (call(), done.set()))  # type: ignore[func-returns-value]
        assert done.wait(60)

    def committed(self, partition: int) -> int:
        return max((c[TOPIC, partition] for c in self.commits if (TOPIC, partition) in c), default=0)


class Producer:
    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []
        self.settled: deque[tuple[object, BrokerError | None]] = deque()
        self.acknowledge = True

    def send(self, topic: str, key: Any, value: Any, headers: Any, timestamp_ms: int, token: object) -> None:
        self.sent.append((topic, token))
        if self.acknowledge:
            self.settled.append((token, None))

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        found = list(self.settled)
        self.settled.clear()
        return found

    def flush(self, wait_s: float) -> int:
        time.sleep(min(wait_s, 0.002))
        return 0

    def close(self) -> None:
        pass


class Schemas:
    def text(self, schema_id: int) -> str:
        raise AssertionError


class Bench:
    def __init__(self, handler: Any, **options: Any) -> None:
        app = Pipeline("shop", topic_prefix="")
        retry = options.pop("retry", RetryPolicy(attempts=1))
        for lifespan in options.pop("lifespans", ()):
            app.lifespan(lifespan)
        app.consumer(Placed, group="billing", retry=retry)(handler)
        self.group = app.groups["shop.billing"]
        self.source, self.producer = Source(), Producer()
        self.health = Readiness("worker")
        self.health.ready()
        self.worker = Worker(
            self.group,
            self.source,
            self.source,
            self.producer,
            Decoder(Schemas()),
            meter=SilentMeter(),
            health=self.health,
            limits=Limits(**{"concurrency": 4, "drain_s": 5.0, **options}),
        )
        self.error: PipelineError | None = None
        self.clean = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.clean = self.worker.run()
        except PipelineError as error:
            self.error = error

    def put(self, *numbers: int, partition: int = 0, key: str = "a") -> None:
        self.source.batches.append(
            [
                Record(
                    TOPIC,
                    partition,
                    n,
                    key.encode(),
                    json.dumps({"order_id": key, "n": n}).encode(),
                    [("type", b"Placed")],
                    0,
                )
                for n in numbers
            ]
        )

    def end(self) -> None:
        self.worker.stop(hurry=True)
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def benches() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(handler: Any, **options: Any) -> Bench:
        made.append(Bench(handler, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.end()


class Gate:
    """A handler that holds every record until it is opened."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.open = threading.Event()

    def __call__(self, event: Placed, ctx: Context) -> None:
        self.begun.append(event.n)
        self.open.wait(60)
        self.ended.append(event.n)


def handler_of(gate: Gate) -> Any:
    def bill(event: Placed, ctx: Context) -> None:
        gate(event, ctx)

    return bill


def test_what_ends_after_its_partition_was_lost_is_never_committed(benches: Callable[..., Bench]) -> None:
    gate = Gate()
    bench = benches(handler_of(gate))
    bench.put(0)
    wait_until(lambda: gate.begun)
    source = bench.source
    source.commits.clear()
    source.do(lambda: source.listener.lost([(TOPIC, 0)]))
    source.do(lambda: source.listener.assigned({(TOPIC, 0): Mark(0)}))
    gate.open.set()
    wait_until(lambda: gate.ended)
    bench.put(5, partition=1)
    wait_until(lambda: source.committed(1) == 6)
    assert source.committed(0) == 0


def test_what_was_not_begun_when_its_partition_was_lost_never_begins(benches: Callable[..., Bench]) -> None:
    gate = Gate()
    bench = benches(handler_of(gate))
    bench.put(0, 1, 2)
    wait_until(lambda: gate.begun)
    bench.source.do(lambda: bench.source.listener.lost([(TOPIC, 0)]))
    gate.open.set()
    bench.put(9, partition=1)
    wait_until(lambda: 9 in gate.ended)
    assert gate.begun == [0, 9]


def test_a_partition_that_comes_back_begins_anew_and_the_old_attempt_counts_for_nothing(
    benches: Callable[..., Bench],
) -> None:
    gate = Gate()
    bench = benches(handler_of(gate), drain_s=0.05)
    bench.put(0, 1)
    wait_until(lambda: gate.begun)
    source = bench.source
    source.do(lambda: source.listener.revoked([(TOPIC, 0)]))
    source.commits.clear()
    source.do(lambda: source.listener.assigned({(TOPIC, 0): Mark(0)}))
    gate.open.set()
    wait_until(lambda: gate.ended == [0])
    time.sleep(0.4)  # commits come four times a second
    assert source.committed(0) == 0
    bench.put(0, 1)
    wait_until(lambda: source.committed(0) == 2)
    assert gate.begun == [0, 0, 1]


def test_a_revoked_partition_is_drained_and_committed_before_it_goes(benches: Callable[..., Bench]) -> None:
    gate = Gate()
    bench = benches(handler_of(gate))
    bench.put(0, 1, 2)
    wait_until(lambda: gate.begun)
    source = bench.source
    threading.Timer(0.2, gate.open.set).start()
    source.do(lambda: source.listener.revoked([(TOPIC, 0)]))
    assert gate.ended == [0]
    assert source.committed(0) == 1


def test_a_drain_in_the_midst_of_a_rebalance_commits_when_the_rebalance_is_over(benches: Callable[..., Bench]) -> None:
    gate = Gate()
    gate.open.set()
    bench = benches(handler_of(gate))
    commit = bench.source.commit
    refusals = iter(range(3))
    polled: list[int] = []

    def refused_at_first(marks: Mapping[tuple[str, int], Mark], *, wait: bool) -> None:
        if not wait:
            return
        if next(refusals, None) is not None:
            polled.append(bench.source.polls)
            raise BrokerError("ILLEGAL_GENERATION", retryable=True)
        commit(marks, wait=wait)

    bench.source.commit = refused_at_first  # type: ignore[method-assign]
    bench.put(0, 1, 2)
    wait_until(lambda: gate.ended == [0, 1, 2])
    bench.worker.stop()
    bench.thread.join(60)
    assert bench.clean
    assert bench.source.committed(0) == 3
    assert polled[2] > polled[1] > polled[0]  # the client takes part in the rebalance inside poll


def test_what_a_rebalance_takes_during_a_drain_is_committed_once_and_not_by_the_drain(
    benches: Callable[..., Bench],
) -> None:
    gate = Gate()
    gate.open.set()
    bench = benches(handler_of(gate))
    bench.put(0)
    wait_until(lambda: gate.ended == [0])  # the first one waits for a commit that says who has the partitions
    commit = bench.source.commit
    waited: list[set[tuple[str, int]]] = []

    def refused_at_first(marks: Mapping[tuple[str, int], Mark], *, wait: bool) -> None:
        if not wait:
            return
        waited.append(set(marks))
        if len(waited) == 1:
            bench.source.calls.append(lambda: bench.source.listener.lost([(TOPIC, 0)]))
            raise BrokerError("ILLEGAL_GENERATION", retryable=True)
        commit(marks, wait=wait)

    bench.source.commit = refused_at_first  # type: ignore[method-assign]
    bench.put(1, 2)
    wait_until(lambda: gate.ended == [0, 1, 2])
    bench.worker.stop()
    bench.thread.join(60)
    assert waited == [{(TOPIC, 0), (TOPIC, 1)}, {(TOPIC, 1)}]


def test_a_key_that_was_held_back_is_free_when_its_partition_comes_back(benches: Callable[..., Bench]) -> None:
    begun: list[int] = []

    def bill(event: Placed, ctx: Context) -> None:
        begun.append(event.n)
        raise ValueError

    bench = benches(bill, retry=RetryPolicy(attempts=5, first_s=300, cap_s=300))
    bench.put(0)
    wait_until(lambda: begun == [0])
    source = bench.source
    wait_until(lambda: bench.worker._holding._timers)
    source.do(lambda: source.listener.revoked([(TOPIC, 0)]))
    source.do(lambda: source.listener.assigned({(TOPIC, 0): Mark(0)}))
    bench.put(0)
    wait_until(lambda: begun == [0, 0])


@pytest.mark.parametrize("taken", ["lost", "revoked"])
def test_what_fails_after_its_partition_was_taken_away_is_not_dead_here(
    benches: Callable[..., Bench], taken: str
) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def bill(event: Placed, ctx: Context) -> None:
        begun.append(event.n)
        gate.wait(60)
        raise ValueError

    bench = benches(bill, drain_s=0.05)
    bench.put(0)
    wait_until(lambda: begun == [0])
    source = bench.source
    source.do(lambda: getattr(source.listener, taken)([(TOPIC, 0)]))
    gate.set()
    bench.put(5, partition=1)
    wait_until(lambda: source.committed(1) == 6)
    assert len(bench.producer.sent) == 1  # whoever has the other one's partition handles it


def test_what_fails_while_its_partition_is_given_back_is_not_tried_again_here(benches: Callable[..., Bench]) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def bill(event: Placed, ctx: Context) -> None:
        begun.append(event.n)
        if event.n == 0:
            gate.wait(60)
        if event.n == 0 or ctx.attempt < 3:
            raise ValueError

    bench = benches(bill, retry=RetryPolicy(attempts=9, first_s=0.02, factor=1))
    bench.put(0)
    wait_until(lambda: begun == [0])
    source = bench.source
    threading.Timer(0.2, gate.set).start()
    source.do(lambda: source.listener.revoked([(TOPIC, 0)]))
    bench.put(9, partition=1, key="b")
    wait_until(lambda: source.committed(1) == 10)  # after two waits of the same length
    assert begun == [0, 9, 9, 9]


def test_records_of_a_partition_that_is_not_ours_are_dropped(benches: Callable[..., Bench]) -> None:
    gate = Gate()
    gate.open.set()
    bench = benches(handler_of(gate))
    bench.put(0, partition=7)
    bench.put(0)
    wait_until(lambda: bench.source.committed(0) == 1)
    assert gate.begun == [0]


def test_a_dead_record_is_committed_only_when_the_dlq_has_it(benches: Callable[..., Bench]) -> None:
    def bill(event: Placed, ctx: Context) -> None:
        raise ValueError

    bench = benches(bill)
    bench.producer.acknowledge = False
    bench.put(0)
    wait_until(lambda: bench.producer.sent)
    time.sleep(0.4)  # commits come four times a second
    assert bench.source.committed(0) == 0
    (topic, token) = bench.producer.sent[0]
    assert topic == bench.group.dlq
    bench.producer.settled.append((token, None))
    wait_until(lambda: bench.source.committed(0) == 1)
    bench.worker.stop()
    bench.thread.join(3)
    assert bench.clean


def test_retry_headers_on_a_topic_that_is_no_retry_topic_mean_nothing(benches: Callable[..., Bench]) -> None:
    def bill(event: Placed, ctx: Context) -> None:
        assert ctx.attempt == 1
        raise ValueError

    bench = benches(bill)
    bench.put(0, 1)
    foreign = [("__pipeline.version", b"99"), ("__pipeline.attempt", b"?")]
    batch = bench.source.batches
    first = Record(TOPIC, 1, 0, b"b", b'{"order_id": "b", "n": 0}', [("type", b"Placed"), *foreign], 0)
    batch.append([first, first._replace(offset=1, headers=[("type", b"Shipped"), *foreign])])
    wait_until(lambda: (bench.source.committed(0), bench.source.committed(1)) == (2, 2))
    assert [topic for topic, _ in bench.producer.sent] == [bench.group.dlq] * 3


def test_an_error_that_cannot_be_told_still_settles_its_record(benches: Callable[..., Bench]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def bill(event: Placed, ctx: Context) -> None:
        raise Mute

    bench = benches(bill)
    bench.put(0)
    wait_until(lambda: bench.source.committed(0) == 1)


def test_a_dlq_that_refuses_ends_the_worker(benches: Callable[..., Bench]) -> None:
    def bill(event: Placed, ctx: Context) -> None:
        raise ValueError

    bench = benches(bill)
    bench.producer.acknowledge = False
    bench.put(0)
    wait_until(lambda: bench.producer.sent)
    bench.producer.settled.append((bench.producer.sent[0][1], BrokerError("unknown topic", retryable=True)))
    bench.thread.join(60)
    assert bench.error is not None
    assert "DLQ" in bench.error.what
    assert bench.source.committed(0) == 0


def test_an_exit_raised_by_a_handler_is_a_failed_attempt_and_ends_nobody(benches: Callable[..., Bench]) -> None:
    seen: list[int] = []

    def bill(event: Placed, ctx: Context) -> None:
        seen.append(event.n)
        if event.n == 0:
            raise SystemExit(3)

    bench = benches(bill)
    bench.put(0, 1)
    wait_until(lambda: bench.source.committed(0) == 2)
    assert seen == [0, 1]
    assert [topic for topic, _ in bench.producer.sent] == [bench.group.dlq]


def test_trouble_of_the_broker_is_not_ready_until_it_answers(benches: Callable[..., Bench]) -> None:
    bench = benches(handler_of(Gate()))
    wait_until(lambda: bench.health.state()["ready"])
    bench.source.do(lambda: bench.source.listener.trouble(BrokerError("all brokers are down", retryable=True)))
    assert "all brokers are down" in str(bench.health.state())
    wait_until(lambda: bench.health.state()["ready"])


def test_a_slow_handler_gives_its_finished_keys_on(benches: Callable[..., Bench]) -> None:
    seen: list[str] = []
    gate = threading.Event()

    def bill(event: Placed, ctx: Context) -> None:
        if event.order_id == "slow":
            gate.wait(60)
        seen.append(event.order_id)

    bench = benches(bill, concurrency=2)
    records = [("a", 0), ("slow", 1), ("b", 2), ("a", 3), ("c", 4), ("a", 5), ("b", 6)]
    bench.source.batches.append(
        [
            Record(TOPIC, 0, n, k.encode(), json.dumps({"order_id": k, "n": n}).encode(), [("type", b"Placed")], 0)
            for k, n in records
        ]
    )
    wait_until(lambda: len(seen) == 6)
    gate.set()
    wait_until(lambda: bench.source.committed(0) == 7)


def test_a_lifespan_that_does_not_end_well_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def pool() -> AsyncIterator[None]:
        yield
        raise ConnectionError("the pool does not close")

    async def handle(event: Placed, ctx: Context) -> None: ...

    bench = Bench(handle, lifespans=[pool])
    bench.worker.stop()
    bench.thread.join(60)
    assert bench.clean
    assert "group shop.billing: a lifespan did not end well" in caplog.text
    assert "ConnectionError: the pool does not close" in caplog.text
