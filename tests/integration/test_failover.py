"""A primary that dies and a standby that takes its place, for real: what the relay loses, repeats and says."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import psycopg
import pytest
from figures import Figure
from pair import Pair
from relays import POLLING_INDEX, RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics


@pytest.fixture
def servers(servers: Pair) -> Pair:
    with psycopg.connect(servers.dsn, autocommit=True) as conn:
        conn.execute(POLLING_INDEX)
    return servers


class Writer:
    """Inserts rows, one transaction each, on whichever server is the primary; knows which were committed."""

    def __init__(self, dsn: str, topic: str) -> None:
        self._dsn = dsn
        self._topic = topic
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.committed: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.is_set():
            with suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True, connect_timeout=2) as conn:
                while not self._enough.wait(0.002):
                    self.committed.append(insert(conn, self._topic, f"k{len(self.committed) % 7}"))


def test_a_failover_with_a_failover_slot_loses_nothing_and_without_one_says_what_may_be_missing(
    servers: Pair, tmp_path: Path, prefix: str, cli_environment: Mapping[str, str], topics: Topics,
    bootstrap_servers: str, database: Database, figure: Figure,
) -> None:  # fmt: skip
    topic, other = f"{prefix}.events", f"{prefix}.events.polled"
    topics.create(topic, partitions=2)
    topics.create(other, partitions=2)
    environment = {**cli_environment, "PIPELINE_POSTGRES__DSN": servers.dsn}

    def published(where: str = topic) -> list[str]:
        return ids(read_topic(bootstrap_servers, where))

    plain = connector_file(tmp_path, f"{prefix}-plain")
    with psycopg.connect(servers.dsn, autocommit=True) as conn, RelayProcess(plain, environment) as relay:
        relay.reading()
        insert(conn, topic, "k")
        until(published, "a row by the slot that is no failover slot")
        assert relay.stop() == 0
        conn.execute("TRUNCATE pipeline.outbox")
    before = set(published())

    file = connector_file(tmp_path, prefix, **{"slot.failover": "true"})
    changes = {"pipeline.capture": "polling", "transforms.outbox.route.topic.replacement": "${routedByValue}.polled"}
    polled = connector_file(tmp_path, f"{prefix}-polled", **changes)
    with RelayProcess(file, environment) as relay, RelayProcess(polled, environment) as poller:
        relay.reading()
        poller.reading()
        with Writer(servers.dsn, topic) as writer:
            until(lambda: len(writer.committed) > 200, "rows")
            servers.until_synced(prefix)
            servers.fail_over()
            killed_at, known = time.monotonic(), len(writer.committed)
            until(lambda: len(writer.committed) > known, "rows on the new primary")
            first = writer.committed[known]
            until(lambda: first in published(), "the first row of after the failover")
            gap_s = time.monotonic() - killed_at
            until(lambda: len(writer.committed) > known + 200, "more rows")
        until(lambda: set(writer.committed) <= set(published()), "every row")
        assert "was promoted to timeline 2" in relay.log

        with psycopg.connect(servers.dsn, autocommit=True) as conn:
            rows = {str(found) for (found,) in conn.execute("SELECT id FROM pipeline.outbox")}
            until(lambda: rows <= set(published()), "rows whose writer did not hear of their commit")
            found = [one for one in published() if one not in before]
            assert set(found) == rows  # nothing is on the topic that the new primary has not
            until(lambda: rows <= set(published(other)), "every row by polling")
            by_polling = published(other)
            assert set(by_polling) == rows
            assert "the server was promoted to timeline 2" in poller.log
            assert poller.stop() == 0

            servers.primary.start(threading.Event())  # the old one comes back, and does not know
            conn.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (prefix,)
            )
        until(lambda: "an old primary that came back" in relay.log, "the old primary is noticed")
        assert not relay.readiness()["ready"]
        servers.primary.stop()
        until(lambda: relay.readiness()["ready"], "the relay reads the new primary again")
        assert relay.stop() == 0
    figure(
        f"failover: {len(writer.committed)} rows committed, 0 lost, {len(found) - len(rows)} duplicates; the first "
        f"row on the new primary is on its topic {gap_s:.1f} s after the kill; by polling 0 lost, "
        f"{len(by_polling) - len(rows)} duplicates"
    )

    with RelayProcess(plain, environment) as relay:
        assert relay.process.wait(60) == 1
    assert f"slot {prefix}_plain is gone" in relay.log
    assert "the server was promoted, and had no copy of it" in relay.log

    with psycopg.connect(servers.dsn) as old, psycopg.connect(database.dsn, autocommit=True) as new:
        position = old.execute("SELECT * FROM pipeline.relay_position WHERE slot = %s", (prefix,)).fetchone()
        assert position is not None
        new.execute("INSERT INTO pipeline.relay_position VALUES (%s, %s, %s, %s, %s)", position)
        new.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
    with RelayProcess(file, cli_environment) as relay:  # the table was restored on another server
        assert relay.process.wait(60) == 1
    assert "the stored position is of server" in relay.log
    assert "rows may be missing on the topics" in relay.log
