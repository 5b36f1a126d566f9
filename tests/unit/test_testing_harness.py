"""What users' tests can do with ``pipeline.testing``: the tutorial's application, and every promise of the harness."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline import Context, Event, Job, Money, Outbox, Personal, Pipeline, Reject, RetryLater, RetryPolicy
from pipeline.demo import shop
from pipeline.errors import ConfigError, JobError, SchemaError
from pipeline.job import Unique
from pipeline.record import Record
from pipeline.subject import SubjectStrategy
from pipeline.testing import FakeConnection, Faults, Harness, NotIdle, assert_enqueued, assert_published
from pipeline.testing.murmur import partition_of

app = Pipeline("store", topic_prefix="")


class Paid(Event, aggregate="payment", key="order_id"):
    order_id: str
    total: Money


class Mail(Job, queue="mail"):
    address: Personal[str]


@app.consumer(Paid, group="books", retry=RetryPolicy(attempts=3, first_s=60, factor=60, cap_s=3600))
def book(event: Paid, ctx: Context) -> None:
    if event.order_id == "late" and ctx.attempt < 3:
        raise TimeoutError("the ledger is closed")
    if event.order_id == "bad":
        raise Reject("no such account")


@app.job(Mail, retry=RetryPolicy(attempts=20, first_s=5, factor=4, cap_s=600))
async def mail(job: Mail, ctx: Context) -> None:
    if job.address.startswith("down"):
        raise ConnectionError("the mail server does not answer")
    if job.address.startswith("busy") and ctx.attempt == 1:
        raise RetryLater(7200)


def paid(order_id: str) -> Paid:
    return Paid(order_id=order_id, total=Decimal("9.90"))


# ── the tutorial ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tutorial(monkeypatch: pytest.MonkeyPatch) -> Harness:
    harness = Harness(shop.app)
    bank = harness.connection()
    bank.answer("FROM bank", [])
    monkeypatch.setattr(shop, "connection", lambda: bank)
    monkeypatch.setattr(harness, "bank", bank, raising=False)
    return harness


def test_the_tutorial_is_tested_by_a_user_without_waiting(tutorial: Harness) -> None:
    with tutorial.connection() as conn:
        shop.place_order(conn, "o-1", "ada", Decimal("9.90"))  # type: ignore[arg-type]  # shaped as psycopg's
        shop.place_order(conn, "o-2", "hasty", Decimal("9.90"))  # type: ignore[arg-type]
        shop.place_order(conn, "o-3", "nobody", Decimal("9.90"))  # type: ignore[arg-type]
    tutorial.run_until_idle()
    assert 0.15 <= tutorial.clock.passed_s < 10  # by its own clock: the first retry, with jitter, and looks at it
    assert len(tutorial.handled) == 5
    assert [(retry.error, retry.attempt) for retry in tutorial.retries if retry.group == "shop.billing"] == [
        ("TimeoutError", 1)
    ]
    [dead] = tutorial.dead_letters
    assert (dead.message, dead.error) == (
        shop.SendReceipt(order_id="o-3", address="nobody@example.org"),
        "pipeline.retry.Reject",
    )
    bank: FakeConnection = tutorial.bank  # type: ignore[attr-defined]
    assert sum("INSERT INTO payments" in sql for sql, _ in bank.executed) == 3


def test_a_rolled_back_order_is_never_seen(tutorial: Harness) -> None:
    with suppress(ZeroDivisionError), tutorial.connection() as conn:
        shop.place_order(conn, "o-1", "ada", Decimal("9.90"))  # type: ignore[arg-type]
        _ = 1 / 0
    tutorial.run_until_idle()
    assert (tutorial.published, tutorial.handled) == ([], [])


@pytest.mark.parametrize("strategy", ["TopicNameStrategy", "RecordNameStrategy"])
def test_schemas_are_at_hand_under_every_subject_strategy(strategy: SubjectStrategy) -> None:
    own = Pipeline("store", topic_prefix="", subject_strategy=strategy)
    seen: list[str] = []
    own.consumer(Paid, group="books")(lambda event, ctx: seen.append(event.order_id))
    own.job(Mail)(lambda job, ctx: seen.append(job.address))
    harness = Harness(own)
    harness.publish(paid("7"))
    harness.enqueue(Mail(address="ada"), delay_s=60)
    harness.run_until_idle()
    assert seen == ["7", "ada"]


# ── time ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hours_of_back_off_pass_at_once_and_are_as_long_as_the_policy_says() -> None:
    harness = Harness(app)
    harness.publish(paid("late"))
    harness.enqueue(Mail(address="down@example.org"))
    harness.run_until_idle()
    waits = [retry.delay_s for retry in harness.retries if isinstance(retry.message, Mail)]
    assert waits == [5, 20, 80, 320, *[600] * 15]
    [dead] = harness.dead_letters
    assert (dead.attempts, dead.error, dead.text) == (20, "ConnectionError", "the mail server does not answer")
    assert sum(waits) <= harness.clock.passed_s < sum(waits) * 1.2
    assert [one.attempt for one in harness.handled] == [3]


def test_a_handler_that_asks_for_two_hours_gets_them() -> None:
    harness = Harness(app)
    harness.enqueue(Mail(address="busy@example.org"))
    harness.run_for(7100)
    assert harness.handled == []
    harness.run_until_idle()
    [handled] = harness.handled
    assert handled.attempt == 2
    assert handled.at - datetime(2030, 1, 1, tzinfo=UTC) >= timedelta(hours=2)


def test_delayed_jobs_come_when_they_are_due() -> None:
    harness = Harness(app)
    harness.enqueue(Mail(address="a@example.org"), delay_s=3600)
    harness.enqueue(Mail(address="b@example.org"), run_at=harness.clock.now + timedelta(days=1))
    assert harness.open == {"delayed": 2}
    harness.run_for(3599)
    assert harness.handled == []
    harness.run_for(2)
    assert len(harness.handled) == 1
    harness.run_until_idle()
    assert len(harness.handled) == 2
    assert harness.clock.passed_s < 86_410


def test_sleeping_and_timeouts_of_coroutines_take_no_time() -> None:
    own = Pipeline("own", topic_prefix="")

    class Slow(Job, queue="slow", format="json"):
        seconds: float

    @own.job(Slow, timeout_s=3000, retry=RetryPolicy(attempts=1))
    async def slow(job: Slow, _ctx: Context) -> None:
        await asyncio.sleep(job.seconds)

    harness = Harness(own)
    harness.enqueue(Slow(seconds=2900))
    harness.enqueue(Slow(seconds=3100))
    harness.run_until_idle()
    assert [one.message for one in harness.handled] == [Slow(seconds=2900)]
    assert [one.error for one in harness.dead_letters] == ["TimeoutError"]


def test_coroutines_that_wait_for_a_thread_wait_for_it_in_real_time() -> None:
    own, go = Pipeline("own", topic_prefix=""), threading.Event()

    class Blocking(Job, queue="slow", format="json"):
        pass

    @own.job(Blocking, timeout_s=60, retry=RetryPolicy(attempts=1))
    async def blocking(_job: Blocking, _ctx: Context) -> None:
        threading.Timer(0.05, go.set).start()
        await asyncio.to_thread(go.wait, 30)

    harness = Harness(own)
    harness.enqueue(Blocking())
    harness.run_until_idle()
    assert go.is_set()
    assert len(harness.handled) == 1


def test_async_tests_share_their_loop_with_the_handlers() -> None:
    own, loops = Pipeline("own", topic_prefix=""), []

    class Ask(Job, queue="ask", format="json"):
        pass

    @own.job(Ask)
    async def ask(_job: Ask, _ctx: Context) -> None:
        loops.append(asyncio.get_running_loop())

    async def test() -> None:
        harness = Harness(own)
        async with harness.aconnection() as conn:
            await own.aenqueue(conn, Ask())
        with pytest.raises(ConfigError, match="arun_until_idle"):
            harness.run_until_idle()
        harness = Harness(own)
        harness.enqueue(Ask())
        await harness.arun_until_idle()
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(test())


def test_a_record_that_circulates_for_ever_is_reported() -> None:
    own = Pipeline("own", topic_prefix="")

    class Never(Job, queue="never", format="json"):
        pass

    @own.job(Never)
    def never(_job: Never, _ctx: Context) -> None:
        raise RetryLater(600, counted=False)

    harness = Harness(own)
    harness.enqueue(Never())
    with pytest.raises(NotIdle, match=r"own\.jobs\.never"):
        harness.run_until_idle(limit_s=86_400)


# ── what is encoded and stored ─────────────────────────────────────────────────────────────────────────────────────


def test_a_payload_that_does_not_fit_fails_here_too() -> None:
    harness = Harness(app)
    wrong = Paid.model_construct(order_id="o-1", total=Decimal("1.234"))
    with pytest.raises(SchemaError, match="'total'"):
        harness.publish(wrong)
    assert harness.published == []


def test_ids_of_tests_are_not_remembered_by_the_application() -> None:
    own = Pipeline("own", topic_prefix="")
    own.register(Paid)
    own.publish(FakeConnection(own), paid("o-1"))
    assert own._schema_ids._known == {}


def test_classes_of_one_name_in_several_modules_are_told_apart() -> None:
    def same() -> tuple[Pipeline, type[Event]]:
        own = Pipeline("own", topic_prefix="")

        class Moved(Event, aggregate="thing", key="place"):
            place: str

        @own.consumer(Moved, group="g")
        def handle(_event: Moved, _ctx: Context) -> None: ...

        own.register(Paid)
        return own, Moved

    (_, _), (own, moved), (_, _) = same(), same(), same()
    harness = Harness(own)
    harness.publish(paid("o-1"))
    harness.publish(moved(place="here"))
    harness.publish(paid("o-2"))
    harness.run_until_idle()
    assert harness.messages(moved) == [moved(place="here")]
    assert [type(one.message) for one in harness.handled] == [moved]


def test_unique_jobs_are_kept_rejected_and_replaced() -> None:
    harness, unique = Harness(app), Unique(key="one")
    first = harness.enqueue(Mail(address="a@example.org"), unique=unique, delay_s=60)
    assert harness.enqueue(Mail(address="b@example.org"), unique=unique) == first
    with pytest.raises(JobError):
        harness.enqueue(Mail(address="c@example.org"), unique=Unique(key="one", on_conflict="reject"))
    harness.enqueue(Mail(address="d@example.org"), unique=Unique(key="one", on_conflict="replace"))
    harness.run_until_idle()
    assert [one.message for one in harness.handled] == [Mail(address="d@example.org")]
    assert harness.enqueue(Mail(address="e@example.org"), unique=unique) not in {first}
    harness.run_until_idle()
    assert len(harness.handled) == 2


def test_savepoints_roll_back_what_was_published_in_them() -> None:
    harness = Harness(app)
    with harness.connection() as conn:
        app.publish(conn, paid("kept"))
        with suppress(ZeroDivisionError), conn.transaction():
            app.publish(conn, paid("dropped"))
            _ = 1 / 0
        app.publish(conn, paid("kept too"))
    assert [one.order_id for one in harness.messages(Paid)] == ["kept", "kept too"]


def test_a_table_of_ones_own_is_written_to_in_tests_too() -> None:
    table = Outbox(
        "public", "event log", columns={"id": "event_id", "topic": None, "headers": None}, extra={"by": "me"}
    )
    own = Pipeline("own", outbox=table, topic_prefix="")
    seen = []
    own.consumer(Paid, group="books")(lambda event, _ctx: seen.append(event))
    harness = Harness(own)
    harness.publish(paid("o-1"))
    harness.run_until_idle()
    assert seen == [paid("o-1")]


def test_rows_that_do_not_stay_are_published_and_looked_at_in_tests_too() -> None:
    own = Pipeline("own", outbox=Outbox(retain="none", slots=("a", "b")), topic_prefix="")
    seen = []
    own.consumer(Paid, group="books")(lambda event, _ctx: seen.append(event))
    harness = Harness(own)
    with harness.connection() as conn:
        own.publish(conn, paid("o-1"))
        own.enqueue(conn, Mail(address="ada"))
        assert_published(conn, Paid, order_id="o-1")
        assert_enqueued(conn, Mail)
    harness.run_until_idle()
    assert seen == [paid("o-1")]


def test_a_fake_connection_answers_as_psycopg_does() -> None:
    conn = Harness(app).connection()
    conn.answer("FROM customers", [(1, "ada"), (2, "bob"), (3, "eve"), (4, "joe")])
    with conn.cursor() as cursor:
        cursor.execute("SELECT id, name FROM customers WHERE id > %s", (0,))
        assert (cursor.rowcount, cursor.fetchone(), cursor.fetchmany(2)) == (4, (1, "ada"), [(2, "bob"), (3, "eve")])
        assert (cursor.fetchall(), cursor.fetchone()) == ([(4, "joe")], None)
        cursor.executemany("UPDATE orders SET paid = %s", [(True,), (False,)])
    assert list(conn.execute("SELECT FROM customers"))[-1] == (4, "joe")
    assert [params for _, params in conn.executed] == [(0,), (True,), (False,), None]


def test_an_async_fake_connection_answers_as_psycopg_does() -> None:
    async def run() -> None:
        async with Harness(app).aconnection() as conn:
            conn.sync.answer("FROM customers", [(1, "ada"), (2, "bob"), (3, "eve")])
            async with conn.cursor() as cursor:
                await cursor.execute("SELECT FROM customers")
                assert (cursor.rowcount, await cursor.fetchone()) == (3, (1, "ada"))
                assert (await cursor.fetchmany(1), await cursor.fetchall()) == ([(2, "bob")], [(3, "eve")])
                await cursor.executemany("UPDATE orders SET paid = %s", [(True,), (False,)])
            assert [row async for row in await conn.execute("SELECT FROM customers")][-1] == (3, "eve")
            assert len(conn.sync.executed) == 4

    asyncio.run(run())


def test_assertions_look_into_the_open_transaction() -> None:
    conn = FakeConnection(app)
    app.publish(conn, paid("o-1"))
    app.enqueue(conn, Mail(address="a@example.org"), delay_s=60)
    assert assert_published(conn, Paid, order_id="o-1") == [paid("o-1")]
    assert_enqueued(conn, Mail, times=1)
    with pytest.raises(AssertionError, match=r"none of Paid\(order_id='o-2'\).*\n.*'o-1'"):
        assert_published(conn, Paid, order_id="o-2")
    with pytest.raises(ConfigError, match="no field colour"):
        assert_published(conn, Paid, colour="red")
    conn.rollback()
    with pytest.raises(AssertionError, match="nothing"):
        assert_published(conn, Paid)


def test_a_statement_that_is_not_known_is_an_error() -> None:
    from pipeline.errors import SourceError
    from pipeline.outbox import Statement

    with pytest.raises(SourceError, match="does not know this statement"):
        FakeConnection(app).store(Statement("DELETE FROM pipeline.outbox", [()]))


# ── faults ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> list[Any]:
        harness = Harness(app, seed=seed, faults=Faults(crash=0.1, rebalance=0.1, duplicate=0.2, slow=0.3), workers=2)
        for number in range(20):
            harness.publish(paid(f"o-{number}"))
            harness.enqueue(Mail(address=f"{'busy' if number % 3 else 'a'}-{number}@example.org"))
        harness.run_until_idle()
        return [harness.faults, harness.clock.passed_s, [(h.message, h.attempt, h.at) for h in harness.handled]]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1)[0]["crash"] > 0


def test_a_crash_repeats_and_loses_nothing() -> None:
    harness = Harness(app)
    for number in range(10):
        harness.publish(paid(f"o-{number}"))
    harness.run_for(0)
    handled = len(harness.handled)
    harness.crash("books")
    harness.run_until_idle()
    assert {one.message.order_id for one in harness.handled if isinstance(one.message, Paid)} == {
        f"o-{number}" for number in range(10)
    }
    assert len(harness.handled) > max(handled, 9)


@pytest.mark.parametrize("awaits", [False, True], ids=["function", "coroutine"])
def test_a_handler_with_an_inbox_has_its_effects_once_whatever_happens(awaits: bool) -> None:
    class Billed(Event, aggregate="billed", key="order_id", name=f"Billed{awaits}"):
        order_id: str

    class Ordered(Event, aggregate="ordered", key="order_id", name=f"Ordered{awaits}"):
        order_id: str

    shop = Pipeline("till", topic_prefix="")
    shop.register(Billed)
    declare = shop.consumer(Ordered, group="billing", inbox=True, retry=RetryPolicy(attempts=9, first_s=1))
    if awaits:

        async def abill(event: Ordered, ctx: Context) -> None:
            await shop.apublish(ctx.conn, Billed(order_id=event.order_id))
            if ctx.attempt == 1:
                raise TimeoutError

        declare(abill)
    else:

        def bill(event: Ordered, ctx: Context) -> None:
            shop.publish(ctx.conn, Billed(order_id=event.order_id))
            if ctx.attempt == 1:
                raise TimeoutError

        declare(bill)
    harness = Harness(shop, seed=3, faults=Faults(crash=0.02, duplicate=0.2, rebalance=0.02))
    for number in range(50):
        harness.publish(Ordered(order_id=f"o-{number}"))
    harness.run_until_idle()
    billed = [row.message.order_id for row in harness.published if isinstance(row.message, Billed)]
    assert sorted(billed) == sorted(f"o-{number}" for number in range(50))
    assert harness.inbox.repeats > 0
    assert harness.dead_letters == []


@pytest.mark.parametrize("awaits", [False, True], ids=["function", "coroutine"])
def test_middleware_goes_around_every_attempt_and_handlers_find_their_state(awaits: bool) -> None:
    class Rung(Event, aggregate="rung", key="n", name=f"Rung{awaits}", format="json"):
        n: int

    bells, told = Pipeline("bells", topic_prefix=""), []

    @bells.middleware
    def outer(message: Rung, ctx: Context) -> Iterator[None]:
        told.append(f"outer {ctx.attempt}")
        try:
            yield
        except TimeoutError:
            told.append("outer saw it")
            raise
        told.append("outer after")

    @bells.middleware
    def inner(message: Rung, ctx: Context) -> Iterator[None]:
        if message.n == 3 and ctx.attempt == 1:
            raise TimeoutError
        with suppress(LookupError):  # who does not raise it again settles the record
            yield
        if message.n == 4 and ctx.attempt == 1:
            raise TimeoutError

    def ring(event: Rung, ctx: Context) -> None:
        told.append(ctx.state.bell)
        if event.n == 1 and ctx.attempt == 1:
            raise TimeoutError
        if event.n == 2:
            raise LookupError

    async def aring(event: Rung, ctx: Context) -> None:
        ring(event, ctx)

    if awaits:

        @bells.middleware
        async def innermost(message: Rung, ctx: Context) -> AsyncIterator[None]:
            await asyncio.sleep(0)
            yield

    bells.consumer(Rung, group="tower", retry=RetryPolicy(attempts=2))(aring if awaits else ring)
    harness = Harness(bells, state={"bell": "ding"})
    harness.publish(Rung(n=1))
    harness.run_until_idle()
    assert told == ["outer 1", "ding", "outer saw it", "outer 2", "ding", "outer after"]
    told.clear()
    harness.publish(Rung(n=2))
    harness.run_until_idle()
    assert (told, harness.dead_letters) == (["outer 1", "ding", "outer after"], [])
    for n, first in (
        (3, []),
        (4, ["ding"]),
    ):  # an error of middleware's own is the attempt's, before the handler and after
        told.clear()
        harness.publish(Rung(n=n))
        harness.run_until_idle()
        assert told == ["outer 1", *first, "outer saw it", "outer 2", "ding", "outer after"]


def test_middleware_that_cannot_work_is_refused_where_it_is_declared() -> None:
    bells = Pipeline("bells2", topic_prefix="")
    with pytest.raises(ConfigError, match="no generator function"):
        bells.middleware(lambda message, ctx: None)
    with pytest.raises(ConfigError, match="no generator function"):
        bells.lifespan(dict)

    @bells.middleware
    async def waits(message: Event, ctx: Context) -> AsyncIterator[None]:
        yield

    bells.consumer(Paid, group="plain")(lambda event, ctx: None)
    with pytest.raises(ConfigError, match="waits is async"):
        _ = bells.groups


def test_topics_of_others_are_read_by_a_decoder_and_known_by_their_own_ids() -> None:
    class Legacy(Event, aggregate="legacy", key="number", name="Legacy", format="json"):
        number: int

    def of_csv(record: Record) -> Legacy:
        return Legacy(number=int((record.value or b"").split(b";")[1]))

    theirs, seen = Pipeline("adopter", topic_prefix=""), []

    @theirs.consumer(Legacy, group="json", topic="legacy.orders", event_id="uuid", retry=RetryPolicy(attempts=2))
    def of_json(event: Legacy, ctx: Context) -> None:
        seen.append((event.number, ctx.event_id, ctx.attempt))
        if event.number == 2 and ctx.attempt == 1:
            raise TimeoutError

    @theirs.consumer(Legacy, group="csv", topic="legacy.csv", decoder=of_csv, event_id=lambda r: str(r.key), inbox=True)
    def of_lines(event: Legacy, ctx: Context) -> None:
        seen.append((event.number, ctx.event_id, ctx.attempt))

    assert [spec.name for spec in theirs.topics() if "legacy" in spec.name] == []  # nobody makes or changes them
    harness = Harness(theirs)
    for number in (1, 2):
        value = b'{"number": %d}' % number
        harness.receive("legacy.orders", value, key=b"k", headers=[("uuid", b"u%d" % number), ("type", b"Whatever")])
    harness.receive("legacy.orders", b"no json", key=b"k")
    harness.receive("legacy.orders", None, key=b"k")
    for _ in range(2):
        harness.receive("legacy.csv", b"order;7", key=b"seven")
    harness.receive("legacy.csv", b"order", key=b"bad")
    harness.run_until_idle()
    assert sorted(seen) == [(1, "u1", 1), (2, "u2", 1), (2, "u2", 2), (7, "b'seven'", 1)]
    assert harness.inbox.repeats == 1
    assert sorted(dead.error for dead in harness.dead_letters) == ["pipeline.errors.PoisonError"] * 3


def test_a_topic_of_others_has_one_handler_in_a_group_and_options_that_go_with_it() -> None:
    theirs = Pipeline("adopter2", topic_prefix="")
    theirs.consumer(Paid, group="g", topic="legacy")(lambda event, ctx: None)
    with pytest.raises(ConfigError, match="both take topic legacy"):
        theirs.consumer(Mine, group="g", topic="legacy")(lambda event, ctx: None)
    with pytest.raises(ConfigError, match="topic="):
        theirs.consumer(Paid, group="h", decoder="json")
    with pytest.raises(ConfigError, match="a function of a Record"):
        theirs.consumer(Paid, group="h", topic="legacy", decoder="xml")  # type: ignore[arg-type]


class Mine(Event, aggregate="mine", key="order_id", format="json"):
    order_id: str


def test_redrive_sends_back_what_was_asked_for() -> None:
    healed = False
    own = Pipeline("own", topic_prefix="")

    class Task(Job, queue="task", format="json"):
        number: int

    @own.job(Task)
    def work(task: Task, _ctx: Context) -> None:
        if not healed:
            raise Reject("no") if task.number == 1 else KeyError("no")

    harness = Harness(own)
    for number in (1, 2):
        harness.enqueue(Task(number=number))
    harness.run_until_idle()
    assert len(harness.dead_letters) == 2
    healed = True
    assert harness.redrive(error="KeyError") == 1
    harness.run_until_idle()
    assert [one.message for one in harness.handled] == [Task(number=2)]
    assert [one.message for one in harness.dead_letters] == [Task(number=1)]


def test_workers_wait_for_a_broker_that_is_away() -> None:
    harness = Harness(app)
    harness.broker.down = True
    harness.publish(paid("o-1"))
    harness.run_for(60)
    assert harness.handled == []
    assert "store.books broker" in harness.not_ready
    harness.broker.down = False
    harness.run_until_idle()
    assert len(harness.handled) == 1
    harness.run_for(2)  # what is mended is said with the next report
    assert harness.not_ready == {}


def test_groups_can_be_chosen_and_unknown_ones_are_refused() -> None:
    harness = Harness(app, groups=["mail"])
    harness.publish(paid("o-1"))
    harness.enqueue(Mail(address="a@example.org"))
    harness.run_until_idle()
    assert [type(one.message) for one in harness.handled] == [Mail]
    with pytest.raises(ConfigError, match="no handlers for nobody"):
        Harness(app, groups=["nobody"])


def test_a_message_is_of_its_own_class_where_several_of_the_process_share_its_type_name() -> None:
    def defined(kind: Any, **fields: Any) -> type[Event]:
        body = {"__annotations__": {"key": str, **{name: of for name, (of, _) in fields.items()}}}
        body |= {name: default for name, (_, default) in fields.items()}
        return type(Event)("Twin", (Event,), body, aggregate="twin", key="key", format=kind)

    own = Pipeline("own", topic_prefix="")
    for kind in ("json", "avro"):
        twins = [defined(kind), defined(kind, n=(int, 0)), defined(kind, text=(str, ""))]
        conn = FakeConnection(own)
        for twin in twins:
            own.publish(conn, twin(key="k"))
        assert [type(row.message) for row in conn.rows] == twins


# ── the package ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_go_to_the_partitions_that_kafkas_clients_choose() -> None:
    from confluent_kafka import murmur2

    for length in range(12):
        for key in (bytes(range(length)), b"\xff" * length):
            assert partition_of(key, 7) == murmur2(key, 7)


def test_it_needs_no_kafka_client_and_no_server() -> None:
    code = (
        "import sys\n"
        "for name in ('confluent_kafka', 'prometheus_client', 'rich', 'click', 'orjson', 'psutil', 'jgo'):\n"
        "    sys.modules[name] = None\n"
        "import pipeline.testing, pipeline.testing.plugin\n"
        f"{_SMALL}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


_SMALL = """
from pipeline import Job, Pipeline
app = Pipeline("s", topic_prefix="")
class Task(Job):
    number: int
@app.job(Task)
def work(task, ctx): ...
harness = pipeline.testing.Harness(app)
harness.enqueue(Task(number=1))
harness.run_until_idle()
print(len(harness.handled))
"""


def test_fixtures_are_there_for_who_names_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        'import pytest\npytest_plugins = ["pipeline.testing.plugin"]\n'
        "@pytest.fixture\ndef pipeline_app():\n    from small import app\n    return app\n"
    )
    small = _SMALL.partition("harness =")[0]
    (tmp_path / "small.py").write_text(small)
    (tmp_path / "test_small.py").write_text(
        "from small import Task, app\n"
        "def test_run(harness, fake_connection, run_enqueued):\n"
        "    app.enqueue(fake_connection, Task(number=1))\n"
        "    assert run_enqueued(fake_connection) is harness\n"
        "    assert [one.message.number for one in harness.handled] == [1]\n"
        "def test_fresh(harness, afake_connection):\n"
        "    assert harness.handled == []\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
