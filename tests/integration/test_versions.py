"""Version N beside version N-1: workers in one group, writers on one topic, what stands in headers and commits."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, TopicPartition
from waiting import wait_until
from working import Broker, running

import pipeline.headers as headers_module
import pipeline.worker.settlement as settlement_module
import pipeline.worker.tiers as tiers_module
from pipeline import Context, Event, Job, Pipeline, RetryPolicy
from pipeline.avro import schema_of
from pipeline.codec import encode
from pipeline.headers import RetryState
from pipeline.local import Endpoints
from pipeline.progress import Mark, Progress
from pipeline.record import Record

QUICK = RetryPolicy(attempts=3, first_s=0.2, factor=1, cap_s=0.2, jitter=0)


class Release:
    """What one version of an application has, and what its handlers saw."""

    def __init__(self, prefix: str) -> None:
        self.app = Pipeline("shop", topic_prefix=f"{prefix}.", partitions=4)
        self.events: Counter[tuple[int, str | None]] = Counter()
        self.jobs: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    def saw(self, n: int, note: str | None) -> None:
        with self._lock:
            self.events[n, note] += 1


class Old(Release):
    """Version N-1: one event of two fields, one type of job."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)

        class Placed(Event, aggregate="order", key="order_id"):
            order_id: str
            n: int

        class Mail(Job, queue="work", format="json", track=False):
            n: int

        @self.app.consumer(Placed, group="billing")
        def bill(event: Placed, ctx: Context) -> None:
            self.saw(event.n, None)

        @self.app.job(Mail, retry=QUICK)
        def send(job: Mail, ctx: Context) -> None:
            self.jobs.append(("Mail", job.n, ctx.attempt))

        self.placed = Placed


