"""Which records a crash loop is blamed on: workers on a group in memory, killed between any two of their steps.

Handlers begin and end when the test says so. What a worker commits without waiting for it arrives a step later, or
never.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Context, Event, Pipeline, RetryPolicy
from pipeline.codec import Decoder
from pipeline.definition import Group
from pipeline.errors import BrokerError
from pipeline.metrics import SilentMeter
from pipeline.probes import Readiness
from pipeline.progress import Mark, Progress
from pipeline.record import Record
from pipeline.worker import Limits, Worker
from pipeline.worker.attempt import Attempts
from pipeline.worker.delivery import Delivery, Outcome
from pipeline.worker.keys import KeyQueues
from pipeline.worker.settlement import Again, InPlace
from pipeline.worker.solitude import Solitude

CONCURRENCY = 3
TOPIC = "outbox.event.order"
Where = tuple[str, int, int]
"""Group, partition, offset."""


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


app = Pipeline("shop", topic_prefix="")
POLICY = RetryPolicy(attempts=9, first_s=1, factor=1, jitter=0)


@app.consumer(Placed, group="billing", retry=POLICY)
def bill(event: Placed, ctx: Context) -> None: ...


@app.consumer(Placed, group="mailing", retry=POLICY)
def mail(event: Placed, ctx: Context) -> None: ...


class Hands:
    """An engine whose handlers last until they are told to end."""

    def __init__(self, put: Callable[[Outcome], None], begins: Callable[[Delivery], None]) -> None:
        self._put = put
        self._begins = begins
        self._queues = KeyQueues()
        self.now: list[Delivery] = []

    def submit(self, deliveries: list[Delivery]) -> None:
        self._queues.add(deliveries)
        self._fill()

    def again(self, delivery: Delivery) -> None:
        self._queues.ready.append(delivery)
        self._fill()

    def release(self, delivery: Delivery) -> None:
        self._queues.finish(delivery.key)
        self._fill()

    def behind(self, key: Hashable) -> int:
        return self._queues.behind(key)

    def tend(self) -> None: ...

    def idle(self) -> bool:
        return not self.now

    def running(self) -> list[tuple[Delivery, float]]:
        return [(delivery, 0.0) for delivery in self.now]

    def cancel(self, delivery: Delivery) -> None: ...

    def stop(self) -> None: ...

    def end(self, delivery: Delivery, decision: Again | None = None) -> None:
        self.now.remove(delivery)
        if not isinstance(decision, InPlace):
            self._queues.finish(delivery.key)
        self._put((delivery, decision))
        self._fill()

    def _fill(self) -> None:
        while self._queues.ready and len(self.now) < CONCURRENCY:
            self.now.append(self._queues.ready.popleft())
            self._begins(self.now[-1])


class Source:
    """A group's member; ``marks`` outlive it."""

    def __init__(self, marks: dict[tuple[str, int], Mark], records: Mapping[tuple[str, int], Sequence[Record]]) -> None:
        self._marks = marks
        self._records = records
        self._on_the_way: dict[tuple[str, int], Mark] = {}
        self._next: dict[tuple[str, int], int] = {}
        self.paused: set[tuple[str, int]] = set()
        self.away = False

    def open(self, topics: Mapping[str, Any], listener: Any) -> None:
        starts = {partition: self._marks.get(partition, Mark(0)) for partition in self._records}
        self._next = {partition: mark.offset for partition, mark in starts.items()}
        listener.assigned(starts)

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        self._arrive()
        found: list[Record] = []
        for partition, records in self._records.items():
            if partition not in self.paused:
                found += records[self._next[partition] :]
                self._next[partition] = len(records)
        return found

    def commit(self, marks: Mapping[tuple[str, int], Mark], *, wait: bool) -> None:
        self._on_the_way.update(marks)
        if wait:
            if self.away:
                raise BrokerError("away", retryable=True)
            self._arrive()

    def _arrive(self) -> None:
        if not self.away:
            self._marks.update(self._on_the_way)
            self._on_the_way.clear()

    def close(self) -> None: ...

    def pause(self, partitions: Sequence[tuple[str, int]]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Sequence[tuple[str, int]]) -> None:
        self.paused.difference_update(partitions)

    def ends(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return {partition: len(records) for partition, records in self._records.items()}

    def reachable(self) -> bool:
        return not self.away


class Producer:
    """Takes everything, and has acknowledged it at once."""

    def __init__(self, buried: Callable[[str, Delivery], None]) -> None:
        self._buried = buried
        self._done: list[tuple[object, BrokerError | None]] = []

    def send(self, topic: str, key: Any, value: Any, headers: Any, timestamp_ms: int, token: Any) -> None:
        assert topic.endswith(".dlq")
        self._buried(topic.removesuffix(".dlq"), token.delivery)
        self._done.append((token, None))

    def poll(self, wait_s: float = 0) -> list[tuple[object, BrokerError | None]]:
        done, self._done = self._done, []
        return done

    def flush(self, wait_s: float) -> int:
        return 0

    def close(self) -> None: ...


class Schemas:
    def text(self, schema_id: int) -> str:
        raise AssertionError


class World:
    """Two groups in one process, killed and started again. ``truth`` has who was rightly suspected, and how often.

    That is who had begun while nothing else ran, when nothing had begun since, and it did not wait for another attempt
    that the worker, which takes outcomes once a step, knew of.
    """

    def __init__(self, *partitions: str, groups: Sequence[str] = ("shop.billing", "shop.mailing")) -> None:
        self.now = 0.0
        self.dead: list[Where] = []
        self.handled: Counter[Where] = Counter()
        self.truth: Counter[Where] = Counter()
        self.ends = 0
        self._groups: list[Group] = [app.groups[name] for name in groups]
        self._records: dict[tuple[str, int], list[Record]] = {}
        for n, keys in enumerate(partitions):
            self.put(n, keys)
        self._marks: dict[str, dict[tuple[str, int], Mark]] = {group.name: {} for group in self._groups}
        self.start()

    def start(self) -> None:
        solitude = Solitude()
        self._only: Where | None = None
        self._waits = False
        self.hands: dict[str, Hands] = {}
        self.sources: dict[str, Source] = {}
        self.workers = [self._worker(group, solitude) for group in self._groups]
        for worker in self.workers:
            worker.prepare()
            worker.join()

    def put(self, n: int, keys: str) -> None:
        records = self._records.setdefault((TOPIC, n), [])
        for key in keys:
            value = json.dumps({"order_id": key}).encode()
            records.append(Record(TOPIC, n, len(records), key.encode(), value, [("type", b"Placed")], 0))

    def _worker(self, group: Group, solitude: Solitude) -> Worker:
        source = self.sources[group.name] = Source(self._marks[group.name], self._records)

        def engine(_attempts: Attempts, put: Callable[[Outcome], None]) -> Hands:
            made = self.hands[group.name] = Hands(put, lambda delivery: self._begins(group.name, delivery))
            return made

        return Worker(
            group,
            source,
            source,
            Producer(lambda name, delivery: self.dead.append(where(name, delivery))),
            Decoder(Schemas()),
            meter=SilentMeter(),
            health=Readiness("worker"),
            limits=Limits(concurrency=CONCURRENCY),
            clock=lambda: self.now,
            wall=lambda: self.now,
            sleep=self._sleep,
            engine=engine,
            solitude=solitude,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _begins(self, group: str, delivery: Delivery) -> None:
        self._only = where(group, delivery) if len(self.running) == 1 else None
        self._waits = False

    @property
    def running(self) -> list[Where]:
        return [where(group, delivery) for group, hands in self.hands.items() for delivery in hands.now]

    def step(self, seconds: float = 0.01) -> None:
        self.now += seconds
        if self._waits:
            self._only, self._waits = None, False
        for worker in self.workers:
            worker.step()

    def pass_through(self, n: int) -> None:
        """Let two records of a partition be handled: those that follow need no care."""
        for _ in range(2):
            self.put(n, "z")
            self.step(1.1)
            self.step()
            for one in self.running:
                self.end(one)

    def until_one_runs(self) -> None:
        for _ in range(50):
            if not self.running:
                self.step(1.0)

    def end(self, one: Where, *, again_s: float | None = None) -> None:
        hands = self.hands[one[0]]
        [delivery] = [d for d in hands.now if where(one[0], d) == one]
        if again_s is None:
            hands.end(delivery)
            self.handled[one] += 1
        else:
            hands.end(delivery, Again(again_s, 0.0, counted=True))
            self._waits |= self._only == one

    def kill(self) -> None:
        if self._only is not None:
            self.truth[self._only] += 1
        self.ends += 1
        self.start()

    def crash_twice(self) -> None:
        """Make what begins first suspects: one end tells nothing, the next names who ran."""
        for _ in range(2):
            self.step()
            self.kill()

    def progress(self, group: str = "shop.billing", partition: int = 0) -> Progress:
        return Progress.read(self._marks[group][TOPIC, partition])

    @property
    def all(self) -> set[Where]:
        return {
            (group.name, n, record.offset)
            for group in self._groups
            for (_, n), records in self._records.items()
            for record in records
        }

    def run(self, deadly: Iterable[Where] = (), *, most_ends: int = 30) -> None:
        """Let everything end at once but what is deadly: that ends the process."""
        deadly = set(deadly)
        for _ in range(3000):
            self.step(0.05)
            for one in self.running:
                if one in deadly:
                    self.kill()
                    assert self.ends <= most_ends
                    break
                self.end(one)
            if self.handled.keys() | set(self.dead) == self.all and not self.running:
                return
        raise AssertionError(f"left: {self.all - set(self.handled) - set(self.dead)}")


def where(group: str, delivery: Delivery) -> Where:
    return group, delivery.record.partition, delivery.record.offset


BILL, MAIL = "shop.billing", "shop.mailing"


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("group", [BILL, MAIL])
def test_the_guilty_one_is_dead_after_three_ends_while_it_ran_alone_and_nobody_else_is(group: str, place: int) -> None:
    world = World("aabbabcd", "eeff")
    world.run([(group, 0, place)])
    assert set(world.dead) == {(group, 0, place)}
    assert world.ends <= 5  # one that tells nothing, one in a window, three alone
    assert set(world.handled) == world.all - {(group, 0, place)}


def test_two_that_are_guilty_in_two_groups_of_one_process_are_told_from_all_others() -> None:
    world = World("aabbabcd", "eeff")
    guilty = [(BILL, 0, 4), (MAIL, 1, 0)]
    world.run(guilty)
    assert set(world.dead) == set(guilty)  # a letter may come twice, as all that is produced
    assert world.ends <= 10


def test_what_was_in_flight_beside_others_is_not_condemned_however_often_its_worker_is_killed() -> None:
    world = World("abcdefgh", groups=[BILL])
    for _ in range(10):
        world.step()
        for _ in range(5):  # nothing ends: the first has its time alone, then others begin
            world.step(50_000.0)
        assert len(world.running) > 1
        world.kill()
    assert world.progress().suspects
    world.run()
    assert not world.dead


def test_what_waits_for_its_next_attempt_is_not_condemned_however_often_its_worker_is_killed() -> None:
    world = World("a", groups=[BILL])
    world.crash_twice()
    for _ in range(10):
        world.step()
        assert world.running == [(BILL, 0, 0)]
        world.end((BILL, 0, 0), again_s=5)
        world.step()
        world.kill()
    world.step()
    assert world.running == [(BILL, 0, 0)]
    world.end((BILL, 0, 0))
    world.step()
    assert not world.dead


def test_what_has_ended_is_not_condemned_though_another_partitions_suspect_runs_now() -> None:
    world = World("a", "b", groups=[BILL])
    world.crash_twice()
    world.step()
    assert world.running == [(BILL, 0, 0)]
    world.end((BILL, 0, 0))
    world.step()
    assert world.running == [(BILL, 1, 0)]
    world.kill()
    assert world.progress().offset == 1
    assert not world.progress().suspects_now()


def test_a_suspect_begins_when_nothing_else_runs_in_any_group_and_nothing_begins_beside_it() -> None:
    world = World("abcd", "e")
    for _ in range(2):
        world.step()
        world.step()
        assert len(world.running) == 2 * CONCURRENCY
        world.kill()
    while world.handled.keys() != world.all:
        world.step()
        running = world.running
        assert len(running) <= 1
        for one in running:
            world.step(1.0)
            assert world.running == [one]
            world.end(one)


def test_after_its_time_a_suspect_lets_others_begin_and_the_next_time_it_insists_longer_or_comes_later() -> None:
    world = World("abc", groups=[BILL])
    world.crash_twice()
    world.step()
    assert world.running == [(BILL, 0, 0)]
    world.step(9.9)
    assert len(world.running) == 1
    assert world.progress().alone == 0
    world.step(0.2)
    assert world.progress().alone is None  # committed before others begin
    world.step(10.1)
    world.step(10.1)
    assert len(world.running) == 3
    world.kill()
    assert {n: what.ends for n, what in world.progress().suspects_now().items()} == {0: 0, 1: 0, 2: 0}
    world.step()
    [one] = world.running
    world.step(39.0)
    assert world.running == [one]


def test_a_record_that_takes_long_to_end_its_worker_is_condemned_too_and_its_long_neighbours_are_not() -> None:
    world = World("abcdef", groups=[BILL])
    guilty, began = (BILL, 0, 4), {}
    while guilty not in world.dead:
        world.step(1.0)
        for one in world.running:
            began.setdefault(one, world.now)
        for one in set(began) - set(world.running):
            del began[one]
        if guilty in began and world.now - began[guilty] > 100:
            world.kill()
            began.clear()
        for one in [one for one, at in began.items() if world.now - at > 3600]:
            world.end(one)
        assert world.ends < 40
    world.run()
    assert set(world.dead) == {guilty}


def test_a_suspect_is_not_begun_before_its_name_is_committed_and_others_not_before_it_is_taken_back() -> None:
    world = World("ab", groups=[BILL])
    world.crash_twice()
    source = world.sources[BILL]
    source.away = True
    for _ in range(5):
        world.step(1.0)
        assert not world.running
    source.away = False
    world.until_one_runs()
    [one] = world.running
    source.away = True
    world.end(one)
    for _ in range(5):
        world.step(1.0)
        assert not world.running
    source.away = False
    world.until_one_runs()
    assert len(world.running) == 1


def test_others_of_its_key_do_not_begin_by_themselves_when_a_suspect_ends() -> None:
    world = World("aab", groups=[BILL])
    world.crash_twice()
    world.step()
    assert world.running == [(BILL, 0, 0)]
    world.end((BILL, 0, 0), again_s=5)
    world.step()
    world.step()
    assert world.running == [(BILL, 0, 2)]  # of another key
    world.end((BILL, 0, 2))
    world.until_one_runs()
    assert world.running == [(BILL, 0, 0)]
    world.end((BILL, 0, 0))
    assert not world.running


def test_what_comes_while_a_suspect_waits_for_its_next_attempt_does_not_begin_with_its_end() -> None:
    world = World("a", "", groups=[BILL])
    world.crash_twice()
    world.step()
    world.end((BILL, 0, 0), again_s=9)
    world.step()
    world.pass_through(1)
    world.put(0, "ab")
    world.put(1, "ac")  # of a partition that needs no care
    world.step()
    world.step()
    for one in world.running:
        world.end(one)
    assert world.handled.keys() >= {(BILL, 0, 2), (BILL, 1, 3)}
    world.until_one_runs()
    assert world.running == [(BILL, 0, 0)]
    world.end((BILL, 0, 0))
    assert not world.running
    world.run()


def test_a_key_that_a_rebalance_frees_does_not_go_on_beside_a_suspect() -> None:
    world = World("", "", "s", groups=[BILL])
    suspect = (BILL, 2, 0)
    world.crash_twice()
    world.step()
    world.end(suspect, again_s=30)
    world.step()
    for n in (0, 1):
        world.pass_through(n)
    for n in (0, 1):  # as of two topics that have the key
        world.put(n, "a")
        world.step()
    world.end((BILL, 0, 2), again_s=3600)
    world.until_one_runs()
    assert world.running == [suspect]
    world.workers[0].revoked([(TOPIC, 0)])
    for _ in range(5):
        world.step(0.1)
        assert world.running == [suspect]
    world.end(suspect)
    world.until_one_runs()
    assert world.running == [(BILL, 1, 2)]


def test_what_comes_for_another_group_waits_until_the_suspect_has_ended() -> None:
    world = World("a", "")
    suspect = (BILL, 0, 0)
    world.step()
    world.kill()
    world.step()
    world.end((MAIL, 0, 0))
    world.step(1.0)
    world.step(1.0)
    world.kill()
    world.step()
    world.end(suspect, again_s=4)
    world.step()
    world.pass_through(1)
    world.until_one_runs()
    assert world.running == [suspect]
    world.put(0, "b")
    world.put(1, "b")  # of a partition that needs no care
    for _ in range(5):
        world.step(0.1)
        assert world.running == [suspect]
    world.end(suspect)
    world.run()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_happens_only_those_are_condemned_that_were_alone_at_three_ends(data: st.DataObject) -> None:
    keys = st.text("abc", min_size=1, max_size=6)
    world = World(data.draw(keys), data.draw(keys))
    deadly = data.draw(st.sets(st.sampled_from(sorted(world.all)), max_size=2))
    for what in data.draw(st.lists(st.sampled_from("ssssseeeewkkt"), max_size=120)):
        running = world.running
        if what == "s":
            world.step()
        elif what == "t":
            world.step(data.draw(st.sampled_from([1.0, 11.0, 50.0])))
        elif what == "k":
            world.kill()
        elif running:
            one = data.draw(st.sampled_from(running))
            if one in deadly:
                world.kill()
            else:
                world.end(one, again_s=2.0 if what == "w" else None)
    world.run(deadly)
    for one in world.dead:
        assert world.truth[one] >= 3, f"{one} was condemned for {world.truth[one]} ends"
    assert deadly <= set(world.dead) | set(world.handled)
