"""The replication connection, the slot's source and the stored position, on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from relays import insert, until
from servers import Database

from pipeline.capture import Batch, Routed
from pipeline.errors import SourceError
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.position import Position, PositionStore, resume_at
from pipeline.postgres.retained import Range, Retained
from pipeline.postgres.slot import Identity, ReplicationConnection, Slot, SlotBusy
from pipeline.postgres.snapshot import SnapshotSettings
from pipeline.postgres.snapshot_only import stored_as
from pipeline.postgres.statistics import SlotWatch, _left
from pipeline.postgres.wal import WalSettings, WalSource

STREAM = {"proto_version": "2", "binary": "true"}


def bind(relation: Relation):  # the simplest router: the id alone
    def route(name: bytes) -> Routed:
        return ("t", None, name, [], 0, -1)

    return insert_parser(relation, ["id"], route), lambda: None


def wanted(schema: str, table: str) -> bool:
    return (schema, table) == ("pipeline", "outbox")


@pytest.fixture
def wal(prefix: str) -> WalSettings:
    return WalSettings(prefix, "pipeline_outbox", wanted, "pipeline.outbox")


@pytest.fixture
def source(database: Database, wal: WalSettings) -> Iterator[WalSource]:
    made = WalSource(database.dsn, wal, bind)
    assert made.start()
    yield made
    made.close()


def rows(source: WalSource, count: int) -> tuple[list[bytes | None], int]:
    """Read until so many rows have come and nothing more does; return the values and the position."""
    found: list[bytes | None] = []
    position = 0

    def more() -> bool:
        nonlocal position
        batch: Batch = source.read(0.1)
        found.extend(record[2] for record in batch.records)
        position = batch.position or position
        source.confirm(0)
        return len(found) >= count and not batch.records and batch.position is None

    until(more, f"{count} rows")
    return found, position


def test_only_committed_rows_come_in_commit_order(source: WalSource, database: Database) -> None:
    with psycopg.connect(database.dsn) as conn:
        insert(conn, "t", "rolled back")
        conn.rollback()
        first = insert(conn, "t", "a")
        with conn.transaction() as savepoint:
            insert(conn, "t", "savepoint")
            raise psycopg.Rollback(savepoint)
        second = insert(conn, "t", "b")
        conn.commit()
    found, position = rows(source, 2)
    assert [value.hex() for value in found if value] == [first.replace("-", ""), second.replace("-", "")]
    with psycopg.connect(database.dsn) as conn:
        assert conn.execute("SELECT pg_current_wal_lsn() - '0/0' >= %s", (position,)).fetchone() == (True,)


def test_what_was_not_confirmed_comes_again_and_what_was_does_not(
    source: WalSource, database: Database, wal: WalSettings
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        insert(conn, "t", "a")
        (first,), position = rows(source, 1)
        source.confirm(position, final=True)
        until(source.start, "the slot is free")
        insert(conn, "t", "b")
        (second,), _ = rows(source, 1)
        source.close()
        again = WalSource(database.dsn, wal, bind)
        until(again.start, "the slot is free")
        assert rows(again, 1)[0] == [second]
        again.close()
    assert first != second


def test_the_final_position_is_stored_though_an_older_one_is_being_written(
    source: WalSource, database: Database, wal: WalSettings, prefix: str
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        insert(conn, "t", "a")
        _, older = rows(source, 1)
        insert(conn, "t", "b")
        _, newer = rows(source, 1)
        with psycopg.connect(database.dsn) as blocker:  # so that the first write is surely under way
            blocker.execute("LOCK TABLE pipeline.relay_position IN ACCESS EXCLUSIVE MODE")
            source.confirm(older)
            release = threading.Timer(0.3, blocker.rollback)
            release.start()
            source.confirm(newer, final=True)
            release.join()
        stored = conn.execute("SELECT lsn - '0/0' FROM pipeline.relay_position WHERE slot = %s", (prefix,)).fetchone()
        assert stored == (newer,)
        confirmed = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = %s"
        assert conn.execute(confirmed, (prefix,)).fetchone() == (newer,)


def test_after_a_lost_connection_the_stream_goes_on_behind_the_last_batch(
    source: WalSource, database: Database, prefix: str
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        insert(conn, "t", "a")
        (first,), _ = rows(source, 1)  # handed out, not confirmed: it is in flight
        conn.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", (prefix,)
        )

        def lost() -> bool:
            try:
                source.read(0.1)
            except SourceError as error:
                return error.retryable
            return False

        until(lost, "the loss is noticed")
        insert(conn, "t", "b")
        until(source.start, "the slot is free")
        (second,), _ = rows(source, 1)
    assert first != second


def test_a_second_reader_is_told_that_the_slot_is_busy(source: WalSource, database: Database, wal: WalSettings) -> None:
    other = WalSource(database.dsn, wal, bind)
    assert other.start() is False
    conn = ReplicationConnection(database.dsn)
    with pytest.raises(SlotBusy) as raised:
        conn.start(wal.slot, wal.publication, 0, STREAM)
    assert raised.value.retryable
    conn.close()


def test_a_slot_for_another_plugin_or_database_is_refused(
    database: Database, empty_database: Database, wal: WalSettings
) -> None:
    with psycopg.connect(empty_database.dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (wal.slot,))
        with pytest.raises(SourceError, match=f"is for database {empty_database.name}"):
            WalSource(database.dsn, wal, bind).start()
        conn.execute("SELECT pg_drop_replication_slot(%s)", (wal.slot,))


def until_free(conn: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    until(lambda: conn.execute(active, (slot,)).fetchone() == (False,), "the slot is free")


def test_a_silent_server_is_noticed(database: Database, wal: WalSettings, source: WalSource) -> None:
    source.close()
    now = [0.0]
    conn = ReplicationConnection(database.dsn, liveness_s=10, clock=lambda: now[0])
    with psycopg.connect(database.dsn, autocommit=True) as other:
        until_free(other, wal.slot)
    conn.start(wal.slot, wal.publication, 0, STREAM)
    while conn.receive(0.05):
        while conn.frames(100, 1_000_000):
            pass

    def listen() -> bool:
        conn.receive(0.01)  # the server tells of what other tests write, too
        while conn.frames(100, 1_000_000):
            pass
        return conn._asked_at is not None

    now[0] = 11.0  # nobody has read so long: that is no silence of the server
    until(listen, "it is asked for an answer")
    now[0] = 17.0
    with pytest.raises(SourceError, match="no answer for 17 s") as raised:
        until(lambda: listen() and False, "it is given up")
    assert raised.value.retryable
    conn.close()


def test_what_the_client_library_raises_is_translated(database: Database) -> None:
    conn = ReplicationConnection(database.dsn)
    for read in (conn.frame, lambda: conn.frames(1, 1)):  # no COPY: as where the stream is broken
        with pytest.raises(SourceError, match="read: no COPY in progress") as raised:
            read()
        assert raised.value.retryable
    conn.rows("SET statement_timeout = 1")
    with pytest.raises(SourceError, match="57014") as raised:
        conn.rows("SELECT pg_sleep(60)")
    assert raised.value.retryable
    conn.close()


def test_the_server_is_told_in_its_time_that_the_relay_lives(
    database: Database, wal: WalSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dsn = make_conninfo(database.dsn, options="-c wal_sender_timeout=2000")
    for wanted_s, told_s in ((0.5, 0.5), (60, 1)):
        source = WalSource(dsn, replace(wal, status_every_s=wanted_s), bind)
        until(source.start, "the slot is free")
        assert source._status_every_s == told_s
        source.close()
    told = [message for message in caplog.messages if "wal_sender_timeout" in message]
    assert told == ["the server's wal_sender_timeout is 2 s: status.update.interval.ms is taken as 1000, not 60000"]


def test_frames_are_bounded_by_count_and_by_bytes(database: Database, wal: WalSettings, source: WalSource) -> None:
    source.close()
    conn = ReplicationConnection(database.dsn)
    with psycopg.connect(database.dsn, autocommit=True) as other:
        for number in range(6):
            insert(other, f"t{number}", "k")
        until_free(other, wal.slot)
    conn.start(wal.slot, wal.publication, 0, STREAM)
    found: list[bytes] = []
    while sum(frame[25:26] == b"C" for frame in found) < 6:
        conn.receive(1)
        found += (some := conn.frames(2, 1_000_000))
        assert len(some) <= 2
        found += (some := conn.frames(100, 60))
        assert sum(map(len, some[:-1])) < 60
    conn.close()


def test_what_is_compared_waits_for_who_reads_the_slot_and_not_for_who_polled_before(
    database: Database, wal: WalSettings, source: WalSource
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        stale = "INSERT INTO pipeline.poll_position (slot, system_id, timeline, taken) VALUES (%s, '1', 1, '10:10:')"
        conn.execute(stale, (wal.slot,))
        insert(conn, "t", "k")
        with closing(Retained(database.dsn, [wal.slot], [], Range())) as retained:
            assert list(retained.ids()) == []
            _, position = rows(source, 1)

            def passed() -> bool:
                source.confirm(source.read(0.05).position or position)
                return retained._passed(wal.slot)

            until(passed, "the slot has passed")


def test_a_snapshot_without_a_slot_has_passed_when_it_is_published(database: Database, prefix: str) -> None:
    with closing(Retained(database.dsn, [stored_as(prefix)], [], Range())) as retained:
        assert list(retained.ids()) == []
        with pytest.raises(SourceError, match=f"slot snapshot:{prefix} does not exist"):
            retained.await_passed(0)
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            conn.execute("INSERT INTO pipeline.relay_position VALUES (%s, '1', 1, '0/1')", (stored_as(prefix),))
        retained.await_passed(0)


def test_the_servers_questions_are_answered_while_nobody_takes_rows(database: Database, prefix: str) -> None:
    """wal_sender_timeout ends a silent connection: an idle relay must not be one."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database.name} SET wal_sender_timeout = '1s'")
        settings = WalSettings(prefix, "pipeline_outbox", wanted, "x", status_every_s=0.2)
        source = WalSource(database.dsn, settings, bind)
        assert source.start()
        for _ in range(30):  # three times the timeout
            source.confirm(0)
            threading.Event().wait(0.1)
        insert(conn, "t", "a")
        rows(source, 1)
        source.close()
        conn.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database.name} RESET wal_sender_timeout")


