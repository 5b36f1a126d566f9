"""The worker's promises, on the broker in memory, whatever fails in whatever order.

Nothing is lost: what is committed was handled, or its copy is on a retry topic or the DLQ. One key's events are first
handled in the order in which they were published. Attempts are counted, over restarts and topics.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from confluent_kafka import KafkaError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline import Breaker, Context, Event, Job, Pipeline, Reject, RetryPolicy
from pipeline.errors import BrokerError
from pipeline.headers import EVENT_ID
from pipeline.kafka.errors import translate
from pipeline.progress import Progress
from pipeline.testing import Faults, Harness
from pipeline.worker import Limits

FOR_EVER = 99
ATTEMPTS = {"e.ledger": 4, "e.audit": 3, "e.jobs.work": 4}
LIMITS = Limits(concurrency=4, records=12, backlog=3, drain_s=2, unclean_ends=10_000)

fails_first = st.sampled_from([0, 0, 0, 1, 2, 3, 6, FOR_EVER])  # 3 exhausts one group, 6 all; for ever is rejected
faults = st.builds(
    Faults,
    crash=st.sampled_from([0, 0.02, 0.1]),
    rebalance=st.sampled_from([0, 0.05]),
    expel=st.sampled_from([0, 0.05]),
    duplicate=st.sampled_from([0, 0.1]),
    refuse=st.sampled_from([0, 0.4]),
    outage=st.sampled_from([0, 0.03]),
    slow=st.sampled_from([0, 0.3]),
)


class Down(Exception):
    """What the handlers depend on does not answer."""


class Workers(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), faults=faults, workers=st.integers(1, 3))
    def begin(self, seed: int, faults: Faults, workers: int) -> None:
        app = Pipeline("e", topic_prefix="", partitions=2)
        self.calls: dict[tuple[str, str], list[int]] = defaultdict(list)  # group, id → attempts as they were made
        self.effects: dict[str, list[str]] = defaultdict(list)  # group → ids, as they were handled
        self.wanted: dict[str, tuple[str, int]] = {}  # id → key, how often it fails
        self.jobs: set[str] = set()
        self.down = False

        class Entry(Event, aggregate="account", key="account", format="json"):
            account: str
            fails: int

        class Work(Job, queue="work", format="json"):
            fails: int

        def attempt(message: Entry | Work, ctx: Context) -> None:
            if self.down:
                raise Down
            self.calls[ctx.group, ctx.event_id].append(ctx.attempt)
            if message.fails >= ctx.attempt:
                raise Reject("never") if message.fails == FOR_EVER and ctx.attempt == 2 else ValueError("not yet")
            self.effects[ctx.group].append(ctx.event_id)

        retry = RetryPolicy(attempts=4, first_s=1, factor=10, cap_s=3600, jitter=0.5, uncounted=(Down,))
        breaker = Breaker(threshold=2, cool_down_s=5)
        app.consumer(Entry, group="ledger", retry=retry, breaker=breaker)(attempt)
        app.job(Work, retry=retry, breaker=breaker)(attempt)

        async def later(message: Entry, ctx: Context) -> None:
            attempt(message, ctx)

        audit = RetryPolicy(attempts=3, first_s=30, factor=1, uncounted=(Down,))
        app.consumer(Entry, group="audit", retry=audit, breaker=breaker)(later)
        self.entry, self.work = Entry, Work
        self.harness = Harness(app, seed=seed, faults=faults, workers=workers, limits=LIMITS)

    @rule(account=st.sampled_from("abc"), fails=fails_first)
    def publish(self, account: str, fails: int) -> None:
        event_id = self.harness.publish(self.entry(account=account, fails=fails))
        self.wanted[str(event_id)] = (account, fails)

    @rule(fails=fails_first, delay_s=st.sampled_from([0, 0, 5, 7200]))
    def enqueue(self, fails: int, delay_s: int) -> None:
        job_id = str(self.harness.enqueue(self.work(fails=fails), delay_s=delay_s))
        self.wanted[job_id] = ("", fails)
        self.jobs.add(job_id)

    @rule(seconds=st.sampled_from([0.01, 0.3, 2, 40]))
    def pass_time(self, seconds: float) -> None:
        self.harness.run_for(seconds)

    @rule(group=st.sampled_from([None, *ATTEMPTS]))
    def crash(self, group: str | None) -> None:
        self.harness.crash(group)

    @rule(down=st.booleans())
    def what_handlers_depend_on(self, down: bool) -> None:
        self.down = down

    @rule()
    def rebalance(self) -> None:
        self.harness.rebalance()

    @rule(count=st.integers(1, 5))
    def relay_restarts(self, count: int) -> None:
        self.harness.duplicate(count)

    @rule(topic=st.sampled_from(["outbox.event.account", "e.jobs.work"]), partition=st.integers(0, 1))
    def hole(self, topic: str, partition: int) -> None:
        self.harness.broker.skip(topic, partition, 3)

    @rule()
    @precondition(lambda self: self.harness.dead_letters)
    def redrive(self) -> None:
        if not self.harness.broker.down:
            self.harness.redrive()

    @rule()
    def poison(self) -> None:
        headers = [("id", f"poison-{len(self.wanted)}"), ("type", "Entry")]
        if not self.harness.broker.down:
            self.harness.broker.append("outbox.event.account", b"a", b"not JSON", headers)
            self.wanted[f"poison-{len(self.wanted)}"] = ("", FOR_EVER)

    @invariant()
    def what_is_committed_is_safe(self) -> None:
        if not hasattr(self, "harness"):
            return
        broker = self.harness.broker
        for group in self.harness.app.groups.values():
            safe = set(self.effects[group.name]) | self.ids(*group.retry_topics, group.dlq)
            for (topic, partition), committed in broker.group(group.name).committed.items():
                if topic in group.topics:
                    progress = Progress.read(committed)
                    settled = {id_of(r) for r in broker.records(topic, partition) if progress.settled(r.offset)}
                    assert settled <= safe, f"{group.name}: committed and lost"

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.down = False
        self.harness.run_until_idle(limit_s=40_000)
        self.what_is_committed_is_safe()
        dead = {(letter.group, letter.event_id) for letter in self.harness.dead_letters}
        for event_id, (_, fails) in self.wanted.items():
            for group in ("e.jobs.work",) if event_id in self.jobs else ("e.ledger", "e.audit"):
                handled = event_id in self.effects[group]
                assert handled == (fails < ATTEMPTS[group]), "handled exactly when an attempt could succeed"
                assert handled or (group, event_id) in dead, "lost"
                self.attempts_are_counted(group, event_id)
        self.keys_are_in_order()

    def attempts_are_counted(self, group: str, event_id: str) -> None:
        calls = self.calls[group, event_id]
        seen: set[int] = set()
        for attempt in calls:
            assert attempt == 1 or attempt - 1 in seen, f"attempt {attempt} without one before: {calls}"
            seen.add(attempt)
        assert max(seen, default=1) <= ATTEMPTS[group]

    def keys_are_in_order(self) -> None:
        for group in ("e.ledger", "e.audit"):
            first = list(dict.fromkeys(self.effects[group]))
            for key in "abc":
                published = [event_id for event_id, (account, _) in self.wanted.items() if account == key]
                handled = [event_id for event_id in first if self.wanted[event_id][0] == key]
                assert handled == [event_id for event_id in published if event_id in handled], f"{group}: {key}"

    def ids(self, *topics: str) -> set[str]:
        return {id_of(record) for topic in topics for record in self.harness.broker.records(topic)}


def id_of(record: object) -> str:
    return dict(record.headers)[EVENT_ID].decode()  # type: ignore[attr-defined]


def test_settlement_survives_every_order_of_faults() -> None:
    run_state_machine_as_test(
        Workers,
        settings=settings(max_examples=60, stateful_step_count=20, suppress_health_check=list(HealthCheck)),
    )


def test_a_refusing_dlq_stops_the_worker_and_commits_nothing_past_it() -> None:
    app = Pipeline("e", topic_prefix="", partitions=1)

    class Task(Job, queue="work", format="json"):
        number: int

    @app.job(Task)
    def never(_task: Task, _ctx: Context) -> None:
        raise Reject("never")

    harness = Harness(app)
    harness.broker.refusals["e.jobs.work.dlq"] = BrokerError("Kafka: not allowed")
    harness.enqueue(Task(number=1))
    with pytest.raises(BrokerError, match="cannot be stored on the DLQ"):
        harness.run_until_idle()
    assert harness.open == {"e.jobs.work": 1}
    harness.broker.refusals.clear()
    harness.run_until_idle()
    assert len(harness.dead_letters) == 1


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "grant this user WRITE"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, "grant this user WRITE on the topics"),
        (KafkaError.SASL_AUTHENTICATION_FAILED, "check the user and password"),
    ],
)
def test_what_the_broker_does_not_let_this_user_do_is_said_and_waited_for_and_kills_no_record(
    code: int, remedy: str
) -> None:
    app = Pipeline("e", topic_prefix="", partitions=1)

    class Task(Job, queue="work", format="json"):
        reject: bool

    @app.job(Task, retry=RetryPolicy(attempts=2, first_s=1))
    def second_time(task: Task, ctx: Context) -> None:
        if task.reject:
            raise Reject("never")
        if ctx.attempt == 1:
            raise ValueError("not yet")

    harness = Harness(app)
    for topic in ("e.jobs.work.retry.0s", "e.jobs.work.retry.1s", "e.jobs.work.dlq"):
        harness.broker.refusals[topic] = translate(KafkaError(code), f"topic {topic}", right="WRITE")
    harness.enqueue(Task(reject=False))
    harness.run_for(60)
    assert KafkaError(code).str() in harness.not_ready["e.jobs.work retry topics"]
    assert (harness.open, harness.handled, harness.broker.records("e.jobs.work.dlq")) == ({"e.jobs.work": 1}, [], [])

    harness.enqueue(Task(reject=True))
    with pytest.raises(BrokerError, match="cannot be stored on the DLQ") as raised:  # it could go nowhere else
        harness.run_for(60)
    assert remedy in raised.value.remedy
    assert harness.open == {"e.jobs.work": 2}

    harness.broker.refusals.clear()
    harness.run_until_idle()
    assert [one.message for one in harness.handled] == [Task(reject=False)]
    assert [one.message for one in harness.dead_letters] == [Task(reject=True)]
    assert harness.not_ready == {}


@pytest.mark.parametrize("seed", range(12))
def test_a_failure_that_ends_after_its_partition_was_lost_holds_no_key_back(seed: int) -> None:
    app = Pipeline("e", topic_prefix="", partitions=1)

    class Entry(Event, aggregate="account", key="account", format="json"):
        account: str
        number: int

    @app.consumer(Entry, group="ledger", retry=RetryPolicy(attempts=3, first_s=1))
    def handle(_entry: Entry, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("not yet")

    harness = Harness(app, seed=seed, faults=Faults(expel=0.2, slow=0.5))
    for number in range(10):
        harness.publish(Entry(account="a", number=number))
    harness.run_until_idle(limit_s=10_000)
    assert {one.message for one in harness.handled} == {Entry(account="a", number=number) for number in range(10)}
    assert harness.faults["expel"] > 0


@pytest.mark.parametrize("awaits", [False, True])
def test_behind_a_key_that_fails_again_and_again_no_more_is_kept_than_its_bound(awaits: bool) -> None:
    app = Pipeline("e", topic_prefix="", partitions=1)
    most = 0

    class Entry(Event, aggregate="account", key="account", format="json"):
        account: str

    def handle(_entry: Entry, ctx: Context) -> None:
        nonlocal most
        most = max(most, harness._fleet._members[0].worker._in_flight.records)
        if ctx.attempt == 1:
            raise ValueError("not yet")

    async def ahandle(entry: Entry, ctx: Context) -> None:
        handle(entry, ctx)

    app.consumer(Entry, group="ledger", retry=RetryPolicy(attempts=3, first_s=1))(ahandle if awaits else handle)
    harness = Harness(app, limits=Limits(concurrency=4, records=10_000, backlog=20, drain_s=5))
    for _ in range(600):
        harness.publish(Entry(account="a"))
    harness.run_until_idle(limit_s=100_000)
    assert len(harness.handled) == 600
    assert most <= 20 + 200  # one poll may bring more than there is room for


@pytest.mark.parametrize("seed", range(5))
def test_what_a_retry_topic_refuses_for_now_is_sent_again_without_a_restart(seed: int) -> None:
    app = Pipeline("e", topic_prefix="")

    class Task(Job, queue="work", format="json"):
        number: int

    @app.job(Task)
    def second_time(_task: Task, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("not yet")

    harness = Harness(app, seed=seed, faults=Faults(refuse=0.5))
    for number in range(8):
        harness.enqueue(Task(number=number))
    harness.run_until_idle(limit_s=10_000)
    assert sorted(one.message.number for one in harness.handled if isinstance(one.message, Task)) == list(range(8))
    assert harness.faults["refuse"] > 0
    assert harness.faults["crash"] == 0