class New(Release):
    """Version N: a field more, and a type of job more."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)

        class Placed(Event, aggregate="order", key="order_id"):
            order_id: str
            n: int
            note: str = "none"

        class Mail(Job, queue="work", format="json", track=False):
            n: int
            subject: str = ""

        class Parcel(Job, queue="work", format="json", track=False):
            n: int

        @self.app.consumer(Placed, group="billing")
        def bill(event: Placed, ctx: Context) -> None:
            self.saw(event.n, event.note)

        @self.app.job(Mail, retry=QUICK)
        def send(job: Mail, ctx: Context) -> None:
            self.jobs.append(("Mail", job.n, ctx.attempt))

        @self.app.job(Parcel, retry=QUICK)
        def carry(job: Parcel, ctx: Context) -> None:
            self.jobs.append(("Parcel", job.n, ctx.attempt))

        self.placed = Placed


class Registry:
    """The schemas of both versions, by id."""

    def __init__(self, *models: type[Event]) -> None:
        self._texts = [schema_of(model).text for model in models]

    def text(self, schema_id: int) -> str:
        return self._texts[schema_id]


@pytest.fixture
def broker(endpoints: Endpoints) -> Broker:
    return Broker(endpoints.kafka)


def test_writers_and_workers_of_two_versions_share_a_topic_and_a_group(broker: Broker, prefix: str) -> None:
    old, new = Old(prefix), New(prefix)
    broker.create(new.app)
    registry = Registry(old.placed, new.placed)
    group = next(name for name in new.app.groups if name.endswith("billing"))
    with (
        running(broker, old.app.groups[group], schemas=registry) as one,
        running(broker, new.app.groups[group], schemas=registry) as two,
    ):
        topic = old.app.groups[group].topics[0]

        def shared() -> bool:
            return all(topic in {name for name, _ in worker.worker.assigned_now} for worker in (one, two))

        wait_until(shared)
        for n in range(80):
            written = n % 2  # by whom
            values = {"order_id": str(n), "n": n, **({"note": "new"} if written else {})}
            message = (new.placed if written else old.placed)(**values)
            broker.put(topic, "Placed", encode(message, written), key=str(n), partition=n // 2 % 4)
        broker.flush()
        wait_until(lambda: sum((old.events + new.events).values()) >= 80)
    # the old one leaves out what it does not know, the new one has its default where it was not written
    assert old.events + new.events == Counter({(n, note): 1 for n in range(80) for note in _seen(n, old)})
    assert old.events
    assert {note for _, note in new.events} == {"new", "none"}
    assert broker.count(old.app.groups[group].dlq) == 0


def _seen(n: int, old: Old) -> list[str | None]:
    return [None] if (n, None) in old.events else ["new" if n % 2 else "none"]


def test_what_a_newer_worker_left_behind_waits_for_one_uncounted_and_is_handled_then(
    broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers_module, "_UNREADABLE_S", 1.0)
    monkeypatch.setattr(settlement_module, "_UNKNOWN_S", 1.0)
    old, new = Old(prefix), New(prefix)
    broker.create(new.app)
    queue = next(name for name in new.app.groups if name.endswith("jobs.work"))
    before, after = old.app.groups[queue], new.app.groups[queue]
    topic, tier = before.topics[0], f"{queue}.retry.200ms"
    broker.put(topic, "Parcel", {"n": 1}, event_id="p1")  # of a type that only the new one has
    broker.put(topic, "Mail", {"n": 2, "subject": "s"}, event_id="m2")  # with a field more
    with monkeypatch.context() as newer:
        newer.setattr(headers_module, "FORMAT_VERSION", 2)  # a retry of the new one, whose headers only it can read
        mail = Record(topic, 0, 0, None, b'{"n": 3}', [("type", b"Mail"), ("id", b"m3")], 1_700_000_000_000)
        state = replace(RetryState.first(mail), attempt=2)
        broker.put(tier, None, mail.value, headers=[(name, _bytes(v)) for name, v in state.headers(mail)], partition=0)
    broker.flush()
    with running(broker, before):
        wait_until(lambda: old.jobs == [("Mail", 2, 1)])
        wait_until(lambda: broker.count(tier) > 12)  # both go round and round, more often than they have attempts
        wait_until(lambda: broker.committed(queue, topic) == 2)
    assert old.jobs == [("Mail", 2, 1)]
    assert broker.count(before.dlq) == 0
    monkeypatch.setattr(headers_module, "FORMAT_VERSION", 2)
    with running(broker, after):
        wait_until(lambda: len(new.jobs) == 2)
    assert sorted(new.jobs) == [("Mail", 3, 2), ("Parcel", 1, 1)]
    assert broker.count(after.dlq) == 0


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def test_a_commits_text_of_a_newer_version_is_passed_over_and_its_offset_holds(broker: Broker, prefix: str) -> None:
    old = Old(prefix)
    broker.create(old.app)
    name = next(name for name in old.app.groups if name.endswith("billing"))
    group = old.app.groups[name]
    topic = group.topics[0]
    for n in range(10):
        broker.put(topic, "Placed", encode(old.placed(order_id=str(n), n=n), 0), key=str(n), partition=0)
    broker.flush()
    other = Consumer({**broker.options, "group.id": name})
    newer = "p2:" + Progress(5, 9, ((5, 5),), in_hand=True).mark().metadata.removeprefix("p1:")
    marks = [TopicPartition(topic, 0, 5, newer), *(TopicPartition(topic, n, 0) for n in range(1, 4))]
    other.commit(offsets=marks, asynchronous=False)
    with running(broker, group, schemas=Registry(old.placed)):
        wait_until(lambda: broker.committed(name, topic) == 10)
        [stored] = other.committed([TopicPartition(topic, 0)], timeout=60)
    other.close()
    assert old.events == Counter({(n, None): 1 for n in range(5, 10)})  # more is repeated, never less
    assert stored.metadata.startswith("p1:")
    assert Progress.read(Mark(stored.offset, stored.metadata)).in_hand