def test_a_slot_that_is_dropped_on_stop_is_made_anew(database: Database, prefix: str) -> None:
    settings = WalSettings(prefix, "pipeline_outbox", wanted, "x", drops=True, stream={"origin": "none"})
    slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for _ in range(2):
            insert(conn, "t", "nobody reads")
            source = WalSource(database.dsn, settings, bind)
            assert source.start()
            made = insert(conn, "t", "k")
            with psycopg.connect(database.dsn, autocommit=True) as other:  # as a subscription applies rows
                other.execute("SELECT pg_replication_origin_create('elsewhere') WHERE NOT EXISTS"
                              " (SELECT FROM pg_replication_origin WHERE roname = 'elsewhere')")  # fmt: skip
                other.execute("SELECT pg_replication_origin_session_setup('elsewhere')")
                insert(other, "t", "of another server")
            (found,), position = rows(source, 1)
            assert found is not None
            assert found.hex() == made.replace("-", "")
            source.confirm(position, final=True)
            assert conn.execute(slots, (prefix,)).fetchone() == (0,)
            source.close()
        conn.execute("SELECT pg_replication_origin_drop('elsewhere')")


def test_a_long_snapshot_does_not_cost_the_stream(database: Database, prefix: str) -> None:
    """Nobody reads the stream meanwhile, though the server has much to send."""
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database.name} SET wal_sender_timeout = '1s'")
        before = [insert(conn, "t", "k") for _ in range(3)]
        snapshot = SnapshotSettings("first", wanted, "x")
        settings = WalSettings(prefix, "pipeline_outbox", wanted, "x", status_every_s=0.2, snapshot=snapshot)
        source = WalSource(database.dsn, settings, bind)
        assert source.start()
        after = [insert(conn, "t", "k", b"x" * 500_000) for _ in range(20)]  # more than sockets hold
        for _ in range(30):  # three times the timeout
            source.confirm(0)
            threading.Event().wait(0.1)
        found, _ = rows(source, 23)
        assert [value.hex() for value in found if value] == [name.replace("-", "") for name in before + after]
        source.close()
        conn.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database.name} RESET wal_sender_timeout")


