"""``inbox=True`` on a real PostgreSQL and a real broker: effects once, whatever comes twice or breaks between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from commands import runner
from psycopg.conninfo import make_conninfo
from servers import Database
from working import Broker, Running, running, wait_until

from pipeline import Context, Event, Pipeline, RetryPolicy
from pipeline.definition import Handler
from pipeline.errors import ConfigError
from pipeline.postgres.inbox import Inbox

ONCE_MORE = RetryPolicy(attempts=3, first_s=0.01, factor=1)


class Paid(Event, aggregate="paid", key="order", name="InboxPaid", format="json"):
    order: str
    cents: int


class Shipped(Event, aggregate="shipped", key="order", name="InboxShipped", format="json"):
    order: str


@pytest.fixture
def accounts(database: Database) -> Database:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE account (name text PRIMARY KEY, cents int NOT NULL)")
        conn.execute("INSERT INTO account VALUES ('shop', 0)")
        conn.execute("CREATE TABLE once (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return database


def cents(database: Database) -> int:
    with psycopg.connect(database.dsn) as conn:
        row = conn.execute("SELECT cents FROM account").fetchone()
    assert row is not None
    return int(row[0])


class Till:
    """An application whose one handler books what was paid; ``before`` runs first, ``after`` last, within it."""

    def __init__(self, prefix: str, *, awaits: bool, retry: RetryPolicy = ONCE_MORE) -> None:
        self.app = Pipeline(prefix, topic_prefix=f"{prefix}.", partitions=1)
        self.calls: list[int] = []
        self.after: Callable[[Paid, Context], None] = lambda _event, _ctx: None
        book = "UPDATE account SET cents = cents + %s"
        declare = self.app.consumer(Paid, group="till", inbox=True, retry=retry)
        if awaits:

            async def abook(event: Paid, ctx: Context) -> None:
                self.calls.append(ctx.attempt)
                await ctx.conn.execute(book, (event.cents,))
                await self.app.apublish(ctx.conn, Shipped(order=event.order))
                self.after(event, ctx)

            declare(abook)
        else:

            def run(event: Paid, ctx: Context) -> None:
                self.calls.append(ctx.attempt)
                ctx.conn.execute(book, (event.cents,))
                self.app.publish(ctx.conn, Shipped(order=event.order))
                self.after(event, ctx)

            declare(run)
        (self.group,) = self.app.groups.values()

    @contextmanager
    def at_work(self, broker: Broker, dsn: str, repeats: list[Handler]) -> Iterator[Running]:
        inbox = Inbox(dsn, on_repeat=repeats.append)
        try:
            with running(broker, self.group, call_of=inbox.around) as worker:
                yield worker
        finally:
            inbox.close()

    def pay(self, broker: Broker, number: int, times: int = 1, amount: int = 100) -> None:
        for _ in range(times):
            value = {"order": f"o{number}", "cents": amount}
            broker.put(self.group.topics[0], "InboxPaid", value, key=f"o{number}", event_id=f"e{number}")
        broker.flush()


@pytest.fixture(params=[False, True], ids=["function", "coroutine"])
def till(request: pytest.FixtureRequest, prefix: str, broker: Broker) -> Till:
    return made(prefix, broker, awaits=request.param)


def made(prefix: str, broker: Broker, *, awaits: bool = False) -> Till:
    till = Till(prefix, awaits=awaits)
    broker.create(till.app)
    return till


def settled(broker: Broker, till: Till, records: int) -> None:
    wait_until(lambda: broker.committed(till.group.name, till.group.topics[0]) == records, why="all settled")


def test_what_is_delivered_again_has_its_effects_once_and_what_it_publishes_too(
    till: Till, broker: Broker, accounts: Database
) -> None:
    repeats: list[Handler] = []
    with till.at_work(broker, accounts.dsn, repeats):
        for number in range(5):
            till.pay(broker, number, times=3)
        settled(broker, till, 15)
    assert cents(accounts) == 500
    assert (len(till.calls), len(repeats)) == (5, 10)
    with psycopg.connect(accounts.dsn) as conn:
        published = conn.execute("SELECT aggregateid FROM pipeline.outbox ORDER BY seq").fetchall()
        assert sorted(published) == [(f"o{number}",) for number in range(5)]


def test_what_fails_leaves_nothing_and_the_next_attempt_books_once(
    till: Till, broker: Broker, accounts: Database
) -> None:
    def fail_first(_event: Paid, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ValueError("not yet")

    till.after = fail_first
    with till.at_work(broker, accounts.dsn, []):
        till.pay(broker, 1, times=2)
        settled(broker, till, 2)
    assert (till.calls, cents(accounts)) == ([1, 2, 3], 100)


def test_a_lost_database_is_waited_for_and_costs_no_attempt(till: Till, broker: Broker, accounts: Database) -> None:
    repeats: list[Handler] = []
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'pipeline-inbox' AND datname = %s"
    )
    with psycopg.connect(accounts.dsn, autocommit=True) as admin, till.at_work(broker, accounts.dsn, repeats) as worker:
        till.pay(broker, 1)
        settled(broker, till, 1)
        admin.execute(kill, (accounts.name,))  # a kept connection is gone
        till.pay(broker, 2)
        settled(broker, till, 2)
        assert till.calls == [1, 1]

        def lose_it(_event: Paid, ctx: Context) -> None:  # in the middle of its transaction
            if len(till.calls) == 3:
                admin.execute(kill, (accounts.name,))

        till.after = lose_it
        till.pay(broker, 3)
        wait_until(lambda: not worker.ready, why="not ready")
        settled(broker, till, 3)
        wait_until(lambda: worker.ready, why="ready again")
    assert till.calls == [1, 1, 1, 1]
    assert (cents(accounts), repeats, broker.count(till.group.dlq)) == (300, [], 0)


def test_a_commit_that_is_refused_is_the_handlers_own_failure(prefix: str, broker: Broker, accounts: Database) -> None:
    till = made(prefix, broker)

    def twice(_event: Paid, ctx: Context) -> None:
        for _ in range(2):
            ctx.conn.execute("INSERT INTO once VALUES ('x')")  # unique, and looked at by the commit

    till.after = twice
    with till.at_work(broker, accounts.dsn, []):
        till.pay(broker, 1)
        settled(broker, till, 1)
    assert till.calls == [1, 2, 3]
    assert (cents(accounts), broker.count(till.group.dlq)) == (0, 1)


def test_a_missing_table_is_waited_for_and_said(prefix: str, broker: Broker, empty_database: Database) -> None:
    till = made(prefix, broker)
    with till.at_work(broker, empty_database.dsn, []) as worker:
        till.pay(broker, 1)
        wait_until(lambda: "pipeline.inbox" in str(worker.health.state()), why="the reason")
        assert (till.calls, broker.count(till.group.dlq)) == ([], 0)
    with till.at_work(broker, make_conninfo(empty_database.dsn, port=9), []) as worker:
        wait_until(lambda: "connection" in str(worker.health.state()), why="the reason")


def test_another_generation_of_a_replay_has_its_effects_again(accounts: Database, prefix: str) -> None:
    from pipeline.headers import Origin, RetryState
    from pipeline.record import Record

    till = Till(prefix, awaits=False)
    (handler,) = till.group.handlers
    repeats: list[Handler] = []
    inbox = Inbox(accounts.dsn, on_repeat=repeats.append)
    call = inbox.around(handler)
    record = Record("paid", 0, 1, b"k", b"", [("id", b"e1")], 0)
    for generation in (0, 0, 1, 1, 2):
        state = RetryState(Origin("paid", 0, 1, 0), generation=generation)
        call(Paid(order="o", cents=1), Context(record, {"id": b"e1"}, "InboxPaid", till.group.name, state))
    assert (cents(accounts), len(repeats)) == (3, 2)
    inbox.close()


def test_without_an_inbox_there_is_no_connection() -> None:
    from pipeline.record import Record

    context = Context(Record("t", 0, 0, None, None, [], 0), {}, "Paid", "g", None)
    with pytest.raises(ConfigError, match="inbox=True"):
        _ = context.conn


def test_old_rows_are_pruned_and_others_stay(
    database: Database, cli_environment: dict[str, str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pipeline = runner(capsys, monkeypatch, cli_environment)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO pipeline.inbox SELECT n::text, 'g', 'h', 0, now() - n * interval '1 day' "
            "FROM generate_series(1, 60) AS n"
        )
        assert json.loads(pipeline("inbox", "prune", "-o", "json").stdout) == {"would_delete": 31}
        found = pipeline("inbox", "prune", "--older-than", "40d", "--batch", "7", "--execute", "-o", "json")
        assert json.loads(found.stdout) == {"deleted": 21}
        assert conn.execute("SELECT count(*) FROM pipeline.inbox").fetchone() == (39,)
    assert "is no time" in pipeline("inbox", "prune", "--older-than", "soon").stderr
