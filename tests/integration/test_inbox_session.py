"""``ctx.session``: SQLAlchemy's ORM within the inbox's transaction, on a real PostgreSQL and a real broker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from servers import Database
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from working import Broker, Running, running, wait_until

from pipeline import Context, Event, Job, Pipeline, RetryPolicy
from pipeline.definition import Group, Handler
from pipeline.errors import ConfigError, SourceError
from pipeline.postgres.inbox import Inbox
from pipeline.record import Record
from pipeline.testing import Harness

THRICE = RetryPolicy(attempts=3, first_s=0.01, factor=1)


class Sold(Event, aggregate="sold", key="order", name="SessionSold", format="json"):
    order: str


class Sent(Event, aggregate="sent", key="order", name="SessionSent", format="json"):
    order: str


class Nudge(Job, queue="nudge", name="SessionNudge", format="json", track=False):
    order: str


class Table(DeclarativeBase): ...


class Invoice(Table):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str] = mapped_column(unique=True)


class Line(Table):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    invoice: Mapped[int] = mapped_column(ForeignKey("invoice.id"))


@pytest.fixture
def shop(database: Database) -> Database:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database.dsn))
    Table.metadata.create_all(engine)
    engine.dispose()
    return database


def ask(database: Database, query: str) -> list[Any]:
    with psycopg.connect(database.dsn) as conn:
        return [row[0] for row in conn.execute(query.encode())]


class Books:
    """One handler, which writes by the ORM and publishes; ``after`` comes then. As a coroutine it does the same."""

    def __init__(self, prefix: str, *, awaits: bool) -> None:
        self.app = Pipeline(prefix, topic_prefix=f"{prefix}.", partitions=1)
        self.awaits = awaits
        self.calls: list[int] = []
        self.after: Callable[[Session, Context], object] = lambda _session, _ctx: None
        declare = self.app.consumer(Sold, group="books", inbox=True, retry=THRICE)

        def write(session: Session, event: Sold) -> None:
            invoice = Invoice(order=event.order)
            session.add(invoice)
            session.flush()
            session.add(Line(invoice=invoice.id))  # flushed by the inbox

        if awaits:

            async def abook(event: Sold, ctx: Context) -> None:
                self.calls.append(ctx.attempt)
                await ctx.session.run_sync(write, event)
                assert await ctx.session.scalar(select(Invoice.order).where(Invoice.order == event.order))
                await self.app.apublish(ctx.session, Sent(order=event.order))
                await self.app.aenqueue(ctx.session, Nudge(order=event.order))
                await ctx.session.run_sync(self.after, ctx)

            declare(abook)
        else:

            def book(event: Sold, ctx: Context) -> None:
                self.calls.append(ctx.attempt)
                assert ctx.session is ctx.session
                write(ctx.session, event)
                self.app.publish(ctx.session, Sent(order=event.order))
                self.app.enqueue(ctx.session, Nudge(order=event.order))
                self.after(ctx.session, ctx)

            declare(book)
        self.app.register(Nudge)
        (self.group,) = self.app.groups.values()

    def sell(self, broker: Broker, number: int, times: int = 1) -> None:
        for _ in range(times):
            value = {"order": f"o{number}"}
            broker.put(self.group.topics[0], "SessionSold", value, key=f"o{number}", event_id=f"e{number}")
        broker.flush()

    def once(self, inbox: Inbox, number: int) -> None:
        """Handle it in this thread; of a plain function."""
        (handler,) = self.group.handlers
        inbox.around(handler)(Sold(order=f"o{number}"), context(self.group, number))


def context(group: Group, number: int) -> Context:
    return Context(Record("sold", 0, number, b"k", b"", [], 0), {"id": b"e%d" % number}, "Sold", group.name, None)


@pytest.fixture(params=[False, True], ids=["function", "coroutine"])
def books(request: pytest.FixtureRequest, prefix: str, broker: Broker) -> Books:
    found = Books(prefix, awaits=request.param)
    broker.create(found.app)
    return found


@contextmanager
def at_work(books: Books, broker: Broker, dsn: str, repeats: list[Handler]) -> Iterator[Running]:
    inbox = Inbox(dsn, on_repeat=repeats.append)
    try:
        with running(broker, books.group, call_of=inbox.around) as worker:
            yield worker
    finally:
        inbox.close()


def settled(broker: Broker, books: Books, records: int) -> None:
    wait_until(lambda: broker.committed(books.group.name, books.group.topics[0]) == records, why="all settled")


def test_what_comes_again_is_written_and_published_once(books: Books, broker: Broker, shop: Database) -> None:
    repeats: list[Handler] = []
    with at_work(books, broker, shop.dsn, repeats):
        for number in range(5):
            books.sell(broker, number, times=3)
        settled(broker, books, 15)
    assert (len(books.calls), len(repeats)) == (5, 10)
    assert sorted(ask(shop, 'SELECT "order" FROM invoice JOIN line ON invoice = invoice.id')) == [
        f"o{number}" for number in range(5)
    ]
    assert sorted(ask(shop, "SELECT type FROM pipeline.outbox")) == ["SessionNudge"] * 5 + ["SessionSent"] * 5


def test_an_attempt_that_fails_leaves_nothing_and_a_repeat_of_the_record_writes_once(
    books: Books, broker: Broker, shop: Database
) -> None:
    def fail(session: Session, ctx: Context) -> None:
        session.begin_nested()  # left open
        if ctx.attempt < 3:
            raise ValueError("not yet")

    books.after = fail
    with at_work(books, broker, shop.dsn, []):
        books.sell(broker, 1)
        wait_until(lambda: len(books.calls) == 3)
        books.sell(broker, 1)
        settled(broker, books, 2)
    assert books.calls == [1, 2, 3]
    assert (ask(shop, 'SELECT "order" FROM invoice'), ask(shop, "SELECT count(*) FROM line")) == (["o1"], [1])
    assert len(ask(shop, "SELECT 1 FROM pipeline.outbox")) == 2


def commits(session: Session, _ctx: Context) -> None:
    session.commit()


def commits_and_says_nothing(session: Session, _ctx: Context) -> None:
    try:
        session.commit()
    except ConfigError:
        session.close()


def commits_its_connection(session: Session, _ctx: Context) -> None:
    session.connection().commit()


def rolls_back(session: Session, _ctx: Context) -> None:
    session.rollback()


def closes(session: Session, _ctx: Context) -> None:
    session.flush()
    session.close()


def passes_over_a_flush_that_fails(session: Session, _ctx: Context) -> None:
    session.add(Invoice(order="o1"))
    with pytest.raises(IntegrityError):
        session.flush()


def has_one_that_fails_at_the_end(session: Session, _ctx: Context) -> None:
    session.add(Line(invoice=4711))


@pytest.mark.parametrize(
    ("after", "error"),
    [
        (commits, ConfigError),
        (commits_and_says_nothing, SourceError),
        (commits_its_connection, ConfigError),
        (rolls_back, SourceError),
        (closes, SourceError),
        (passes_over_a_flush_that_fails, SourceError),
        (has_one_that_fails_at_the_end, IntegrityError),
    ],
)
def test_what_would_part_the_effects_from_the_inbox_fails_the_attempt(
    prefix: str, shop: Database, after: Any, error: type[Exception]
) -> None:
    books, inbox = Books(prefix, awaits=False), Inbox(shop.dsn)
    books.after = after
    with pytest.raises(error):
        books.once(inbox, 1)
    tables = ("invoice", "line", "pipeline.outbox", "pipeline.inbox")
    assert [ask(shop, f"SELECT count(*) FROM {table}") for table in tables] == [[0]] * 4
    books.after = lambda _session, _ctx: None
    books.once(inbox, 1)  # on the same connection, which is as good as new
    assert len(inbox._idle) == 1
    assert [ask(shop, f"SELECT count(*) FROM {table}") for table in tables] == [[1], [1], [2], [1]]
    inbox.close()


def test_a_savepoint_keeps_what_was_before_it(prefix: str, shop: Database) -> None:
    books, inbox = Books(prefix, awaits=False), Inbox(shop.dsn)

    def twice(session: Session, _ctx: Context) -> None:
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Invoice(order="o1"))
        session.add(Invoice(order="other"))

    books.after = twice
    books.once(inbox, 1)
    inbox.close()
    assert ask(shop, 'SELECT "order" FROM invoice ORDER BY id') == ["o1", "other"]


def test_a_connection_that_is_lost_within_the_orm_costs_no_attempt(
    books: Books, broker: Broker, shop: Database
) -> None:
    def lose_it(session: Session, _ctx: Context) -> None:
        if len(books.calls) == 1:
            with psycopg.connect(shop.dsn, autocommit=True) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'pipeline-inbox' AND datname = %s",
                    (shop.name,),
                )
        session.execute(select(Invoice))

    books.after = lose_it
    with at_work(books, broker, shop.dsn, []):
        books.sell(broker, 1)
        settled(broker, books, 1)
    assert books.calls == [1, 1]
    assert ask(shop, 'SELECT "order" FROM invoice') == ["o1"]


def test_a_session_is_made_for_who_asks_and_an_engine_once(
    prefix: str, shop: Database, caplog: pytest.LogCaptureFixture
) -> None:
    books, inbox = Books(prefix, awaits=False), Inbox(shop.dsn)
    books.once(inbox, 1)
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        books.once(inbox, 2)
    said = " ".join(one.getMessage() for one in caplog.records)
    assert "INSERT INTO invoice" in said
    assert "pg_catalog.version" not in said  # asked of a connection once
    inbox.close()


def test_without_an_inbox_or_a_database_there_is_no_session(prefix: str) -> None:
    books = Books(prefix, awaits=False)
    with pytest.raises(ConfigError, match="inbox=True"):
        _ = context(books.group, 1).session
    harness = Harness(books.app)
    harness.publish(Sold(order="o1"))
    harness.run_until_idle()
    [dead] = harness.dead_letters
    assert dead.error == "pipeline.errors.ConfigError"
