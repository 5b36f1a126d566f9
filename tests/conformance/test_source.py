"""One suite for all sources: what the relay relies on, whatever the rows come from.

Debezium has no such calls; tests/parity compares what it and the native relay put on topics, row by row.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from servers import Database
from tables import MemoryTable, PolledTable, SqlTable, Table, WalTable, by_key, end, payloads
from waiting import DEADLINE_S

from pipeline.capture import Batch
from pipeline.errors import SourceError
from pipeline.relay import Source


@pytest.fixture(params=["wal", "polling", "memory"])
def table(request: pytest.FixtureRequest, prefix: str) -> Table:
    if request.param == "memory":
        return MemoryTable()
    database: Database = request.getfixturevalue("database")
    return WalTable(database.dsn, prefix) if request.param == "wal" else PolledTable(database.dsn, prefix)


@pytest.fixture
def source(table: Table) -> Iterator[Source]:
    made = table.source()
    assert begun(made)
    yield made
    end(made)


def begun(source: Source, within_s: float = DEADLINE_S) -> bool:
    """Start, as the relay does: again while another's connection is ending, or the server cannot yet."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if source.start():
                return True
        except SourceError as error:
            if not error.retryable:
                raise
        time.sleep(0.05)
    return False


def read(source: Source, enough: Callable[[list[Batch]], bool], within_s: float = DEADLINE_S) -> list[Batch]:
    """Read until there is enough and all that was begun has ended."""
    found: list[Batch] = []
    deadline = time.monotonic() + within_s
    while not enough(found) or (found and found[-1].open):
        assert time.monotonic() < deadline, payloads(found)
        found.append(source.read(0.05))
    return found


def read_rows(source: Source, count: int) -> list[Batch]:
    return read(source, lambda found: sum(len(batch.records) for batch in found) >= count)


def last_position(batches: list[Batch]) -> int:
    return max(batch.position or 0 for batch in batches)


def quiet(source: Source) -> list[Batch]:
    """Read on for a moment: nothing must come."""
    return [source.read(0.02) for _ in range(10)]


def test_committed_rows_come_in_order_and_what_is_rolled_back_never(table: Table, source: Source) -> None:
    table.commit(("a", b"1"), ("b", b"2"), ("a", b"3"))
    undone = table.begin()
    undone.insert("a", b"never")
    undone.roll_back()
    table.commit(("a", b"4"))
    found = read_rows(source, 4)
    assert payloads(found) == [b"1", b"2", b"3", b"4"]
    assert payloads(quiet(source)) == []
    record = next(record for batch in found for record in batch.records)
    assert (record[0], record[1], record[3][0][0]) == ("t", b"a", "id")


def test_rows_of_before_the_first_start_do_not_come_and_those_of_a_break_do(table: Table) -> None:
    if isinstance(table, MemoryTable):
        pytest.skip("its log begins when it is made")
    table.commit(("a", b"before"))
    first = table.source()
    assert begun(first)
    first.confirm(0, final=True)
    end(first)
    table.commit(("a", b"meanwhile"))
    second = table.source()
    assert begun(second)
    assert payloads(read_rows(second, 1)) == [b"meanwhile"]
    end(second)


def test_what_is_not_confirmed_comes_again_and_what_is_confirmed_does_not(table: Table, source: Source) -> None:
    table.commit(("a", b"1"))
    first = read_rows(source, 1)
    source.confirm(last_position(first), final=True)
    end(source)
    second = table.source()
    assert begun(second)
    table.commit(("a", b"2"), ("a", b"3"))
    assert payloads(read_rows(second, 2)) == [b"2", b"3"]
    end(second)  # as a crash does: nothing of it was confirmed
    third = table.source()
    assert begun(third)
    table.commit(("a", b"4"))
    assert payloads(read_rows(third, 3)) == [b"2", b"3", b"4"]
    end(third)


def test_a_position_in_the_middle_confirms_nothing_behind_it(table: Table, source: Source) -> None:
    for number in range(6):
        table.commit(("a", str(number).encode()))
    found = read_rows(source, 1)
    source.confirm(last_position(found), final=True)
    done = payloads(found)
    end(source)
    again = table.source()
    assert begun(again)
    left = [str(number).encode() for number in range(6)][len(done) :]
    assert payloads(read_rows(again, len(left))) == left
    end(again)


def test_one_is_active_and_another_takes_over_where_it_was(table: Table, source: Source) -> None:
    standby = table.source()
    assert standby.start() is False
    table.commit(("a", b"1"), ("a", b"2"))
    read_rows(source, 2)
    assert standby.start() is False
    table.commit(("a", b"3"))
    end(source)  # as a crash does: nothing was confirmed
    assert begun(standby)
    assert source.start() is False
    table.commit(("a", b"4"))
    assert payloads(read_rows(standby, 4)) == [b"1", b"2", b"3", b"4"]
    end(standby)


