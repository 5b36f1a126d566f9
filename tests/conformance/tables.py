"""Tables and the sources that read them: the WAL, polling, and a table in memory, each by the same few calls."""

from __future__ import annotations

import itertools
import threading
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from relays import POLLING_INDEX

from pipeline.capture import Batch, Routed, Unroutable
from pipeline.connect.router import Router
from pipeline.connect.routing import Placement, RouterOptions
from pipeline.errors import SourceError
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.polling import PollingSource, PollSettings
from pipeline.postgres.wal import WalSettings, WalSource
from pipeline.relay import Source

OPTIONS = RouterOptions(
    route_by="topic", route_replacement="${routedByValue}", timestamp="created_at",
    placements=(Placement("type", "header", "type"),),
)  # fmt: skip
Row = tuple[str, bytes]  # key and payload


class Transaction(ABC):
    """One writer's transaction."""

    @abstractmethod
    def insert(self, key: str, payload: bytes, topic: str = "t") -> None: ...

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def roll_back(self) -> None: ...


class Table(ABC):
    """An outbox, and sources that read it: ``source()`` is what a process makes, so that two are two processes."""

    @abstractmethod
    def source(self) -> Source: ...

    @abstractmethod
    def begin(self) -> Transaction: ...

    @abstractmethod
    def cut(self) -> None:
        """Cut the connections of all sources, as a restarting server does."""

    def commit(self, *rows: Row) -> None:
        """Insert rows in a transaction."""
        transaction = self.begin()
        for row in rows:
            transaction.insert(*row)
        transaction.commit()


class SqlTransaction(Transaction):
    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn)

    def insert(self, key: str, payload: bytes, topic: str = "t") -> None:
        self.conn.execute(
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic)"
            " VALUES (%s, 'order', %s, 'T', %s, %s)",
            (uuid.uuid4(), key, payload, topic),
        )

    def commit(self) -> None:
        self.conn.commit()
        self.conn.close()

    def roll_back(self) -> None:
        self.conn.rollback()
        self.conn.close()


class SqlTable(Table):
    """``pipeline.outbox`` of a database."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn, self.name = dsn, name

    def begin(self) -> Transaction:
        return SqlTransaction(self.dsn)

    def cut(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'pipeline-relay' AND datname = current_database()"
            )


class WalTable(SqlTable):
    def source(self) -> Source:
        settings = WalSettings(self.name, "pipeline_outbox", _ours, "pipeline.outbox")
        return WalSource(self.dsn, settings, _bound)


class PolledTable(SqlTable):
    def __init__(self, dsn: str, name: str) -> None:
        super().__init__(dsn, name)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(POLLING_INDEX)

    def source(self) -> Source:
        settings = PollSettings(self.name, _ours, "pipeline.outbox", "payload", every_s=0.005)
        return PollingSource(
            self.dsn, settings, lambda found: Router(OPTIONS).bind(f"{found.schema}.{found.table}", found.columns)
        )


def _ours(schema: str, table: str) -> bool:
    return (schema, table) == ("pipeline", "outbox")


def _bound(relation: Relation) -> Any:
    names, route = Router(OPTIONS).bind("pipeline.outbox", relation.columns)
    return insert_parser(relation, names, route), lambda: None


@dataclass
class MemoryTable(Table):
    """A log of committed transactions. The relay's own tests run on such a one."""

    log: list[list[Routed]] = field(default_factory=list)
    confirmed: int = 0
    active: MemorySource | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def source(self) -> Source:
        return MemorySource(self)

    def begin(self) -> Transaction:
        return MemoryTransaction(self)

    def cut(self) -> None:
        if self.active is not None:
            self.active.alive = False
            self.active = None


class MemoryTransaction(Transaction):
    def __init__(self, table: MemoryTable) -> None:
        self.table, self.rows = table, list[Routed]()

    def insert(self, key: str, payload: bytes, topic: str = "t") -> None:
        self.rows.append((topic, key.encode(), payload, [("id", str(uuid.uuid4()))], 1, -1))

    def commit(self) -> None:
        with self.table.lock:
            self.table.log.append(self.rows)

    def roll_back(self) -> None:
        self.rows.clear()


class MemorySource:
    def __init__(self, table: MemoryTable) -> None:
        self.table, self.handed_out, self.alive = table, 0, False

    def start(self) -> bool:
        if self.table.active not in {None, self}:
            self.handed_out = 0
            return False
        self.table.active, self.alive = self, True
        self.handed_out = max(self.handed_out, self.table.confirmed)
        return True

    def read(self, wait_s: float) -> Batch:
        if not self.alive:
            raise SourceError("cut", retryable=True)
        batch = Batch()
        if self.handed_out < len(self.table.log):
            for record in self.table.log[self.handed_out]:
                if " " in record[0]:
                    batch.dead[len(batch.records)] = (Unroutable("no topic", record), 1)
                batch.records.append(record)
            self.handed_out += 1
            batch.position = self.handed_out
        return batch

    def confirm(self, position: int, *, final: bool = False) -> None:
        if not self.alive:
            raise SourceError("cut", retryable=True)
        self.table.confirmed = max(self.table.confirmed, position)

    def close(self) -> None:
        if self.table.active is self:
            self.table.active = None
        self.alive = False


def payloads(batches: Iterable[Batch]) -> list[bytes | None]:
    """Values of the records, in order."""
    return [record[2] for batch in batches for record in batch.records]


def by_key(batches: Sequence[Batch]) -> dict[bytes | None, list[bytes | None]]:
    """Key → its first copies' values, in order."""
    found: dict[bytes | None, list[bytes | None]] = defaultdict(list)
    seen = set()
    for record in itertools.chain.from_iterable(batch.records for batch in batches):
        if record[2] not in seen:
            seen.add(record[2])
            found[record[1]].append(record[2])
    return found


def end(source: Source) -> None:
    """End a process in bad order: nothing is confirmed."""
    with suppress(SourceError):
        source.close()