def test_statistics_of_a_slot(source: WalSource, database: Database, prefix: str) -> None:
    now = [0.0]
    watch = SlotWatch(database.dsn, prefix, clock=lambda: now[0])
    (found,) = watch.look()
    assert found.slot == prefix
    assert found.active
    assert found.lag_bytes >= 0
    assert found.invalidation_s is None  # of one look no rate is known, and the local server has no bound
    assert found.unpublished_s is None  # no relay has stored a position
    assert SlotWatch(database.dsn, "nothing_here").look() == []
    assert prefix in {one.slot for one in SlotWatch(database.dsn).look()}


def test_the_age_of_what_was_not_published_begins_where_the_position_was_stored(
    database: Database, prefix: str
) -> None:
    watch = SlotWatch(database.dsn, prefix)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
        conn.execute(
            "INSERT INTO pipeline.relay_position VALUES (%s, '1', 1, '0/1', now() - interval '1 hour')", (prefix,)
        )
        assert [one.unpublished_s for one in watch.look()] == [0.0]
        insert(conn, "t", "k")
        conn.execute("UPDATE pipeline.outbox SET created_at = created_at - interval '2 hours'")  # published
        assert [one.unpublished_s for one in watch.look()] == [0.0]
        insert(conn, "t", "k")
        conn.execute("UPDATE pipeline.outbox SET created_at = created_at - interval '10 minutes'")
        (found,) = watch.look()
        assert 600 <= (found.unpublished_s or 0) < 660
        conn.execute(
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, topic) "
            "SELECT gen_random_uuid(), 'a', 'k', 't', 't' FROM generate_series(1, 1000)"
        )
        (found,) = watch.look()
        assert 3600 <= (found.unpublished_s or 0) < 3660  # too many to look at: since the position


