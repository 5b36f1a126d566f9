"""A broker with ACLs: who may not do something waits and says what is missing, and goes on once it was granted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from commands import CommandLine
from guarded import Guarded, Rights
from own_broker import own_broker
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics
from working import Broker, Running, wait_until

from pipeline import Event, Job, Pipeline, Reject, RetryPolicy
from pipeline.definition import Group
from pipeline.errors import BrokerError
from pipeline.local import LocalStack


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str


class Mail(Job, queue="email", format="json", track=False):
    to: str


PLACED, MAIL = Placed.message_type.name, Mail.message_type.name
KINDS = pytest.mark.parametrize(
    "options",
    [{"group.protocol": "classic", "heartbeat.interval.ms": "300"}, {"group.protocol": "consumer"}],
    ids=["classic", "KIP-848"],
)


@pytest.fixture(scope="module")
def guarded(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with own_broker(stack, tmp_path_factory.mktemp("guarded"), Guarded) as broker:
        yield broker


@pytest.fixture
def rights(guarded: Guarded) -> Iterator[Rights]:
    """Nobody has any at the beginning."""
    made = Rights(guarded)
    yield made
    made.take_all()


@pytest.fixture
def broker(guarded: Guarded) -> Broker:
    """Who may do everything."""
    return Broker(guarded.address())


@pytest.fixture
def app(prefix: str, broker: Broker) -> Pipeline:
    return Pipeline("shop", topic_prefix=f"{prefix}.", partitions=1)


def as_worker(guarded: Guarded, group: Group, **options: str) -> Running:
    """A worker whose client is a user."""
    return Running(SimpleNamespace(options=guarded.options("worker")), group, **options)  # type: ignore[arg-type]


def says(worker: Running, *words: str) -> None:
    """Wait until it is not ready, and says these words."""

    def told() -> bool:
        state = worker.health.state()
        return not state["ready"] and all(word in str(state["reasons"]) for word in words)

    wait_until(lambda: told() or not worker.alive, why=lambda: f"{words} in {worker.health.state()}")
    assert worker.alive, worker.error


def stays_unready(worker: Running) -> None:
    """Let it look twice whether its broker is well: it is not ready in between either."""
    looked, ready = worker.worker._condition.next_report, []

    def has_looked() -> bool:
        ready.append(worker.ready)
        return worker.worker._condition.next_report > looked + 2

    wait_until(has_looked, why="it looks")
    assert not any(ready)


# ── relay ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_relay_that_may_not_write_a_topic_waits_and_says_so_and_goes_on_when_it_may(
    guarded: Guarded,
    rights: Rights,
    prefix: str,
    database: Database,
    cli_environment: Mapping[str, str],
    tmp_path: Path,
) -> None:
    topic, dlq = f"{prefix}.events", f"{prefix}-one.dlq"
    topics = Topics(guarded.address())
    topics.create(topic, dlq)
    rights.grant("relay", ("WRITE", "topic", dlq))
    file = connector_file(tmp_path, f"{prefix}-one", **{"database.dbname": database.name})
    with (
        RelayProcess(file, guarded.environment("relay", cli_environment)) as relay,
        psycopg.connect(database.dsn, autocommit=True) as conn,
    ):
        relay.reading()
        row = insert(conn, topic, "k")
        said = until(lambda: dict(relay.readiness()["reasons"]).get("broker"), "why it is not ready")  # type: ignore[call-overload]
        assert topic in said
        assert "WRITE is needed" in said
        rights.grant("relay", ("WRITE", "topic", topic))
        until(lambda: relay.readiness()["ready"], "it is ready")
        assert ids(read_topic(guarded.address(), topic)) == [row]
        rights.take("relay", ("WRITE", "topic", topic))
        second = insert(conn, topic, "k")
        until(lambda: not relay.readiness()["ready"], "it is not ready")
        rights.grant("relay", ("WRITE", "topic", topic))
        until(lambda: second in ids(read_topic(guarded.address(), topic)), "the second row")
        assert relay.stop() == 0
    assert read_topic(guarded.address(), dlq) == []


# ── worker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@KINDS
def test_a_worker_waits_for_each_right_that_it_needs_and_says_which(
    guarded: Guarded, rights: Rights, broker: Broker, app: Pipeline, options: dict[str, str]
) -> None:
    seen: list[str] = []
    app.consumer(Placed, group="billing")(lambda event, ctx: seen.append(event.order_id))
    broker.create(app)
    [group] = app.groups.values()
    [topic] = group.topics
    tiers = list(group.retry_topics)
    broker.put(topic, PLACED, {"order_id": "1"}, key="1")
    broker.flush()
    worker = as_worker(guarded, group, **options)
    try:
        says(worker, topic, "READ is needed")
        rights.grant("worker", *(("DESCRIBE", "topic", name) for name in (topic, *tiers)))
        says(worker, group.name, "Group authorization failed", "READ is needed")
        rights.grant("worker", ("READ", "group", group.name), *(("READ", "topic", name) for name in tiers))
        says(worker, topic, "Topic authorization failed", "READ is needed")
        rights.grant("worker", ("READ", "topic", topic))
        wait_until(lambda: worker.ready and seen == ["1"], why="it handles what is there")

        rights.take("worker", ("READ", "topic", topic))
        says(worker, "Topic authorization failed")
        stays_unready(worker)  # though the broker answers, and its committed offsets may be asked for
        broker.put(topic, PLACED, {"order_id": "2"}, key="1")
        broker.flush()
        rights.grant("worker", ("READ", "topic", topic))
        wait_until(lambda: worker.ready and set(seen) == {"1", "2"}, why="it goes on")

        rights.take("worker", ("READ", "group", group.name))
        says(worker, "Group authorization failed", "READ is needed")
        broker.put(topic, PLACED, {"order_id": "3"}, key="1")
        broker.flush()
        rights.grant("worker", ("READ", "group", group.name))
        wait_until(lambda: worker.ready and set(seen) == {"1", "2", "3"}, why="it is a member again")
        wait_until(lambda: broker.committed(group.name, topic) == 3, why="all is committed")
    finally:
        worker.stop()


def test_a_record_that_cannot_go_to_its_retry_topic_waits_until_it_may(
    guarded: Guarded, rights: Rights, broker: Broker, app: Pipeline
) -> None:
    begun: list[int] = []

    def second_time(_mail: Any, ctx: Any) -> None:
        begun.append(ctx.attempt)
        if ctx.attempt == 1:
            raise RuntimeError("not yet")

    app.job(Mail, retry=RetryPolicy(attempts=2, first_s=0.5, jitter=0))(second_time)
    broker.create(app)
    [group] = app.groups.values()
    reads(rights, group)
    [topic] = group.topics
    broker.put(topic, MAIL, {"to": "ada"})
    broker.flush()
    worker = as_worker(guarded, group)
    try:
        says(worker, "retry topics", "WRITE", "is needed")  # it has WRITE on none
        rights.grant("worker", ("WRITE", "topic", group.dlq))
        says(worker, f"{group.name}.retry.", "WRITE is needed")  # of which tier depends on how long it has waited
        assert (broker.committed(group.name, topic), broker.count(group.dlq)) == (0, 0)
        rights.grant("worker", *(("WRITE", "topic", tier) for tier in group.retry_topics))
        wait_until(lambda: begun == [1, 2], why="the second attempt")
        wait_until(lambda: worker.ready, why="it is ready")
        assert broker.count(group.dlq) == 0
    finally:
        worker.stop()


def test_a_worker_that_may_not_write_its_dlq_ends_and_loses_nothing(
    guarded: Guarded, rights: Rights, broker: Broker, app: Pipeline
) -> None:
    def never(_mail: Any, _ctx: Any) -> None:
        raise Reject("never")

    app.job(Mail)(never)
    broker.create(app)
    [group] = app.groups.values()
    reads(rights, group)
    rights.grant("worker", *(("WRITE", "topic", name) for name in group.retry_topics))
    [topic] = group.topics
    broker.put(topic, MAIL, {"to": "ada"})
    broker.flush()
    worker = as_worker(guarded, group)
    worker.join()
    assert isinstance(worker.error, BrokerError)
    assert f"cannot be stored on the DLQ {group.dlq}" in worker.error.what
    assert "grant this user WRITE on the topic" in worker.error.remedy
    assert broker.committed(group.name, topic) == 0
    rights.grant("worker", ("WRITE", "topic", group.dlq))
    again = as_worker(guarded, group)
    try:
        broker.read(group.dlq, 1)
        wait_until(lambda: broker.committed(group.name, topic) == 1, why="it is committed")
    finally:
        again.stop()


# ── command line ───────────────────────────────────────────────────────────────────────────────────────────────────

SHOP = """
from pipeline import Context, Event, Pipeline

