"""A handler's breaker: alone, and in workers on a broker in memory, by the virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import Breaker, Context, Event, Job, Pipeline, Reject, RetryLater, RetryPolicy
from pipeline import jobs as asked
from pipeline.definition import Rate
from pipeline.errors import ConfigError
from pipeline.testing import Harness
from pipeline.worker import Limits
from pipeline.worker.circuit import Circuit


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


class Shipped(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


class Mail(Job, queue="mail", format="json"):
    n: int


class Print(Job, queue="mail", format="json"):
    n: int


class Down(Exception):
    """What the handlers depend on does not answer."""


class Dependency:
    """Up or down by the harness's clock; counts who called it, and when."""

    def __init__(self) -> None:
        self.up_from_s = 0.0
        self.calls: list[tuple[float, int]] = []
        self.harness: Harness | None = None

    @property
    def now_s(self) -> float:
        assert self.harness is not None
        return self.harness.clock.passed_s

    def call(self, n: int) -> None:
        self.calls.append((self.now_s, n))
        if self.now_s < self.up_from_s:
            raise Down


POLICY = RetryPolicy(attempts=3, first_s=1, factor=1, cap_s=1, jitter=0, uncounted=(Down,))
BREAKER = Breaker(threshold=3, window_s=60, cool_down_s=10, factor=2, cap_s=40)


# ── one circuit ────────────────────────────────────────────────────────────────────────────────────────────────


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_it_opens_at_the_threshold_cools_down_and_closes_by_a_probe_that_succeeded(time: Time) -> None:
    circuit = Circuit(Breaker(threshold=3, cool_down_s=10), time)
    for n in range(2):
        circuit.failed(n, "Down")
    assert circuit.admits(3)
    circuit.failed(3, "Down")
    assert (circuit.state, circuit.admits(4), circuit.wait_s, circuit.kind) == ("open", False, 10, "Down")
    time.now = 9.9
    assert not circuit.cool()
    time.now = 10
    assert circuit.cool()
    assert circuit.admits(4)
    assert not circuit.admits(5)  # one probe
    circuit.succeeded(4)
    assert circuit.state == "closed"
    assert circuit.admits(5)


def test_a_probe_that_is_let_go_and_has_begun_counts_once(time: Time) -> None:
    circuit = Circuit(Breaker(threshold=1, cool_down_s=10, probes=3), time)
    assert circuit.free() == 0
    circuit.failed(0, "Down")
    time.now = 10
    circuit.cool()
    assert circuit.free() == 3
    assert circuit.admits(1)
    assert circuit.free({1}) == 2
    assert circuit.free({1, 2}) == 1  # 2 is on its way
    assert circuit.admits(2)
    assert circuit.free({1, 2}) == 1
    circuit.succeeded(1)
    assert circuit.free({2}) == 1


def test_each_probe_that_fails_makes_the_cool_down_longer_up_to_the_cap_and_closing_forgets_it(time: Time) -> None:
    circuit = Circuit(Breaker(threshold=1, cool_down_s=10, factor=2, cap_s=35), time)
    waits = []
    for n in range(4):
        assert circuit.admits(n)
        circuit.failed(n, "Down")
        waits.append(circuit.wait_s)
        time.now += circuit.wait_s
        circuit.cool()
    assert waits == [10, 20, 35, 35]
    assert circuit.admits(9)
    circuit.succeeded(9)
    circuit.failed(10, "Down")
    assert circuit.wait_s == 10


def test_errors_that_are_rare_or_far_between_do_not_open_it(time: Time) -> None:
    rare = Circuit(Breaker(threshold=3, share=0.5), time)
    for n in range(300):
        rare.failed(n, "Down") if n % 10 == 0 else rare.succeeded(n)
    assert rare.state == "closed"
    far = Circuit(Breaker(threshold=3, window_s=60), time)
    for n in range(30):
        far.failed(n, "Down")
        time.now += 31
    assert far.state == "closed"
    for n in range(3):  # and these are neither
        rare.failed(n, "Down")
    assert rare.state == "open"


