"""The application object: what is declared on it, and definitions that cannot work."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from pipeline import Event, Job, Pipeline
from pipeline.errors import ConfigError, SourceError
from pipeline.event import Message
from pipeline.flow import Flow
from pipeline.outbox import Statement, drive
from pipeline.testing import FakeConnection
from pipeline.testing.connection import AsyncFakeConnection
from pipeline.testing.stored import Row


class Placed(Event, aggregate="order", key="order_id"):
    order_id: str


class Mail(Job, queue="email"):
    to: str


def handle(_message: Any, _ctx: Any) -> None: ...


def test_topics_and_groups_have_the_prefix_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TOPIC_PREFIX", "staging.")
    app = Pipeline("shop")
    assert app.topic_of(Placed) == "staging.outbox.event.order"
    assert app.topic_of(Mail) == "staging.shop.jobs.email"
    assert Pipeline("shop", topic_prefix="").topic_of(Mail) == "shop.jobs.email"


@pytest.mark.parametrize("prefix", ["staging", "a b.", "Ä.", "\t.", "a.b."])
def test_a_prefix_outside_the_rule_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError):
        Pipeline("shop", topic_prefix=prefix)


@pytest.mark.parametrize("name", ["", "Shop", "a.b", "x" * 61])
def test_an_application_name_outside_the_rule_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Pipeline(name, topic_prefix="")


@pytest.mark.parametrize("partitions", [0, -1, 10_001])
def test_partitions_that_make_no_sense_are_refused(partitions: int) -> None:
    with pytest.raises(ConfigError, match="partitions"):
        Pipeline("shop", partitions=partitions, topic_prefix="")


def test_the_topics_are_those_of_messages_and_groups() -> None:
    app = Pipeline("shop", partitions=3, topic_prefix="")
    app.register(Placed)
    app.job(Mail)(handle)
    names = {spec.name: spec.partitions for spec in app.topics()}
    assert names["outbox.event.order"] == 3
    assert {"shop.jobs.email", "shop.jobs.email.dlq", "shop.jobs.email.retry.0s"} <= set(names)
    assert names["shop.pipeline.workers"] == 1
    writes_only = Pipeline("shop", topic_prefix="")
    writes_only.register(Placed)
    assert [spec.name for spec in writes_only.topics()] == ["outbox.event.order"]  # nobody there to be seen


def test_a_consumer_takes_events_and_a_job_handler_jobs() -> None:
    app = Pipeline("shop", topic_prefix="")
    with pytest.raises(ConfigError, match="consumer: Mail is not an Event"):
        app.consumer(Mail, group="g")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="job: Placed is not a Job"):
        app.job(Placed)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="is not an Event"):
        app.consumer(Placed(order_id="1"), group="g")  # type: ignore[arg-type]


def test_one_group_has_one_start() -> None:
    app = Pipeline("shop", topic_prefix="")
    app.consumer(Placed, group="g", start="latest")(handle)
    with pytest.raises(ConfigError, match="two different start"):
        app.consumer(Placed, group="g", start="earliest")


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_a_timeout_is_longer_than_nothing(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        Pipeline("shop", topic_prefix="").consumer(Placed, group="g", timeout_s=timeout_s)(handle)


def test_a_handler_takes_a_message_and_a_context_and_does_not_yield() -> None:
    app = Pipeline("shop", topic_prefix="")

    def alone(event: Placed) -> None: ...
    def three(event: Placed, ctx: object, more: object) -> None: ...
    def named(*, event: Placed, ctx: object) -> None: ...
    def steps(event: Placed, ctx: object) -> Iterator[None]:
        yield

    async def asteps(event: Placed, ctx: object) -> AsyncIterator[None]:
        yield

    for wrong in (alone, three, named):
        with pytest.raises(ConfigError, match=rf"{wrong.__name__}: does not take \(message, ctx\)"):
            app.consumer(Placed, group="g")(wrong)
    for wrong in (steps, asteps):
        with pytest.raises(ConfigError, match="yields"):
            app.consumer(Placed, group="g")(wrong)
    assert app.messages == ()

    @functools.wraps(alone)
    def wrapped(*given: object) -> None: ...

    def more(event: Placed, ctx: object, *, quick: bool = True) -> None: ...

    class Methods:
        def one(self, event: Placed, ctx: object) -> None: ...

    app.consumer(Placed, group="g")(wrapped)
    app.consumer(Placed, group="h")(more)
    app.consumer(Placed, group="i")(Methods().one)


class Called:
    def __call__(self, message: object, ctx: object) -> None: ...


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (functools.partial(handle), "is no function"),
        (Called(), "is no function"),
        (None, "is no function"),
        ({}.update, "does not know its arguments"),
    ],
)
def test_what_has_no_name_or_no_arguments_that_are_known_is_refused(what: Any, says: str) -> None:
    app = Pipeline("shop", topic_prefix="")
    with pytest.raises(ConfigError, match=says):
        app.consumer(Placed, group="g")(what)
    with pytest.raises(ConfigError, match=f"schedule nightly: .*{says}"):
        app.schedule("0 3 * * *", name="nightly", timezone="UTC")(what)
    assert app.messages == ()


def test_middleware_may_be_a_partial() -> None:
    app = Pipeline("shop", topic_prefix="")

    async def around(_name: str, _messages: object, _headers: object) -> AsyncIterator[None]:
        yield

    with pytest.raises(ConfigError, match="is no generator function"):
        app.middleware(functools.partial(handle))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is async"):
        app.publish_middleware(functools.partial(around, "x"))  # type: ignore[arg-type]


def test_the_function_of_a_schedule_does_not_yield_either() -> None:
    app = Pipeline("shop", topic_prefix="")

    def alone(ctx: object) -> Iterator[None]:
        yield

    async def both(tick: object, ctx: object) -> AsyncIterator[None]:
        yield

    for wrong in (alone, both):
        with pytest.raises(ConfigError, match=r"schedule nightly: .*yields"):
            app.schedule("0 3 * * *", name="nightly", timezone="UTC")(wrong)
    assert not app.schedules


def test_decorators_give_the_function_back() -> None:
    app = Pipeline("shop", topic_prefix="")
    assert app.consumer(Placed, group="g")(handle) is handle
    assert app.job(Mail)(handle) is handle
    assert app.messages == (Mail, Placed)


# ── around publish ─────────────────────────────────────────────────────────────────────────────────────────────────


class Noted(Event, aggregate="note", key="n", format="json"):
    n: int


class Task(Job, queue="tasks", format="json"):
    n: int


def headers_of(row: Row) -> dict[str, str]:
    return dict(json.loads(row.headers or "{}"))


@pytest.mark.parametrize("awaits", [False, True], ids=["sync", "async"])
def test_publish_middleware_goes_around_what_is_stored_in_order_and_adds_headers(awaits: bool) -> None:
    app, told = Pipeline("notes", topic_prefix=""), []

    def within(name: str) -> None:
        @app.publish_middleware
        def around(messages: Sequence[Message], headers: dict[str, str]) -> Iterator[None]:
            told.append((name, [one.n for one in messages], headers.get("by")))  # type: ignore[attr-defined]
            headers["by"] = headers.get("by", "") + name
            try:
                yield
            except BaseException as error:
                told.append((name, type(error).__name__))
                raise
            told.append(name)

    within("outer ")
    within("inner")
    conn = FakeConnection(app)
    calls: list[tuple[str, Any]] = [
        ("publish", Noted(n=1)),
        ("publish_many", [Noted(n=2), Noted(n=3)]),
        ("enqueue", Task(n=4)),
        ("enqueue_many", [Task(n=5)]),
    ]
    for name, given in calls:
        numbers = [one.n for one in (given if isinstance(given, list) else [given])]
        if awaits:
            asyncio.run(getattr(app, f"a{name}")(AsyncFakeConnection(conn), given, headers={"mine": "x"}))
        else:
            getattr(app, name)(conn, given, headers={"mine": "x"})
        assert told == [("outer ", numbers, None), ("inner", numbers, "outer "), "inner", "outer "]
        told.clear()
    assert [headers_of(row) for row in conn.rows] == [{"mine": "x", "by": "outer inner"}] * 5

    def refuse(statement: Statement) -> list[tuple[Any, ...]]:
        raise SourceError("the database refuses it")

    with pytest.raises(SourceError, match="refuses it"):
        drive(app._store([Noted(n=6)], Event, None, None), refuse)
    assert told[2:] == [("inner", "SourceError"), ("outer ", "SourceError")]


def test_children_and_parents_of_a_flow_have_the_headers_of_publish_middleware_beside_their_own() -> None:
    app = Pipeline("notes", topic_prefix="")

    @app.publish_middleware
    def tenant(messages: Sequence[Message], headers: dict[str, str]) -> Iterator[None]:
        headers["tenant"] = str(len(messages))
        yield

    conn = FakeConnection(app)
    app.enqueue_flow(conn, Flow(Task(n=1), (Task(n=2), Flow(Task(n=3), options={"headers": {"own": "y"}}))))
    found = {row.message.n: headers_of(row) for row in conn.rows}  # type: ignore[attr-defined]
    assert found == {1: {"tenant": "3"}, 2: {"tenant": "3"}, 3: {"tenant": "3", "own": "y"}}


def test_publish_middleware_may_refuse_and_may_not_pass_an_error_over() -> None:
    app, refused = Pipeline("notes", topic_prefix=""), []

    @app.publish_middleware
    def silent(messages: Sequence[Message], headers: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            refused.append(error)

    @app.publish_middleware
    def strict(messages: Sequence[Message], headers: dict[str, str]) -> Iterator[None]:
        raise ValueError("not from here")
        yield

    conn = FakeConnection(app)
    with pytest.raises(ValueError, match="not from here"):
        app.publish(conn, Noted(n=1))
    assert (len(refused), conn.rows) == (1, [])
    with pytest.raises(ConfigError, match="is async"):

        @app.publish_middleware
        async def waits(messages: Sequence[Message], headers: dict[str, str]) -> AsyncIterator[None]:
            yield