class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str

app = Pipeline("shop", topic_prefix={prefix!r} + ".", partitions=1)

@app.consumer(Placed, group="billing")
def bill(event: Placed, ctx: Context) -> None: ...
"""


def test_topics_are_made_by_who_may_and_others_are_told_which_right_they_lack(
    guarded: Guarded, rights: Rights, prefix: str, pipeline: CommandLine
) -> None:
    Path("shop_acl.py").write_text(SHOP.format(prefix=prefix))
    as_user = guarded.environment("cli", {})
    everything = f"{prefix}.*"

    def told(*words: str) -> tuple[int, str]:
        result = pipeline(*words, **as_user)
        return result.code, result.stderr

    code, text = told("topics", "plan", "shop_acl:app")
    assert code == 1
    assert "DESCRIBE is needed" in text  # and not that they are missing
    rights.grant("cli", ("DESCRIBE", "topic", everything))
    assert told("topics", "plan", "shop_acl:app")[0] == 2
    code, text = told("topics", "apply", "shop_acl:app")
    assert code == 1
    assert "CREATE is needed" in text
    assert Topics(guarded.address()).names(f"{prefix}.") == []
    rights.grant("cli", ("CREATE", "topic", everything))
    assert told("topics", "apply", "shop_acl:app") == (0, "")
    code, text = told("topics", "plan", "shop_acl:app")
    assert code == 1
    assert "DESCRIBE_CONFIGS is needed" in text
    rights.grant("cli", ("DESCRIBE_CONFIGS", "topic", everything))
    assert told("topics", "plan", "shop_acl:app")[0] == 0


def test_lag_and_reset_need_no_more_than_the_page_says(
    guarded: Guarded, rights: Rights, broker: Broker, app: Pipeline, prefix: str, pipeline: CommandLine
) -> None:
    Path("shop_acl.py").write_text(SHOP.format(prefix=prefix))
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    broker.create(app)
    [group] = app.groups.values()
    [topic] = group.topics
    reads(rights, group)
    broker.put(topic, PLACED, {"order_id": "1"}, key="1")
    broker.flush()
    worker = as_worker(guarded, group)
    wait_until(lambda: broker.committed(group.name, topic) == 1, why="it is handled")
    worker.stop()
    as_user = guarded.environment("cli", {})
    words = ("consumer", "reset", group.name, "--to", "earliest", "--topic", topic, "--execute")
    refused = pipeline(*words, **as_user)
    assert refused.code == 1
    assert "is needed" in refused.stderr
    rights.grant("cli", ("READ", "group", group.name), ("READ", "topic", topic))
    rights.grant("cli", *(("READ", "topic", name) for name in group.retry_topics))
    assert pipeline(*words, **as_user).code == 0
    lag = pipeline("consumer", "lag", "shop_acl:app", "-o", "json", **as_user)
    assert lag.code == 0, lag.stderr
    assert [row["lag"] for row in json.loads(lag.stdout) if row["topic"] == topic] == [1]


def test_doctor_says_of_a_topic_that_it_may_not_see_which_right_is_missing(
    guarded: Guarded, rights: Rights, prefix: str, database: Database, pipeline: CommandLine, tmp_path: Path
) -> None:
    topic = f"{prefix}.events"
    Topics(guarded.address()).create(topic)
    file = connector_file(tmp_path, f"{prefix}-one", **{"database.dbname": database.name})
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        insert(conn, topic, "k")

    def found() -> dict[str, str]:
        result = pipeline("doctor", str(file), "-o", "json", **guarded.environment("cli", {}))
        return {one["check"]: f"{one['found']} {one['fix']}" for one in json.loads(result.stdout)}

    assert "DESCRIBE is needed" in found()[f"topic {topic}"]
    rights.grant("cli", ("DESCRIBE", "topic", f"{prefix}*"))
    assert "DESCRIBE_CONFIGS is needed" in found()["broker"]
    rights.grant("cli", ("DESCRIBE_CONFIGS", "topic", f"{prefix}*"))
    assert f"topic {topic}" not in found()


def reads(rights: Rights, group: Group) -> None:
    """Let the worker read all that its group reads."""
    rights.grant("worker", ("READ", "group", group.name))
    rights.grant("worker", *(("READ", "topic", name) for name in (*group.topics, *group.retry_topics)))