def test_after_a_lost_connection_it_goes_on_behind_what_it_handed_out(table: Table, source: Source) -> None:
    table.commit(("a", b"1"))
    first = read_rows(source, 1)
    table.cut()
    with pytest.raises(SourceError) as raised:
        read(source, lambda _found: False)
    assert raised.value.retryable
    table.commit(("a", b"2"))
    assert begun(source)
    second = read_rows(source, 1)
    assert payloads(second) == [b"2"]
    source.confirm(last_position(first), final=True)
    end(source)
    after = table.source()
    assert begun(after)
    assert payloads(read_rows(after, 1)) == [b"2"]
    end(after)


def test_whoever_was_away_while_another_was_active_begins_anew(table: Table, source: Source) -> None:
    """What it had handed out is the other's business: the relay drops it when start says so."""
    table.commit(("a", b"1"))
    read_rows(source, 1)
    table.cut()
    other = table.source()
    assert begun(other)
    table.commit(("a", b"2"))
    found = read_rows(other, 2)
    assert payloads(found) == [b"1", b"2"]
    assert source.start() is False
    other.confirm(last_position(found), final=True)
    end(other)
    assert begun(source)
    table.commit(("a", b"3"))
    assert payloads(read_rows(source, 1)) == [b"3"]


def test_a_row_that_makes_no_record_is_told_and_stops_nobody(table: Table, source: Source) -> None:
    transaction = table.begin()
    transaction.insert("a", b"1")
    transaction.insert("a", b"2", topic="no topic")
    transaction.insert("a", b"3")
    transaction.commit()
    found = read_rows(source, 3)
    dead = [batch.records[index][2] for batch in found for index in batch.dead]
    assert dead == [b"2"]
    assert payloads(found) == [b"1", b"2", b"3"]


def test_a_transaction_that_commits_late_is_not_lost_and_holds_nobody_up(table: Table, source: Source) -> None:
    late = table.begin()
    late.insert("late", b"1")
    table.commit(("quick", b"2"))
    first = read_rows(source, 1)
    assert payloads(first) == [b"2"]
    source.confirm(last_position(first), final=True)
    end(source)
    again = table.source()
    assert begun(again)
    late.insert("late", b"3")
    late.commit()
    assert payloads(read_rows(again, 2)) == [b"1", b"3"]
    end(again)


def test_a_large_transaction_comes_in_bounded_batches_and_survives_a_crash_in_the_middle(
    table: Table, source: Source
) -> None:
    if not isinstance(table, SqlTable):
        pytest.skip("batches of the one in memory are transactions")
    rows = [("a", struct.pack(">I", number) + b"x" * 2000) for number in range(3000)]
    rows[1500] = ("a", struct.pack(">I", 1500) + b"x" * 5_000_000)
    table.commit(*rows)
    some = read_rows(source, 700)
    source.confirm(last_position(some), final=True)
    end(source)
    again = table.source()
    assert begun(again)
    table.commit(("a", b"last"))
    rest = read(again, lambda found: payloads(found)[-1:] == [b"last"])
    assert max(batch.size for batch in [*some, *rest]) < 8_000_000
    assert max(len(batch.records) for batch in [*some, *rest]) <= 1000
    found = by_key([*some, *rest])[b"a"]
    assert found == [*(payload for _, payload in rows), b"last"]
    end(again)


def test_order_of_a_key_and_every_row_under_writers_that_wait_for_each_other(table: Table, source: Source) -> None:
    """Each writer changes its aggregate first, so that its key's writers come one after the other."""
    if not isinstance(table, SqlTable):
        pytest.skip("it has no locks")
    with psycopg.connect(table.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE aggregate (key text PRIMARY KEY, version integer NOT NULL DEFAULT 0)")
        conn.execute("INSERT INTO aggregate SELECT 'k' || n FROM generate_series(0, 2) AS n")
    enough = threading.Event()
    rolled_back: list[bytes] = []

    def write(number: int) -> None:
        turn = 0
        while not enough.is_set():
            turn += 1
            transaction = table.begin()
            key = f"k{(number + turn) % 3}"
            if turn % 3 == 0:
                # its transaction has its number before it has the lock
                transaction.insert(f"own{number}", b"own %d %06d" % (number, turn))
            row = transaction.conn.execute(  # type: ignore[attr-defined]
                "UPDATE aggregate SET version = version + 1 WHERE key = %s RETURNING version", (key,)
            ).fetchone()
            transaction.insert(key, payload := b"%s %06d" % (key.encode(), row[0]))
            if turn % 7 == 0:
                rolled_back.append(payload)
                transaction.roll_back()
            else:
                transaction.commit()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for writer in writers:
        writer.start()
    found: list[Batch] = []
    try:
        for _ in range(3):
            found += read_rows(source, 100)
            source.confirm(last_position(found[: len(found) // 2]))
            end(source)
            source = table.source()  # type: ignore[assignment]
            assert begun(source)
    finally:
        enough.set()
        for writer in writers:
            writer.join()
    with psycopg.connect(table.dsn) as conn:
        committed = {row[0] for row in conn.execute("SELECT payload FROM pipeline.outbox")}
    found += read(source, lambda more: committed <= {*payloads(found), *payloads(more)})
    end(source)
    assert set(payloads(found)) == committed
    for key, values in by_key(found).items():
        assert values == sorted(values), key
    assert rolled_back
