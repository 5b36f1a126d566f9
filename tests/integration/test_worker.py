"""The worker on the real broker: each promise of page 4 by a test that fails without it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from figures import Figure
from working import Broker, Running, members, running, wait_until

from pipeline import Context, Event, Job, Pipeline, Reject, RetryLater, RetryPolicy
from pipeline.definition import Group
from pipeline.errors import BrokerError
from pipeline.headers import DeadLetter, RetryState
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.reader import record_of
from pipeline.registry.client import RegistrySchemas
from pipeline.worker import Limits


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


class Paid(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    n: int


class Mail(Job, queue="email", format="json"):
    n: int


QUICK = RetryPolicy(attempts=3, first_s=0.2, factor=2, cap_s=1, jitter=0)
ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def app(prefix: str) -> Pipeline:
    return Pipeline("shop", topic_prefix=f"{prefix}.", partitions=3)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def only(app: Pipeline) -> Group:
    (group,) = app.groups.values()
    return group


def put_orders(
    broker: Broker, group: Group, count: int, *, keys: int = 10, kind: str = "Placed", begin: int = 0
) -> None:
    for n in range(begin, begin + count):
        key = f"k{n % keys}"
        broker.put(group.topics[0], kind, {"order_id": key, "n": n}, key=key, event_id=f"e{n}")
    broker.flush()


def put_mails(broker: Broker, group: Group, count: int) -> None:
    for n in range(count):
        broker.put(group.topics[0], "Mail", {"n": n}, key=f"id{n}", event_id=f"e{n}")
    broker.flush()


def all_committed(broker: Broker, group: Group, count: int) -> None:
    wait_until(lambda: broker.committed(group.name, group.topics[0]) == count, why=f"{count} committed")


# ── handled, in order, side by side ────────────────────────────────────────────────────────────────────────────


def test_every_record_is_handled_once_in_key_order_and_committed(broker: Broker, app: Pipeline) -> None:
    seen: defaultdict[str, list[int]] = defaultdict(list)

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        seen[event.order_id].append(event.n)

    broker.create(app)
    put_orders(broker, only(app), 2000)
    with running(broker, only(app)):
        all_committed(broker, only(app), 2000)
    assert {key: sorted(numbers) for key, numbers in seen.items()} == seen
    assert sum(map(len, seen.values())) == 2000


def test_the_context_tells_where_the_record_came_from(broker: Broker, app: Pipeline) -> None:
    told: list[Context] = []

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        told.append(ctx)

    broker.create(app)
    topic = only(app).topics[0]
    at = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    broker.put(
        topic,
        "Placed",
        {"order_id": "a", "n": 1},
        key="a",
        event_id="e1",
        headers=[("traceparent", b"00-1-2-01"), ("x", b"\xff")],
        timestamp_ms=int(at.timestamp() * 1000),
        partition=2,
    )
    broker.flush()
    with running(broker, only(app)):
        ctx = wait_until(lambda: told and told[0])
    assert (ctx.event_id, ctx.type, ctx.attempt, ctx.group) == ("e1", "Placed", 1, only(app).name)
    assert (ctx.topic, ctx.partition, ctx.offset, ctx.key) == (topic, 2, 0, b"a")
    assert (ctx.timestamp, ctx.traceparent, ctx.first_failure) == (at, "00-1-2-01", None)
    assert ("x", b"\xff") in ctx.headers
    with pytest.raises(AttributeError):
        ctx.attempt = 2


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_keys_run_side_by_side_up_to_the_concurrency(broker: Broker, app: Pipeline, kind: str) -> None:
    now, most = [0], [0]
    lock = threading.Lock()

    def enter(by: int) -> None:
        with lock:
            now[0] += by
            most[0] = max(most[0], now[0])

    def bill(event: Placed, ctx: Context) -> None:
        enter(1)
        time.sleep(0.5)
        enter(-1)

    async def abill(event: Placed, ctx: Context) -> None:
        enter(1)
        await asyncio.sleep(0.5)
        enter(-1)

    app.consumer(Placed, group="billing")(bill if kind == "plain" else abill)
    broker.create(app)
    put_orders(broker, only(app), 16, keys=16)
    with running(broker, only(app), limits=Limits(concurrency=8)):
        all_committed(broker, only(app), 16)
    assert most[0] == 8


@pytest.mark.parametrize("kind", ["plain", "async", "mixed"])
def test_one_record_of_a_key_at_a_time_over_all_its_types(broker: Broker, app: Pipeline, kind: str) -> None:
    running_keys: set[str] = set()
    seen: defaultdict[str, list[int]] = defaultdict(list)
    overlaps: list[str] = []

    def begin(event: Any) -> None:
        if event.order_id in running_keys:
            overlaps.append(event.order_id)
        running_keys.add(event.order_id)

    def end(event: Any) -> None:
        running_keys.discard(event.order_id)
        seen[event.order_id].append(event.n)

    def plain(event: Any, ctx: Context) -> None:
        begin(event)
        time.sleep(0.002)
        end(event)

    async def coroutine(event: Any, ctx: Context) -> None:
        begin(event)
        await asyncio.sleep(0.002)
        end(event)

    app.consumer(Placed, group="billing")(coroutine if kind == "async" else plain)
    app.consumer(Paid, group="billing")(plain if kind == "plain" else coroutine)
    broker.create(app)
    group = only(app)
    for n in range(300):
        broker.put(group.topics[0], ("Placed", "Paid")[n % 2], {"order_id": f"k{n % 7}", "n": n}, key=f"k{n % 7}")
    broker.flush()
    with running(broker, group):
        all_committed(broker, group, 300)
    assert not overlaps
    assert {key: sorted(numbers) for key, numbers in seen.items()} == seen


def test_a_slow_job_holds_up_no_other(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []
    release = threading.Event()

    @app.job(Mail)
    def send(job: Mail, ctx: Context) -> None:
        if job.n == 0:
            release.wait(90)
        seen.append(job.n)

    broker.create(app)
    put_mails(broker, only(app), 500)
    with running(broker, only(app), limits=Limits(concurrency=2)):
        wait_until(lambda: len(seen) == 499)
        release.set()
        all_committed(broker, only(app), 500)


def test_with_partition_order_a_failing_record_holds_its_partition(broker: Broker, app: Pipeline) -> None:
    seen: list[tuple[int, int]] = []

    @app.consumer(Placed, group="billing", order="partition", retry=QUICK)
    def bill(event: Placed, ctx: Context) -> None:
        seen.append((event.n, ctx.attempt))
        if event.n == 0 and ctx.attempt == 1:
            raise ValueError

    broker.create(app)
    for n in range(3):
        broker.put(only(app).topics[0], "Placed", {"order_id": str(n), "n": n}, key=str(n), partition=0)
    broker.flush()
    with running(broker, only(app)):
        all_committed(broker, only(app), 3)
    assert seen == [(0, 1), (0, 2), (1, 1), (2, 1)]


# ── failing ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_failing_key_is_held_back_alone_and_goes_on_in_order(broker: Broker, app: Pipeline, kind: str) -> None:
    seen: list[tuple[str, int, int]] = []

    def bill(event: Placed, ctx: Context) -> None:
        seen.append((event.order_id, event.n, ctx.attempt))
        if event.n == 0 and ctx.attempt < 3:
            raise ValueError("not yet")

    async def abill(event: Placed, ctx: Context) -> None:
        bill(event, ctx)

    app.consumer(Placed, group="billing", retry=QUICK)(bill if kind == "plain" else abill)
    broker.create(app)
    put_orders(broker, only(app), 40, keys=4)
    with running(broker, only(app)):
        all_committed(broker, only(app), 40)
    mine = [(n, attempt) for key, n, attempt in seen if key == "k0"]
    assert mine == [(0, 1), (0, 2), (0, 3), *((n, 1) for n in range(4, 40, 4))]
    last_of_others = max(i for i, (key, _, _) in enumerate(seen) if key != "k0")
    assert seen[last_of_others + 1 :][0][:2] == ("k0", 0) or last_of_others < seen.index(("k0", 0, 3))


def test_what_is_exhausted_dies_with_its_whole_story_and_its_key_goes_on(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []

    @app.consumer(Placed, group="billing", retry=QUICK)
    def bill(event: Placed, ctx: Context) -> None:
        if event.n == 0:
            raise ValueError(f"no good: {ctx.attempt}")
        seen.append(event.n)

    broker.create(app)
    group = only(app)
    headers = [("x", b"\xff\x00"), ("x", None)]
    broker.put(group.topics[0], "Placed", {"order_id": "a", "n": 0}, key="a", event_id="e0", headers=headers)
    broker.put(group.topics[0], "Placed", {"order_id": "a", "n": 1}, key="a", event_id="e1")
    broker.flush()
    with running(broker, group):
        all_committed(broker, group, 2)
    assert seen == [1]
    (message,) = broker.read(group.dlq, 1)
    letter = DeadLetter.of(record_of(message))
    assert (letter.origin.topic, letter.origin.offset, letter.group, letter.attempts) == (
        group.topics[0],
        0,
        group.name,
        3,
    )
    assert (letter.error.kind, letter.error.message) == ("ValueError", "no good: 3")
    assert letter.first_error is not None
    assert letter.first_error.message == "no good: 1"
    assert [one.attempt for one in letter.history] == [1, 2, 3]
    assert message.key() == b"a"
    assert json.loads(message.value()) == {"order_id": "a", "n": 0}
    assert message.headers()[:4] == [("type", b"Placed"), ("id", b"e0"), *headers]


def test_without_order_retries_go_over_the_retry_topics(broker: Broker, app: Pipeline) -> None:
    seen: list[tuple[int, float, str]] = []

    @app.job(Mail, retry=QUICK)
    def send(job: Mail, ctx: Context) -> None:
        seen.append((ctx.attempt, time.time(), ctx.topic))
        raise ValueError(ctx.attempt)

    broker.create(app)
    group = only(app)
    put_mails(broker, group, 1)
    with running(broker, group) as worker:
        (message,) = broker.read(group.dlq, 1)
        all_committed(broker, group, 1)
        assert not worker.error
    assert [attempt for attempt, _, _ in seen] == [1, 2, 3]
    assert {topic for _, _, topic in seen} == {group.topics[0]}
    waits = [later - sooner for (_, sooner, _), (_, later, _) in itertools.pairwise(seen)]
    assert waits[0] >= 0.19
    assert waits[1] >= 0.39
    letter = DeadLetter.of(record_of(message))
    assert (letter.origin.topic, letter.attempts) == (group.topics[0], 3)
    retried = [record_of(broker.read(f"{group.name}.retry.{tier}", 1)[0]) for tier in ("200ms", "400ms")]
    assert [RetryState.of(one).attempt for one in retried] == [2, 3]


def test_reject_fatal_and_poison_die_at_once_and_stop_nobody(broker: Broker, app: Pipeline) -> None:
    class Fatal(Exception):
        pass

    @app.job(Mail, retry=RetryPolicy(attempts=20, fatal=(Fatal,)))
    def send(job: Mail, ctx: Context) -> None:
        if job.n == 0:
            raise Reject("bad address")
        if job.n == 1:
            raise Fatal

    broker.create(app)
    group = only(app)
    put_mails(broker, group, 2)
    for poison in (b"{not json", b'{"n": "x"}', b'{"more": 2}', None):
        broker.put(group.topics[0], "Mail", poison, key="p")
    broker.put(group.topics[0], "Mail", {"n": 9}, key="k")
    broker.flush()
    with running(broker, group):
        all_committed(broker, group, 7)
    dead = [DeadLetter.of(record_of(message)) for message in broker.read(group.dlq, 6)]
    assert broker.count(group.dlq) == 6
    assert sorted(letter.error.kind.rsplit(".", 1)[-1] for letter in dead) == ["Fatal", *["PoisonError"] * 4, "Reject"]
    assert {letter.attempts for letter in dead} == {1}


def test_retry_later_uncounted_comes_again_as_the_same_attempt(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []

    @app.job(Mail, retry=RetryPolicy(attempts=2, first_s=0.2, cap_s=0.2))
    def send(job: Mail, ctx: Context) -> None:
        seen.append(ctx.attempt)
        if len(seen) < 4:
            raise RetryLater(0.3, counted=False)

    broker.create(app)
    put_mails(broker, only(app), 1)
    begun = time.monotonic()
    with running(broker, only(app)):
        wait_until(lambda: len(seen) == 4)
    assert seen == [1, 1, 1, 1]
    assert time.monotonic() - begun > 0.9
    assert broker.count(only(app).dlq) == 0


def test_a_waiting_retry_topic_blocks_nobody_and_its_partition_is_paused(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []

    @app.job(Mail, retry=RetryPolicy(attempts=2, first_s=600))
    def send(job: Mail, ctx: Context) -> None:
        if job.n == 0:
            raise ValueError
        seen.append(job.n)

    broker.create(app)
    group = only(app)
    put_mails(broker, group, 1)
    # as with a job of hours: what is paused must not stop the polling
    options = {"max.poll.interval.ms": "1000", "group.protocol": "consumer"}
    with running(broker, group, **options) as worker:
        wait_until(lambda: worker.meter.values["pipeline_paused_partitions", group.name, "tier"] == 1)
        end = time.monotonic() + 2.5
        n = 0
        while time.monotonic() < end:
            n += 1
            broker.put(group.topics[0], "Mail", {"n": n}, key=f"id{n}")
            broker.flush()
            time.sleep(0.25)
        wait_until(lambda: len(seen) == n)
        assert worker.meter.values["pipeline_lag_records", group.name, f"{group.name}.retry.600s"] == 0
        assert worker.ready


def test_a_corrupt_attempt_header_is_dead_and_a_newer_format_waits(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []

    @app.job(Mail, retry=QUICK)
    def send(job: Mail, ctx: Context) -> None:
        seen.append(job.n)

    broker.create(app)
    group = only(app)
    tier = f"{group.name}.retry.0s"
    corrupt = [("__pipeline.version", b"1"), ("__pipeline.attempt", b"none")]
    broker.put(tier, "Mail", {"n": 1}, headers=corrupt, partition=0)
    broker.put(tier, "Mail", {"n": 2}, headers=[("__pipeline.version", b"2")], partition=0)
    broker.put(tier, "Mail", {"n": 3}, partition=0)
    broker.put(group.topics[0], "Mail", {"n": 4})
    broker.flush()
    with running(broker, group):
        wait_until(lambda: sorted(seen) == [3, 4] or (sorted(seen) == [4] and broker.count(group.dlq)))
        (message,) = broker.read(group.dlq, 1)
    assert 1 not in seen
    assert 2 not in seen
    assert DeadLetter.of(record_of(message)).error.kind == "pipeline.errors.PoisonError"
    assert broker.count(group.dlq) == 1


def test_unknown_events_are_skipped_and_unknown_jobs_wait(broker: Broker, app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(lambda event, ctx: None)
    app.job(Mail, retry=RetryPolicy(first_s=20, factor=1))(lambda job, ctx: None)
    broker.create(app)
    billing, email = (app.groups[name] for name in sorted(app.groups))
    broker.put(billing.topics[0], "Shipped", {"x": 1}, key="a")
    broker.put(email.topics[0], "Fax", {"x": 1}, key="a")
    broker.flush()
    with running(broker, billing) as worker, running(broker, email):
        all_committed(broker, billing, 1)
        all_committed(broker, email, 1)
        wait_until(lambda: worker.meter.values["pipeline_records_total", billing.name, "skipped"] == 1)
    (waiting,) = broker.read(f"{email.name}.retry.20s", 1)
    assert RetryState.of(record_of(waiting)).attempt == 1
    assert broker.count(email.dlq) == broker.count(billing.dlq) == 0


def test_while_the_registry_refuses_the_worker_waits_and_is_not_ready(
    broker: Broker, app: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.avro import schema_of
    from pipeline.codec import encode

    class Sold(Event, aggregate="order", key="order_id"):
        order_id: str

    class Registry(BaseHTTPRequestHandler):
        status = 503

        def do_GET(self) -> None:
            body = {"schema": schema_of(Sold).text} if self.status == 200 else {"error_code": 1, "message": "refused"}
            self.send_response(self.status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_args: object) -> None: ...

    seen: list[str] = []
    app.consumer(Sold, group="billing", retry=ONCE)(lambda event, ctx: seen.append(event.order_id))
    broker.create(app)
    group = only(app)
    broker.put(group.topics[0], "Sold", encode(Sold(order_id="a"), 5), key="a")
    broker.put(group.topics[0], None, encode(Sold(order_id="b"), 5), key="b")
    broker.flush()
    with serving(Registry) as url, running(broker, group, schemas=RegistrySchemas(url)) as worker:
        for status in (503, 401, 403, 404):  # down; the password is wrong; no right to read it; an id that is not there
            Registry.status = status
            wait_until(lambda: f"({status})" in str(worker.health.state()), why=f"it says {status}")  # noqa: B023
            assert not worker.ready
        assert f"{group.topics[0]}[" in str(worker.health.state())
        said = [one for one in caplog.records if getattr(one, "action", "") == "worker.waiting"]
        assert {one.topic for one in said} == {group.topics[0]}  # type: ignore[attr-defined]
        assert len(said) <= 2  # once for each record, not for each look
        assert broker.committed(group.name, group.topics[0]) == 0
        Registry.status = 200
        all_committed(broker, group, 2)
        wait_until(lambda: worker.ready)
    assert sorted(seen) == ["a", "b"]
    assert broker.count(group.dlq) == 0


def test_a_topic_of_others_is_handled_retried_and_buried_as_it_came(broker: Broker, app: Pipeline, prefix: str) -> None:
    topic, seen = f"{prefix}.legacy", []
    broker.admin_create(topic, partitions=2)

    @app.consumer(Placed, group="import", topic=topic, event_id="x-id", order="none", retry=QUICK)
    def take_over(event: Placed, ctx: Context) -> None:
        seen.append((event.n, ctx.attempt, ctx.event_id, ctx.topic))
        if event.n == 1 and ctx.attempt == 1:
            raise TimeoutError

    group = only(app)
    assert topic not in {spec.name for spec in app.topics()}
    broker.create(app)
    for n in range(2):
        broker.put(topic, None, {"order_id": "k", "n": n}, key="k", headers=[("x-id", b"id%d" % n)])
    broker.put(topic, "Placed", b"no json", key="k")
    broker.flush()
    with running(broker, group):
        (letter,) = broker.read(group.dlq, 1)
        wait_until(lambda: len(seen) == 3, why="all attempts")
    assert sorted(seen) == [(0, 1, "id0", topic), (1, 1, "id1", topic), (1, 2, "id1", topic)]
    assert letter.value() == b"no json"


def test_coroutines_go_on_while_the_registry_takes_its_time_for_one_of_them(broker: Broker, app: Pipeline) -> None:
    from pipeline.avro import schema_of
    from pipeline.codec import encode

    class Sent(Event, aggregate="order", key="order_id"):
        order_id: str

    answer = threading.Event()

    class Registry:
        def text(self, schema_id: int) -> str:
            if schema_id == 9:
                assert answer.wait(60)
            return schema_of(Sent).text

    seen: list[str] = []

    @app.consumer(Sent, group="billing", retry=ONCE)
    async def bill(event: Sent, ctx: Context) -> None:
        seen.append(event.order_id)

    broker.create(app)
    group = only(app)
    with running(broker, group, schemas=Registry()):
        for key, schema_id in (("a", 5), ("b", 9), ("c", 5)):
            broker.put(group.topics[0], "Sent", encode(Sent(order_id=key), schema_id), key=key)
            broker.flush()
        wait_until(lambda: sorted(seen) == ["a", "c"], why="those whose schema is known")
        answer.set()
        wait_until(lambda: sorted(seen) == ["a", "b", "c"], why="the one that waited")


def test_when_the_dlq_cannot_be_written_the_worker_stops_and_commits_nothing_past_it(
    broker: Broker, app: Pipeline
) -> None:
    @app.consumer(Placed, group="billing", retry=ONCE)
    def bill(event: Placed, ctx: Context) -> None:
        if event.n == 5:
            raise ValueError

    class Refusing(AckProducer):
        def send(self, topic: str, *more: Any, **named: Any) -> None:
            raise BrokerError(f"topic {topic}: not authorised", retryable=True)

    broker.create(app)
    group = only(app)
    for n in range(10):
        broker.put(group.topics[0], "Placed", {"order_id": "a", "n": n}, key="a", partition=0)
    broker.flush()
    worker = Running(broker, group, producer=Refusing(broker.options))
    worker.join()
    assert isinstance(worker.error, BrokerError)
    assert group.dlq in str(worker.error)
    assert broker.committed(group.name, group.topics[0]) <= 5


def test_a_record_that_grew_too_large_goes_on_without_its_traces(broker: Broker, app: Pipeline) -> None:
    @app.consumer(Placed, group="billing", retry=ONCE)
    def bill(event: Placed, ctx: Context) -> None:
        raise ValueError("x" * 1000)

    class Picky(AckProducer):
        def send(self, topic: str, key: Any, value: Any, headers: Any, *more: Any, **named: Any) -> None:
            if sum(len(header[1] or b"") for header in headers) > 1700:
                raise BrokerError("too large")
            super().send(topic, key, value, headers, *more, **named)

    broker.create(app)
    put_orders(broker, only(app), 1)
    with running(broker, only(app), producer=Picky(broker.options)):
        (message,) = broker.read(only(app).dlq, 1)
    assert DeadLetter.of(record_of(message)).error.message == "x" * 1000
    assert DeadLetter.of(record_of(message)).error.trace == ""


def test_an_async_handler_is_cancelled_at_its_timeout(broker: Broker, app: Pipeline) -> None:
    cancelled: list[int] = []

    @app.job(Mail, retry=ONCE, timeout_s=0.2)
    async def send(job: Mail, ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(job.n)
            raise

    broker.create(app)
    put_mails(broker, only(app), 1)
    with running(broker, only(app)):
        (message,) = broker.read(only(app).dlq, 1)
    assert cancelled == [0]
    assert DeadLetter.of(record_of(message)).error.kind == "TimeoutError"


def test_a_thread_that_overruns_is_reported_and_awaited(
    broker: Broker, app: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    @app.job(Mail, timeout_s=0.2)
    def send(job: Mail, ctx: Context) -> None:
        release.wait(90)

    broker.create(app)
    put_mails(broker, only(app), 1)
    with running(broker, only(app)) as worker:
        wait_until(lambda: any(getattr(r, "action", "") == "worker.overrun" for r in caplog.records))
        wait_until(lambda: worker.meter.values["pipeline_oldest_in_flight_seconds", only(app).name] > 0.2)
        release.set()
        all_committed(broker, only(app), 1)


# ── bounds ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limits", "most", "options", "longer_s"),
    [  # the least interval that the classic protocol allows, and a handler that takes longer
        (Limits(4, records=50), 50, {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000"}, 7),
        (Limits(4, bytes=50_000), 50 + 200, {"max.poll.interval.ms": "6000", "group.protocol": "consumer"}, 7),
    ],
    ids=["records-classic", "bytes-kip848"],
)
def test_what_is_in_flight_is_bounded_and_a_long_handler_keeps_its_partitions(
    broker: Broker, app: Pipeline, limits: Limits, most: int, options: dict[str, str], longer_s: float
) -> None:
    release = threading.Event()
    seen: list[int] = []

    @app.job(Mail)
    def send(job: Mail, ctx: Context) -> None:
        release.wait(60)
        seen.append(job.n)

    broker.create(app)
    group = only(app)
    for n in range(600):
        broker.put(group.topics[0], "Mail", {"n": n, "beside": "x" * 1000}, key=f"id{n}")
    broker.flush()
    with running(broker, group, limits=limits, **options) as worker:
        wait_until(lambda: worker.meter.values["pipeline_paused_partitions", group.name, "full"] >= 3)
        assert most - 200 <= worker.meter.values["pipeline_in_flight_records", group.name] < most + 10
        time.sleep(longer_s)  # who does not poll meanwhile loses its partitions
        assert not seen
        release.set()
        all_committed(broker, group, 600)
        wait_until(lambda: not worker.meter.values["pipeline_paused_partitions", group.name, "full"])
    assert sorted(seen) == list(range(600))


def test_the_backlog_behind_a_held_key_pauses_its_partition_only(broker: Broker, app: Pipeline) -> None:
    healed = threading.Event()
    seen: list[int] = []

    @app.consumer(Placed, group="billing", retry=RetryPolicy(attempts=1000, first_s=0.2, factor=1))
    def bill(event: Placed, ctx: Context) -> None:
        if event.order_id == "sick" and not healed.is_set():
            raise ValueError
        seen.append(event.n)

    broker.create(app)
    group = only(app)
    for n in range(200):
        broker.put(group.topics[0], "Placed", {"order_id": "sick", "n": n}, key="sick", partition=0)
    broker.flush()
    with running(broker, group, limits=Limits(backlog=20, drain_s=10)) as worker:
        wait_until(lambda: worker.meter.values["pipeline_held_back_keys", group.name] == 1)
        for n in range(200, 400):
            broker.put(group.topics[0], "Placed", {"order_id": "sick", "n": n}, key="sick", partition=0)
            broker.put(group.topics[0], "Placed", {"order_id": "well", "n": 1000 + n}, key="well", partition=1)
        broker.flush()
        wait_until(lambda: worker.meter.values["pipeline_paused_partitions", group.name, "backlog"] == 1)
        wait_until(lambda: len(seen) == 200)
        healed.set()
        all_committed(broker, group, 600)
    assert [n for n in seen if n < 1000] == list(range(400))


# ── begin and end ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", ["earliest", "latest", "time"])
def test_where_a_group_begins_is_as_declared_and_committed_at_once(broker: Broker, app: Pipeline, start: Any) -> None:
    seen: list[int] = []
    middle = datetime.now(UTC) - timedelta(minutes=5)
    app.consumer(Placed, group="billing", start=middle if start == "time" else start)(lambda e, ctx: seen.append(e.n))
    broker.create(app)
    group = only(app)
    for n, minutes in enumerate((9, 7, 4, 2)):
        at = datetime.now(UTC) - timedelta(minutes=minutes)
        broker.put(
            group.topics[0],
            "Placed",
            {"order_id": "a", "n": n},
            key="a",
            partition=0,
            timestamp_ms=int(at.timestamp() * 1000),
        )
    broker.flush()
    expected = {"earliest": [0, 1, 2, 3], "latest": [], "time": [2, 3]}[start]
    with running(broker, group):
        wait_until(lambda: broker.committed(group.name, group.topics[0]) == 4)
        broker.put(group.topics[0], "Placed", {"order_id": "a", "n": 9}, key="a", partition=0)
        broker.flush()
        wait_until(lambda: 9 in seen)
    assert seen == [*expected, 9]


def test_where_a_group_begins_is_decided_for_all_partitions_before_it_has_any(broker: Broker, app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(lambda e, ctx: None)
    broker.create(app)
    group = only(app)
    put_orders(broker, group, 20)
    consumer = GroupConsumer({**broker.options, "group.protocol": "classic"}, group.name)
    consumer.open(dict.fromkeys(group.topics, "latest"), listener=None)  # type: ignore[arg-type]  # never called
    committed = broker.committed(group.name, group.topics[0])
    wait_until(lambda: any(members(broker, group.name).values()))  # close in the midst of an assignment
    consumer.close()  # does not hang
    assert committed == 20


def test_a_group_that_was_stopped_before_any_record_does_not_skip_what_came_meanwhile(
    broker: Broker, app: Pipeline
) -> None:
    seen: list[int] = []
    app.consumer(Placed, group="billing", start="latest")(lambda e, ctx: seen.append(e.n))
    broker.create(app)
    with running(broker, only(app)) as worker:
        worker.stop()
    put_orders(broker, only(app), 5)
    with running(broker, only(app)):
        wait_until(lambda: len(seen) == 5)


def test_offsets_that_are_gone_are_an_error_and_not_a_skip(broker: Broker, app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(lambda e, ctx: None)
    broker.create(app)
    group = only(app)
    put_orders(broker, group, 30, keys=1)
    with running(broker, group) as worker:
        all_committed(broker, group, 30)
        worker.stop()
    put_orders(broker, group, 30, keys=1)
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(broker.options)
    gone = [TopicPartition(group.topics[0], n, -1) for n in range(3)]
    for done in admin.delete_records(gone).values():
        done.result(60)
    worker = Running(broker, group)
    worker.join()
    assert isinstance(worker.error, BrokerError)
    assert "committed offset is not there any more" in str(worker.error)


def test_missing_topics_are_named_at_the_start(broker: Broker, app: Pipeline) -> None:
    app.consumer(Placed, group="billing")(lambda e, ctx: None)
    worker = Running(broker, only(app))
    worker.join()
    assert "pipeline topics apply" in str(worker.error)
    assert only(app).topics[0] in str(worker.error)


def test_a_drain_finishes_what_runs_hands_back_what_does_not_and_commits(broker: Broker, app: Pipeline) -> None:
    seen: list[int] = []
    begun: list[int] = []

    @app.job(Mail)
    def send(job: Mail, ctx: Context) -> None:
        begun.append(job.n)
        time.sleep(0.5)
        seen.append(job.n)

    broker.create(app)
    group = only(app)
    put_mails(broker, group, 100)
    with running(broker, group, limits=Limits(concurrency=4, drain_s=10)) as worker:
        wait_until(lambda: len(begun) >= 4)
        worker.stop()
        assert worker.clean
    assert sorted(begun) == sorted(seen)
    first = len(seen)
    assert first < 100
    with running(broker, group, limits=Limits(concurrency=100)):
        all_committed(broker, group, 100)
    assert set(seen) == set(range(100))
    assert len(seen) == 100  # what ended above the watermark was committed beside it


@pytest.mark.parametrize("hurry", [False, True])
def test_a_handler_that_outlasts_the_drain_is_not_committed(broker: Broker, app: Pipeline, hurry: bool) -> None:
    release, begun = threading.Event(), threading.Event()

    @app.job(Mail)
    def send(job: Mail, ctx: Context) -> None:
        begun.set()
        release.wait(60)

    broker.create(app)
    group = only(app)
    put_mails(broker, group, 1)
    with running(broker, group, limits=Limits(drain_s=60 if hurry else 0.5)) as worker:
        begun.wait(60)
        worker.stop(20, hurry=hurry)
        assert worker.clean is False
    release.set()
    assert broker.committed(group.name, group.topics[0]) == 0


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_rebalance_in_the_middle_loses_nothing_and_keeps_key_order(
    broker: Broker, prefix: str, protocol: str, figure: Figure
) -> None:
    app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=6)
    firsts: defaultdict[str, list[int]] = defaultdict(list)
    known: set[int] = set()
    lock = threading.Lock()
    total = [0]

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        time.sleep(0.02)
        with lock:
            total[0] += 1
            if event.n not in known:
                known.add(event.n)
                firsts[event.order_id].append(event.n)

    broker.create(app)
    group = only(app)
    put_orders(broker, group, 6000, keys=30)
    options = {"group.protocol": protocol}
    with running(broker, group, **options) as one:
        wait_until(lambda: len(known) > 300)
        with running(broker, group, **options) as two:
            wait_until(lambda: two.meter.values["pipeline_records_total", group.name, "done"] > 100)
            one.stop()
            all_committed(broker, group, 6000)
    assert known == set(range(6000))
    assert {key: sorted(numbers) for key, numbers in firsts.items()} == firsts
    figure(f"a worker joins and one leaves, {protocol}: {total[0] - 6000} duplicates of 6000")
    assert total[0] - 6000 <= 100


def test_waits_in_place_do_not_delay_a_rebalance(broker: Broker, app: Pipeline) -> None:
    tried: list[int] = []

    @app.consumer(Placed, group="billing", retry=RetryPolicy(attempts=5, first_s=300, cap_s=300))
    def bill(event: Placed, ctx: Context) -> None:
        tried.append(event.n)
        raise ValueError

    broker.create(app)
    group = only(app)
    put_orders(broker, group, 3, keys=3)
    with running(broker, group, limits=Limits(drain_s=200)) as one:  # it would wait as long, and fail at 90 s
        wait_until(lambda: len(tried) == 3)
        one.stop()
        assert one.clean
    with running(broker, group):
        wait_until(lambda: len(tried) == 6)


def test_only_committed_transactions_are_read(broker: Broker, app: Pipeline) -> None:
    from confluent_kafka import Producer

    seen: list[int] = []
    app.consumer(Placed, group="billing")(lambda e, ctx: seen.append(e.n))
    broker.create(app)
    group = only(app)
    producer = Producer({**broker.options, "transactional.id": group.name})
    producer.init_transactions(60)
    for n, commit in enumerate((True, False, True)):
        producer.begin_transaction()
        value = json.dumps({"order_id": "a", "n": n})
        producer.produce(group.topics[0], value, "a", 0, headers=[("type", b"Placed")])
        producer.flush(60)
        if commit:
            producer.commit_transaction(60)
        else:
            producer.abort_transaction(60)
    with running(broker, group):
        # three records and three markers: the last marker stays behind the last record
        wait_until(lambda: broker.committed(group.name, group.topics[0]) >= 5)
    assert seen == [0, 2]
