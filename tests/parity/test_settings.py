"""Keys that change no record: Debezium 3.7 and the native relay with all of them set, beside both with none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from idle import IDLE
from pairs import Conn, Start, content, published
from relays import ids, insert, read_topic, until
from servers import Database, Topics

MOVED = "SELECT bool_and(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots WHERE slot_name = ANY(%s)"
ANSWERED = """
SELECT reply_time FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = %s
"""


@pytest.fixture
def origin(conn: Conn, prefix: str) -> Iterator[str]:
    """Another server, which rows can be of."""
    conn.execute("SELECT pg_replication_origin_create(%s)", (prefix,))
    yield prefix
    conn.execute("SELECT pg_replication_origin_drop(%s)", (prefix,))


def references(folder: Path) -> dict[str, str]:
    """Return keys whose values stand in files."""
    (folder / "values.properties").write_text("tables = pipeline\\\\.outbox\nsecond: two\n")
    (folder / "publication").write_text("pipeline_outbox")
    return {
        "table.include.list": f"${{file:{folder}/values.properties:tables}}",
        "publication.name": f"${{directory:{folder}:publication}}",
    }


def test_records_are_the_same_with_every_key_set_that_changes_none(
    start: Start, conn: Conn, database: Database, bootstrap_servers: str, topics: Topics, origin: str, tmp_path: Path
) -> None:
    rows = [insert(conn, "events", f"k{number}", b"before %d" % number) for number in range(5)]
    changes = {"-plain": {}, "-set": IDLE | references(tmp_path)}
    with ThreadPoolExecutor() as pool:
        begun = pool.map(lambda name: start(name, **{"snapshot.mode": "initial"}, **changes[name]), changes)
        plain, changed = begun
    slots = [one.slot for one in changed.values()]

    # what is not published moves the slot in one mode, to Debezium; to the native relay in each
    conn.execute("CREATE TABLE public.aside AS SELECT generate_series(1, 1000)")
    (aside,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
    until(lambda: conn.execute(MOVED, (aside, slots)).fetchone() == (True,), "unmonitored activity is confirmed")
    assert conn.execute(MOVED, (aside, [plain["debezium"].slot])).fetchone() == (False,)
    every = [one.slot for one in (*plain.values(), *changed.values())]
    found = conn.execute("SELECT slot_name FROM pg_replication_slots WHERE failover AND slot_name = ANY(%s)", (every,))
    assert sorted(found.fetchall()) == [(slot,) for slot in slots]
    for slot in slots:
        answers: set[object] = set()

        def answered(slot: str = slot, answers: set[object] = answers) -> bool:
            answers.add(conn.execute(ANSWERED, (slot,)).fetchone())
            return len(answers) > 3

        until(answered, f"{slot} is answered for more often than each 10 s", 5)

    rows += [insert(conn, "events", f"k{number}", b"after %d" % number) for number in range(5)]
    (after,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
    rows.append(insert(conn, "events", "last but one"))  # Debezium confirms what is before the last
    with psycopg.connect(database.dsn, autocommit=True) as other:
        other.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
        foreign = insert(other, "events", "foreign")
    rows.append(insert(conn, "events", "last"))
    for pair, wanted in ((plain, [*rows[:-1], foreign, rows[-1]]), (changed, rows)):
        found = published(bootstrap_servers, pair, rows[-1])
        assert content(found["native"]) == content(found["debezium"])
        assert ids(found["native"]) == wanted
    assert [name for name in topics.names() if name.startswith("elsewhere")] == []
    until(lambda: conn.execute(MOVED, (after, every)).fetchone() == (True,), "what is published is confirmed")

    # a row that makes no record
    insert(conn, "no topic!", "k")
    last = insert(conn, "events", "k")
    found = published(bootstrap_servers, changed, last)
    assert content(found["native"]) == content(found["debezium"])
    assert ids(found["native"]) == [*rows, last]
    until(lambda: "InvalidTopicException" in plain["debezium"].failure(), "Debezium's task ends without tolerance", 60)
    until(lambda: plain["native"].has(bootstrap_servers, last), "the native relay goes on without it")
    for pair in (plain, changed):
        assert len(read_topic(bootstrap_servers, f"{pair['native'].name}.dlq")) == 1
