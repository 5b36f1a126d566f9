"""A slot that is behind the stored position, ahead of it, made anew, dropped, in use: what both make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path

import psycopg
import pytest
from pairs import SIDES, Capture, Conn, slots_read
from relays import ids, insert, until
from servers import Database, Topics

from pipeline.postgres.slot import ReplicationConnection

FILES: dict[str, dict[str, str | None]] = {
    "no-validation": {"offset.mismatch.strategy": None},  # the default
    "trust-offset": {"offset.mismatch.strategy": "trust_offset"},
    "trust-slot": {"offset.mismatch.strategy": "trust_slot"},
    "trust-greater": {
        "offset.mismatch.strategy": "trust_greater_lsn", "slot.max.retries": "1000", "slot.retry.delay.ms": "300",
    },
    "needed": {"offset.mismatch.strategy": "no_validation", "snapshot.mode": "when_needed"},
    "dropped": {"offset.mismatch.strategy": "trust_slot", "slot.drop.on.stop": "true"},
}  # fmt: skip
# what of the rows a … h each publishes: e is behind the position of a slot that was moved, g before a slot made anew;
# "needed" ends with a snapshot of all
DEBEZIUM = {
    "no-validation": "abcdf", "trust-offset": "abcdf", "trust-slot": "abcdfh", "trust-greater": "abcdfh",
    "needed": "abcdfabcdefgh", "dropped": "abcdh",
}  # fmt: skip
NATIVE = DEBEZIUM | {"no-validation": "abcd", "trust-offset": "abcd", "needed": "abcdabcdefabcdefgh"}
WANTED = {"debezium": DEBEZIUM, "native": NATIVE}
THERE = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY(%s)"
CHECKING = ("no-validation", "trust-offset")
MOVE = "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())"
PASSED = "SELECT bool_or(restart_lsn > %s::pg_lsn) FROM pg_replication_slots WHERE slot_name = ANY(%s)"


class Captures:
    """The captures of all files, and the rows that were written."""

    def __init__(self, made: Mapping[tuple[str, str], Capture], conn: Conn, servers: str, pool: ThreadPoolExecutor):
        self.made = made
        self.kept = [one.slot for (file, _), one in made.items() if file != "dropped"]
        self._conn = conn
        self._servers = servers
        self._pool = pool
        self._rows: dict[str, str] = {}
        self._going: list[Capture] = []

    def go_on(self, without: str = "") -> None:
        """Start all but those of one file, and wait until each reads its slot or has failed."""
        self._going = [one for (file, _), one in self.made.items() if file != without]
        list(self._pool.map(Capture.start, self._going))
        for one in self._going:
            until(lambda one=one: slots_read(self._conn, [one]) or one.failure(), f"{one.name} goes on")

    def halt(self) -> None:
        """Stop all that were started."""
        list(self._pool.map(Capture.halt, self._going))

    def write(self, row: str) -> None:
        """Write a row."""
        self._rows[insert(self._conn, "events", "k", row.encode())] = row

    def publish(self, row: str) -> None:
        """Write a row, and wait until each has published it or has failed."""
        self.write(row)
        for one in self._going:
            until(lambda one=one: row in self.published(one) or one.failure(), f"{one.name}: row {row}")

    def published(self, one: Capture) -> str:
        """Return the rows that one has published. One that came twice in a row counts once: a snapshot had it too."""
        return "".join(name for name, _ in groupby(self._rows[name] for name in ids(one.records(self._servers))))

    def each(self, sql: str, *slots: str) -> None:
        """Run a statement for each slot but those that are dropped."""
        for slot in self.kept:
            self._conn.execute(sql, [name.format(slot) for name in slots])


@pytest.fixture
def captures(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str],
    topics: Topics, conn: Conn, bootstrap_servers: str,
) -> Iterator[Captures]:  # fmt: skip
    made = {
        (file, side): Capture(side, f"{prefix}-{file}", tmp_path, connect_url, cli_environment, database.name, changes)
        for file, changes in FILES.items()
        for side in SIDES
    }
    topics.create(*(one.topic for one in made.values()))
    with ThreadPoolExecutor(len(made)) as pool, ExitStack() as stack:
        stack.callback(lambda: list(pool.map(Capture.end, made.values())))
        yield Captures(made, conn, bootstrap_servers, pool)


def test_a_slot_is_compared_with_what_was_published(captures: Captures, conn: Conn, database: Database) -> None:
    made = captures.made
    captures.go_on()
    captures.each("SELECT pg_copy_logical_replication_slot(%s, %s)", "{}", "{}_old")
    captures.write("a")
    captures.publish("b")
    captures.halt()
    captures.each("SELECT pg_drop_replication_slot(%s)", "{}")  # behind: as it was before the first row
    captures.each("SELECT pg_copy_logical_replication_slot(%s, %s)", "{}_old", "{}")
    captures.each("SELECT pg_drop_replication_slot(%s)", "{}_old")
    captures.go_on()
    captures.publish("c")

    conn.execute("CREATE TABLE public.aside (n integer)")
    with psycopg.connect(database.dsn) as slow:  # so that the slots' restart_lsn do not pass what was published
        slow.execute("INSERT INTO public.aside VALUES (1)")
        (before,) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ()
        captures.publish("d")
        captures.halt()
        dropped = [made["dropped", side].slot for side in SIDES]
        assert conn.execute(THERE, (dropped,)).fetchone() == (0,)
        captures.write("e")
        captures.each(MOVE, "{}")
        assert conn.execute(PASSED, (before, captures.kept)).fetchone() == (False,)
        captures.go_on(without="dropped")  # a slot cannot be made meanwhile
        captures.publish("f")
    for file, side in made:
        ended = made[file, side].failure() if file != "dropped" else ""
        if side == "native" and file in CHECKING:
            assert "it was recreated or moved by somebody else" in ended
        else:
            assert not ended

    captures.halt()
    captures.write("g")
    captures.each("SELECT pg_drop_replication_slot(%s)", "{}")
    captures.each("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", "{}")
    used = [made["trust-greater", side].slot for side in SIDES]
    with ExitStack() as stack:  # in use: waited for
        for slot in used:
            other = stack.enter_context(closing(ReplicationConnection(database.dsn)))
            other.start(slot, "pipeline_outbox", 0, {"proto_version": "2"})
        captures.go_on()
    captures.publish("h")
    for side, told in (("debezium", "no longer available on the server"), ("native", "it was recreated or moved")):
        for file in FILES:
            ended = made[file, side].failure()
            assert told in ended if file in CHECKING else not ended
        assert {file: captures.published(made[file, side]) for file in FILES} == WANTED[side]