def test_what_ends_late_or_says_nothing_of_the_dependency_neither_opens_nor_closes_it(time: Time) -> None:
    circuit = Circuit(Breaker(threshold=1, cool_down_s=10), time)
    circuit.failed("first", "Down")
    circuit.succeeded("begun before")
    assert circuit.state == "open"
    time.now = 10
    circuit.cool()
    circuit.succeeded("begun before")
    circuit.failed("begun before", "Down")
    assert circuit.state == "half-open"
    assert circuit.admits("probe")
    circuit.passed("probe")  # an error that counts: the next one is tried
    assert (circuit.state, circuit.free()) == ("half-open", 1)
    assert circuit.admits("another")


def test_as_many_probes_as_said_must_succeed(time: Time) -> None:
    circuit = Circuit(Breaker(threshold=1, cool_down_s=10, probes=2), time)
    circuit.failed(0, "Down")
    time.now = 10
    circuit.cool()
    assert [circuit.admits(n) for n in (1, 2, 3)] == [True, True, False]
    circuit.succeeded(1)
    assert circuit.state == "half-open"
    assert not circuit.admits(3)
    circuit.succeeded(2)
    assert circuit.state == "closed"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"threshold": 0}, "threshold=0"),
        ({"window_s": 0}, "window_s=0"),
        ({"window_s": float("nan")}, "window_s=nan"),
        ({"share": 1.1}, "share=1.1"),
        ({"cool_down_s": 400}, "cool_down_s=400"),
        ({"cap_s": 100_000, "cool_down_s": 1}, "cap_s=100000"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_numbers_that_cannot_work_are_named(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Breaker(**numbers)


def test_a_breaker_that_nothing_opens_is_refused_and_uncounted_errors_bring_one_along() -> None:
    app = Pipeline("shop", topic_prefix="")
    with pytest.raises(ConfigError, match="no error that opens it"):
        app.job(Mail, breaker=Breaker(threshold=2))(lambda job, ctx: None)
    app.job(Mail, retry=POLICY)(lambda job, ctx: None)
    app.job(Print, retry=POLICY, breaker=None)(lambda job, ctx: None)
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    by_type = {h.model.message_type.name: h.breaker for g in app.groups.values() for h in g.handlers}
    assert by_type == {"Mail": Breaker(), "Print": None, "Placed": None}


# ── in workers ─────────────────────────────────────────────────────────────────────────────────────────────────


def placed_app(dependency: Dependency, awaits: bool, partitions: int = 12, **options: Any) -> Pipeline:
    app = Pipeline("shop", topic_prefix="", partitions=partitions)

    def bill(event: Placed, ctx: Context) -> None:
        dependency.call(event.n)

    async def abill(event: Placed, ctx: Context) -> None:
        await asyncio.sleep(0)
        dependency.call(event.n)

    app.consumer(Placed, group="billing", **{"retry": POLICY, "breaker": BREAKER, **options})(abill if awaits else bill)
    return app


def start(app: Pipeline, dependency: Dependency, **options: Any) -> Harness:
    harness = Harness(app, **options)
    dependency.harness = harness
    return harness


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_with_key_order_all_keys_wait_one_record_is_tried_and_then_all_go_in_order(awaits: bool, seed: int) -> None:
    dependency = Dependency()
    harness = start(placed_app(dependency, awaits), dependency, seed=seed)
    dependency.up_from_s = 25
    for n in range(40):
        harness.publish(Placed(order_id=f"o{n % 8}", n=n))
    harness.run_for(24)
    assert "breaker open after" in harness.notes["shop.billing Placed"]
    assert harness.not_ready == {}
    harness.run_until_idle()
    while_down = [at for at, _ in dependency.calls if at < 25]
    assert len([at for at in while_down if at > 1]) <= 2  # the probes, 10 s and 30 s after it opened
    assert [handled.attempt for handled in harness.handled] == [1] * 40
    assert harness.dead_letters == []
    by_key: dict[str, list[int]] = {}
    for handled in harness.handled:
        by_key.setdefault(handled.message.order_id, []).append(handled.message.n)
    assert by_key == {f"o{k}": list(range(k, 40, 8)) for k in range(8)}
    assert harness.notes == {}


@pytest.mark.parametrize("seed", range(4))
def test_jobs_wait_in_their_queue_and_burn_no_attempt(seed: int) -> None:
    dependency = Dependency()
    app = Pipeline("shop", topic_prefix="")

    @app.job(Mail, retry=POLICY, breaker=BREAKER)
    def mail(job: Mail, ctx: Context) -> None:
        dependency.call(job.n)

    harness = start(app, dependency, seed=seed)
    dependency.up_from_s = 3600
    ids = [harness.enqueue(Mail(n=n)) for n in range(200)]
    harness.run_until_idle()
    assert sorted(handled.message.n for handled in harness.handled) == list(range(200))
    assert {handled.attempt for handled in harness.handled} == {1}
    while_down = [at for at, _ in dependency.calls if at < 3600]
    assert len(while_down) < 130  # probes of an hour, and what had begun when it opened; without, each job each second
    assert {harness.job(one).state for one in ids} == {"done"}


@pytest.mark.parametrize("order", ["key", "none"])
def test_a_breaker_stops_one_type_and_not_the_other_of_the_same_queue(order: Any) -> None:
    dependency = Dependency()
    app = Pipeline("shop", topic_prefix="")
    printed: Counter[int] = Counter()

    @app.job(Mail, retry=POLICY, breaker=BREAKER, order=order)
    def mail(job: Mail, ctx: Context) -> None:
        dependency.call(job.n)

    @app.job(Print)
    def print_(job: Print, ctx: Context) -> None:
        printed[job.n] += 1

    # far more mails than a worker keeps: those beyond move aside when there is no order, or pause their partition
    harness = start(app, dependency, limits=Limits(concurrency=4, records=60, backlog=5, drain_s=5))
    dependency.up_from_s = 120
    for n in range(100):
        harness.enqueue(Mail(n=n))
    for n in range(50):
        harness.enqueue(Print(n=n))
    harness.run_for(60)
    if order == "none":
        assert len(printed) == 50
    harness.run_until_idle()
    assert len(printed) == 50
    assert sorted(h.message.n for h in harness.handled if isinstance(h.message, Mail)) == list(range(100))
    assert {h.attempt for h in harness.handled} == {1}


def test_topics_of_other_handlers_of_the_group_go_on() -> None:
    class Paid(Event, aggregate="payment", key="order_id", format="json"):
        order_id: str
        n: int

    dependency = Dependency()
    app = placed_app(dependency, awaits=False)
    paid: list[int] = []
    app.consumer(Paid, group="billing")(lambda event, ctx: paid.append(event.n))
    harness = start(app, dependency, limits=Limits(concurrency=4, records=60, backlog=20, drain_s=5))
    dependency.up_from_s = 100
    for n in range(300):
        harness.publish(Placed(order_id=f"o{n}", n=n))
    harness.run_for(5)
    for n in range(200):
        harness.publish(Paid(order_id=f"p{n}", n=n))
    harness.run_for(5)
    assert len(paid) == 200
    harness.run_until_idle()
    assert len(harness.handled) == 500


def test_of_two_types_in_order_by_key_the_second_waits_behind_the_first() -> None:
    dependency = Dependency()
    app = placed_app(dependency, awaits=False)
    app.consumer(Shipped, group="billing")(lambda event, ctx: None)
    harness = start(app, dependency)
    dependency.up_from_s = 30
    for n in range(4):
        harness.publish(Placed(order_id="a", n=n))
        harness.publish(Shipped(order_id="a", n=n))
    harness.publish(Shipped(order_id="b", n=9))
    harness.run_for(20)
    assert [(type(h.message).__name__, h.message.n) for h in harness.handled] == [("Shipped", 9)]
    harness.run_until_idle()
    assert [h.message.n for h in harness.handled if h.message.order_id == "a"] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("seed", range(3))
def test_behind_keys_that_wait_for_a_breaker_no_more_is_kept_than_may_be_in_flight(seed: int) -> None:
    dependency = Dependency()
    app = placed_app(dependency, awaits=False, partitions=1)
    most = 0

    @app.consumer(Shipped, group="billing")
    def ship(event: Shipped, ctx: Context) -> None: ...

    harness = start(app, dependency, seed=seed, limits=Limits(concurrency=4, records=600, backlog=100, drain_s=5))
    dependency.up_from_s = 30
    for n in range(3_000):
        harness.publish((Placed if n % 2 else Shipped)(order_id=f"o{n % 45}", n=n))
    worker = harness._fleet._members[0].worker
    for _ in range(29):
        harness.run_for(1)
        most = max(most, worker._in_flight.records)
    assert most <= 600 + 100 + 200  # one poll may bring more than there is room for
    harness.run_until_idle()
    assert len(harness.handled) == 3_000
    assert worker._holding.behind == {}


def test_verdicts_and_errors_that_count_go_on_to_the_next_record_and_do_not_close_it() -> None:
    app = Pipeline("shop", topic_prefix="")
    begun: list[int] = []
    state = {"down": True}

    @app.consumer(Placed, group="billing", retry=POLICY, breaker=BREAKER)
    def bill(event: Placed, ctx: Context) -> None:
        begun.append(event.n)
        if state["down"]:
            raise Down
        if event.n == 0:
            raise Reject("never")
        if event.n == 1 and ctx.attempt == 1:
            raise RetryLater(5)

    harness = Harness(app)
    for n in range(6):
        harness.publish(Placed(order_id=f"o{n}", n=n))
    harness.run_for(5)
    state["down"] = False
    harness.run_until_idle()
    assert sorted(h.message.n for h in harness.handled) == [1, 2, 3, 4, 5]
    assert [dead.message.n for dead in harness.dead_letters] == [0]
    assert harness.notes == {}


def test_with_an_inbox_and_in_a_process_it_is_the_same() -> None:
    for options in ({"inbox": True}, {"process": True}):
        dependency = Dependency()
        app = Pipeline("shop", topic_prefix="")

        def bill(event: Placed, ctx: Context, dependency: Dependency = dependency) -> None:
            dependency.call(event.n)

        bill.__qualname__ = "bill"  # processes import their handlers by name; the harness runs them in-line
        app.consumer(Placed, group="billing", retry=POLICY, breaker=BREAKER, **options)(bill)
        harness = start(app, dependency)
        dependency.up_from_s = 25
        for n in range(20):
            harness.publish(Placed(order_id=f"o{n}", n=n))
        harness.run_until_idle()
        assert len(harness.handled) == 20
        assert len([at for at, _ in dependency.calls if 1 < at < 25]) <= 2


@pytest.mark.parametrize("disturb", [Harness.rebalance, Harness.crash])
@pytest.mark.parametrize("seed", range(4))
def test_what_waits_for_a_breaker_is_handed_over_and_repeated_after_a_crash(
    disturb: Callable[[Harness], None], seed: int
) -> None:
    dependency = Dependency()
    limits = Limits(concurrency=8, records=200, backlog=20, drain_s=5, unclean_ends=100)
    harness = start(placed_app(dependency, awaits=False), dependency, seed=seed, limits=limits)
    dependency.up_from_s = 25
    for n in range(30):
        harness.publish(Placed(order_id=f"o{n % 6}", n=n))
    for _ in range(4):
        harness.run_for(3)
        disturb(harness)
    harness.run_until_idle()
    assert {handled.message.n for handled in harness.handled} == set(range(30))
    for key in range(6):
        mine = [h.message.n for h in harness.handled if h.message.order_id == f"o{key}"]
        assert list(dict.fromkeys(mine)) == list(range(key, 30, 6))
    assert harness.dead_letters == []


def test_a_paused_queue_is_not_probed_and_a_rate_holds_for_what_waited() -> None:
    dependency = Dependency()
    app = Pipeline("shop", topic_prefix="")
    app.queue("mail", rate=Rate(2, per_s=1))

    @app.job(Mail, retry=POLICY, breaker=BREAKER)
    def mail(job: Mail, ctx: Context) -> None:
        dependency.call(job.n)

    harness = start(app, dependency)
    dependency.up_from_s = 20
    for n in range(20):
        harness.enqueue(Mail(n=n))
    harness.run_for(5)
    harness.run(asked.pause("shop.jobs.mail"))
    harness.run_for(1)
    calls = len(dependency.calls)
    harness.run_for(60)
    assert len(dependency.calls) == calls
    harness.run(asked.resume("shop.jobs.mail"))
    harness.run_until_idle()
    assert len(harness.handled) == 20
    ends = [at for at, _ in dependency.calls if at > 60]
    assert ends[-1] - ends[0] >= (len(ends) - 3) / 2