@pytest.mark.parametrize(
    ("status", "left", "rate", "told"),
    [
        ("reserved", 100, 50.0, 2.0),
        ("unreserved", -5, 50.0, 0.0),
        ("lost", None, None, 0.0),
        ("reserved", 100, 0.0, float("inf")),
        ("reserved", None, 50.0, None),
        ("reserved", 100, None, None),
    ],
)
def test_the_time_to_invalidation(status: str, left: int | None, rate: float | None, told: float | None) -> None:
    assert _left(status, left, rate) == told


def test_a_position_is_stored_and_loaded(database: Database) -> None:
    store = PositionStore(database.dsn, "s")
    assert store.load() is None
    for lsn in (5, 1 << 40):
        store.begin(Position("sys", 3, lsn))
        until(store.done, "stored")
    assert store.load() == Position("sys", 3, 1 << 40)
    store.close()


def test_without_the_table_the_remedy_is_to_migrate(empty_database: Database) -> None:
    store = PositionStore(empty_database.dsn, "s")
    with pytest.raises(SourceError, match="pipeline db migrate"):
        store.load()
    store.close()


SERVER = Identity("sys", 2, 10_000, 180000)
SLOT = Slot("s", False, 500, "reserved", 0, "pgoutput", "d")


@pytest.mark.parametrize(
    ("stored", "trust", "after", "told"),
    [
        (Position("sys", 1, 400), False, None, "recreated or moved"),  # it was not there when the standby was promoted
        (None, False, 500, ""),
        (Position("sys", 2, 500), False, 500, ""),
        (Position("sys", 2, 800), False, 800, ""),  # the server forgot what it had not saved
        (Position("sys", 2, 400), True, 500, "are missing"),
        (Position("sys", 2, 400), False, None, "recreated or moved"),
        (Position("other", 2, 500), True, None, "of server other"),
        (Position("sys", 2, 20_000), True, None, "not in this server's WAL"),
        (Position("sys", 3, 500), True, None, "timeline 3"),
        (Position("sys", 1, 600), False, 500, "promoted"),
    ],
)
def test_a_stored_position_is_compared_with_slot_and_server(
    stored: Position | None, trust: bool, after: int | None, told: str
) -> None:
    if after is None:
        with pytest.raises(SourceError, match=told) as raised:
            resume_at(stored, SLOT, SERVER, trust_slot=trust)
        assert not raised.value.retryable
        assert "missing" in raised.value.remedy
    else:
        found, warning = resume_at(stored, SLOT, SERVER, trust_slot=trust)
        assert found == after
        assert told in warning


def test_a_copied_slot_is_believed_where_its_position_was_not_replicated_before_the_promotion() -> None:
    copied = replace(SLOT, synced=True)
    assert resume_at(Position("sys", 1, 400), copied, SERVER, trust_slot=False)[0] == 500
    with pytest.raises(SourceError, match="recreated or moved"):  # no promotion since
        resume_at(Position("sys", 2, 400), copied, SERVER, trust_slot=False)
