"""Workers with a journal on the real broker and database: what the job tests share.

Outbox rows are carried to Kafka by the test itself: the relay is not what these tests are about.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from servers import Database
from working import Broker, wait_until

from pipeline import Pipeline
from pipeline.avro import schema_of
from pipeline.codec import Decoder
from pipeline.definition import Group
from pipeline.kafka.consumer import GroupConsumer
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.share import ShareGroup
from pipeline.metrics import SilentMeter
from pipeline.postgres.due import DueStore
from pipeline.postgres.inbox import Inbox
from pipeline.postgres.jobs import JobRows
from pipeline.probes import Readiness
from pipeline.scheduler import Moved
from pipeline.subject import subject_of
from pipeline.worker import COMMIT_S, Limits, Worker
from pipeline.worker.journal import Control, Journal

__all__ = ["Desk", "OpenDesk", "settle", "steady", "wait_until"]


class _Schemas:
    """A registry of the application's own schemas: their place in the list is the id."""

    def __init__(self, app: Pipeline) -> None:
        self.models = [model for model in app.messages if model.message_type.format == "avro"]

    def text(self, schema_id: int) -> str:
        return schema_of(self.models[schema_id]).text


class Desk:
    """An application's jobs: enqueue them, carry them, run workers, look at their rows."""

    def __init__(self, app: Pipeline, database: Database, broker: Broker) -> None:
        self.app = app
        self.database = database
        self.broker = broker
        self.conn = psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row)
        self.journals: list[Journal] = []  # of workers that were made, the last ones last
        self._seq = 0
        broker.create(app)
        self._schemas = _Schemas(app)
        for number, model in enumerate(self._schemas.models):
            schema = schema_of(model)
            subject = subject_of(app.topic_of(model), schema.name)
            self.conn.execute(
                "INSERT INTO pipeline.schema_id (subject, fingerprint, schema_id) VALUES (%s, %s, %s)",
                (subject, schema.fingerprint, number),
            )

    def close(self) -> None:
        self.conn.close()

    def put(self, job: Any, **options: Any) -> str:
        with self.conn.transaction():
            return str(self.app.enqueue(self.conn, job, **options))

    def carry(self, partition_of: Callable[[int], int] = lambda _number: -1) -> int:
        """Bring new outbox rows to Kafka, each to the partition of its number or by its key; return how many."""
        rows = self.conn.execute("SELECT * FROM pipeline.outbox WHERE seq > %s ORDER BY seq", (self._seq,)).fetchall()
        for number, row in enumerate(rows):
            self._seq = row["seq"]
            headers = [] if row["headers"] is None else [("headers", json.dumps(row["headers"]).encode())]
            self.broker.put(
                row["topic"], row["type"], bytes(row["payload"]), key=row["aggregateid"], event_id=str(row["id"]),
                headers=headers, timestamp_ms=int(row["created_at"].timestamp() * 1000),
                partition=partition_of(number),
            )  # fmt: skip
        self.broker.flush()
        return len(rows)

    def job(self, job_id: str) -> dict[str, Any]:
        row = self.conn.execute("SELECT * FROM pipeline.job WHERE id = %s", (job_id,)).fetchone()
        assert row is not None
        return row

    def until(self, job_id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["state"] == state, why=lambda: f"{state}, is {self.job(job_id)}")
        return self.job(job_id)

    def states(self) -> dict[str, int]:
        rows = self.conn.execute("SELECT state, count(*) AS n FROM pipeline.job GROUP BY state").fetchall()
        return {row["state"]: row["n"] for row in rows}

    @contextmanager
    def carried(self) -> Iterator[None]:
        """Be relay and scheduler: rows go to Kafka, those that are due to the outbox."""
        done = threading.Event()

        def carry() -> None:
            store = DueStore(self.database.dsn, self.app.outbox, Moved)
            while not done.is_set():
                store.move(100)
                self.carry()
                done.wait(0.02)
            store.close()

        carrier = threading.Thread(target=carry)
        carrier.start()
        try:
            yield
        finally:
            done.set()
            carrier.join()

    @contextmanager
    def working(
        self,
        *,
        concurrency: int = 4,
        dsn: str | None = None,
        sources: Callable[[Group], Sequence[GroupConsumer | ShareGroup]] | None = None,
    ) -> Iterator[Readiness]:
        """Run workers of all the application's groups: one each, or one for each of its ``sources``."""
        rows = JobRows(dsn or self.database.dsn, Control)
        inbox = Inbox(dsn or self.database.dsn)
        health = Readiness("worker")
        health.ready()
        workers = []

        def alone(group: Group) -> list[GroupConsumer]:
            return [GroupConsumer({**self.broker.options, "group.protocol": "classic"}, group.name)]

        for group, consumer in [(g, one) for g in self.app.groups.values() for one in (sources or alone)(g)]:
            limits = Limits(concurrency=concurrency, drain_s=10)
            journal = Journal(
                rows, self.app.queue_of(group.name), worker="me:1", health=health, concurrency=concurrency
            )
            producer = AckProducer(self.broker.options)
            worker = Worker(
                group, consumer, consumer, producer, Decoder(self._schemas),
                meter=SilentMeter(), health=health, limits=limits, journal=journal,
                commit_s=consumer.commit_s if isinstance(consumer, ShareGroup) else COMMIT_S,
                call_of=lambda handler: inbox.around(handler) if handler.inbox else handler.function,
            )  # fmt: skip
            workers.append(worker)
            self.journals.append(journal)
        errors: list[BaseException] = []
        threads = [threading.Thread(target=_run, args=(worker, errors), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: health.state()["ready"] or errors, why="workers join their groups")
            yield health
        finally:
            for worker in workers:
                worker.stop()
            for thread in threads:
                thread.join(60)
            rows.close()
            inbox.close()
        assert errors == []


OpenDesk = Callable[[Pipeline], Desk]
"""Gives the desk of an application, once its handlers are declared."""


def _run(worker: Worker, errors: list[BaseException]) -> None:
    try:
        worker.run()
    except BaseException as error:  # noqa: BLE001 — the test looks at it
        errors.append(error)


def settle(desk: Desk, job_id: str, state: str) -> None:
    """Report of a job as a worker does."""
    desk.conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([{"id": job_id, "state": state}]),))


def steady(what: Callable[[], Any], for_s: float) -> Any:
    """Return what ``what`` gives, after seeing that it stays so."""
    first, end = what(), time.monotonic() + for_s
    while time.monotonic() < end:
        assert what() == first
        time.sleep(0.05)
    return first
