"""A table that goes from the WAL to polling and back, under load: none lost, few twice, keys keep their order."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psycopg
import pytest
from figures import Figure
from relays import POLLING_INDEX, RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database

Conn = psycopg.Connection[tuple[object, ...]]
KEYS = 7


@pytest.fixture
def conn(conn: Conn) -> Conn:
    conn.execute(POLLING_INDEX)
    return conn


class Writers:
    """Insert rows, each for its own keys, one transaction after the other."""

    def __init__(self, dsn: str, topic: str) -> None:
        self._dsn = dsn
        self._topic = topic
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]
        self.written: dict[str, list[str]] = defaultdict(list)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        turn = 0
        with psycopg.connect(self._dsn) as conn:
            while not self._enough.wait(0.004):
                turn += 1
                key = f"{number}-{turn % KEYS}"
                found = insert(conn, self._topic, key)
                if turn % 10 == 0:
                    conn.rollback()
                else:
                    conn.commit()
                    self.written[key].append(found)


def test_from_the_wal_to_polling_and_back_under_load_without_loss(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database, conn: Conn,
    bootstrap_servers: str, figure: Figure,
) -> None:  # fmt: skip
    streamed = connector_file(tmp_path, prefix)
    (tmp_path / "polled").mkdir()
    polled = connector_file(tmp_path / "polled", prefix, **{"pipeline.capture": "polling", "poll.interval.ms": "20"})

    def published() -> list[str]:
        return ids(read_topic(bootstrap_servers, topic))

    def grows(what: str) -> None:
        before = len(published())
        until(lambda: len(published()) > before + 50, what)

    def position(table: str) -> object:
        return conn.execute(f"SELECT FROM pipeline.{table} WHERE slot = %s".encode(), (prefix,)).fetchone()

    def slot() -> object:
        return conn.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (prefix,)).fetchone()

    files = (streamed, polled, streamed)
    relays = [RelayProcess(streamed, cli_environment).reading()]
    twice = []
    try:
        with Writers(database.dsn, topic) as writers:
            for file in files[1:]:
                grows("rows by the one")
                before = (now := published()) and len(now) - len(set(now))
                relays.append(RelayProcess(file, cli_environment))
                until(lambda: relays[-1].readiness()["role"] == "standby", "it stands by")
                assert relays[-2].stop() == 0
                until(lambda: "move.end" in relays[-1].actions(), "it has moved")
                grows("rows by the other")
                counts = (position("relay_position"), position("poll_position"), slot())
                assert [one is not None for one in counts] == [file is streamed, file is polled, file is streamed]
                twice.append((now := published()) and len(now) - len(set(now)) - before)
        written = {one for key in writers.written.values() for one in key}
        until(lambda: written <= set(published()), "every row")
        assert relays[-1].stop() == 0
    finally:
        for relay in relays:
            relay.__exit__(None, None, None)
    found = defaultdict(list)
    for message in read_topic(bootstrap_servers, topic):
        (event,) = ids([message])
        key = (message.key() or b"").decode()
        if event not in found[key]:
            found[key].append(event)
    assert found == writers.written
    figure(
        f"WAL to polling and back: {len(written)} rows, 0 lost; {twice[0]} came twice on the way there, "
        f"{twice[1]} on the way back"
    )


def test_a_move_that_is_cut_off_begins_again_and_nothing_is_left_behind(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database, conn: Conn,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    streamed = connector_file(tmp_path, prefix)
    (tmp_path / "polled").mkdir()
    polled = connector_file(tmp_path / "polled", prefix, **{"pipeline.capture": "polling", "poll.interval.ms": "20"})

    def moves(relay: RelayProcess) -> None:
        until(lambda: "move.begin" in relay.actions(), "it moves")

    def publishes() -> None:
        event = insert(conn, topic, "k")
        until(lambda: event in ids(read_topic(bootstrap_servers, topic)), "a row")

    def stands() -> tuple[int, ...]:
        found = conn.execute(STANDS, {"slot": prefix}).fetchone()
        assert found is not None
        return tuple(int(str(one)) for one in found)

    with psycopg.connect(database.dsn) as slow:
        with RelayProcess(polled, cli_environment) as relay:
            relay.reading()
            late = insert(slow, topic, "late")  # a slot cannot be made before this one ends
            assert relay.stop() == 0
        with RelayProcess(streamed, cli_environment) as relay:
            moves(relay)
            publishes()  # polling goes on meanwhile
            assert stands()[0] == 1
            assert relay.stop() == 0
        assert stands() == (0, 0, 1)
        with RelayProcess(streamed, cli_environment) as relay:
            moves(relay)
            until(lambda: stands()[0], "the slot is being made")
            relay.kill()
        slow.commit()  # so that the server makes the slot, for nobody
        with RelayProcess(polled, cli_environment) as relay:
            publishes()
            assert late in ids(read_topic(bootstrap_servers, topic))
            assert stands() == (0, 0, 1)
            assert relay.stop() == 0
    seldom = connector_file(tmp_path, prefix, **{"poll.interval.ms": "3000"})
    with psycopg.connect(database.dsn) as slow, RelayProcess(seldom, cli_environment) as relay:
        insert(slow, topic, "late")
        moves(relay)
        until(lambda: stands()[0], "the slot is being made")
        insert(conn, topic, "k")  # neither polled yet nor in the slot, as the one that is late
        slow.commit()
        until(lambda: stands() == (1, 1, 0), "the slot takes over")
        publishes()
        assert relay.stop() == 0
    rows = {str(one) for (one,) in conn.execute("SELECT id FROM pipeline.outbox").fetchall()}
    assert set(ids(read_topic(bootstrap_servers, topic))) == rows

    conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
    assert f"slot {prefix} is gone, but rows up to" in ended(polled, cli_environment)
    conn.execute("DELETE FROM pipeline.relay_position")
    with RelayProcess(polled, cli_environment) as relay:
        relay.reading()
        assert relay.stop() == 0
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))  # as Debezium does it
    error = ended(streamed, cli_environment)
    assert f"slot {prefix} is there, and so is a position of polling" in error
    assert f"SELECT pg_drop_replication_slot('{prefix}'), where the table was polled last" in error
    assert stands() == (1, 0, 1)


STANDS = """
SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = %(slot)s),
       (SELECT count(*) FROM pipeline.relay_position WHERE slot = %(slot)s),
       (SELECT count(*) FROM pipeline.poll_position WHERE slot = %(slot)s)
"""


def ended(file: Path, environment: Mapping[str, str]) -> str:
    with RelayProcess(file, environment) as relay:
        assert relay.process.wait(60) == 1
    return relay.log
