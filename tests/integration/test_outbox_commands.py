"""``pipeline outbox tail`` and ``prune``: what a person sees, and what may go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner, Result
from relays import until
from servers import Database

from pipeline import Event, Personal, Pipeline
from pipeline.cli.main import cli
from pipeline.config import Settings
from pipeline.errors import SourceError
from pipeline.postgres.prune import plan, prune, take_point
from pipeline.postgres.snapshot_only import stored_as
from pipeline.runtime.outbox import tail_outbox


class Noted(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    name: Personal[str] = "Ada"


app = Pipeline("shop", topic_prefix="")


@pytest.fixture
def conn(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", database.dsn)
    with psycopg.connect(database.dsn, autocommit=True) as opened:
        yield opened


def publish(conn: psycopg.Connection, *keys: str) -> None:
    with conn.transaction():
        app.publish_many(conn, [Noted(order_id=key) for key in keys])


def left(conn: psycopg.Connection) -> list[str]:
    return [row[0] for row in conn.execute("SELECT aggregateid FROM pipeline.outbox ORDER BY seq")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["outbox", *arguments], catch_exceptions=False)


@pytest.fixture
def slot(conn: psycopg.Connection, prefix: str) -> str:
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (prefix,))
    return prefix


def point(conn: psycopg.Connection) -> None:
    """Take a point once the rows are older than every open transaction of the server: other tests have theirs."""
    oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot()) > max(xid) FROM pipeline.outbox"
    until(lambda: conn.execute(oldest).fetchone() == (True,), "older transactions to end")
    take_point(conn)


def relay_is_here(conn: psycopg.Connection, slot: str) -> None:
    """What a relay does that has published everything."""
    conn.execute(
        "INSERT INTO pipeline.relay_position SELECT %s, (SELECT system_identifier::text FROM pg_control_system()), "
        "(SELECT timeline_id FROM pg_control_checkpoint()), pg_current_wal_insert_lsn() "
        "ON CONFLICT (slot) DO UPDATE SET lsn = excluded.lsn",
        (slot,),
    )


def test_the_times_that_status_tells_are_utc_and_say_so(conn: psycopg.Connection, slot: str) -> None:
    conn.execute(f"ALTER DATABASE {conn.info.dbname} SET timezone = 'Asia/Tokyo'")
    publish(conn, "first")
    relay_is_here(conn, slot)
    found = json.loads(run("status", "-o", "json").output)
    times = [found["oldest_row"], *(one["stored_at"] for one in found["slots"] if one["slot"] == slot)]
    assert [time[-6:] for time in times] == ["+00:00", "+00:00"]
    assert all(abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=1) for time in times)


def test_what_every_relay_has_passed_goes_and_the_rest_stays(conn: psycopg.Connection, slot: str) -> None:
    publish(conn, *(f"{n}" for n in range(25)))
    point(conn)
    relay_is_here(conn, slot)
    publish(conn, "later")
    assert prune(conn, 0, batch=10, execute=False) == 25
    assert len(left(conn)) == 26
    assert prune(conn, 0, batch=10, execute=True) == 25
    assert left(conn) == ["later"]


def test_nothing_goes_before_the_relay_has_passed_the_point(conn: psycopg.Connection, slot: str) -> None:
    relay_is_here(conn, slot)
    publish(conn, "1")
    point(conn)
    assert plan(conn).horizon is None
    assert prune(conn, 0, batch=10, execute=True) == 0
    relay_is_here(conn, slot)
    assert prune(conn, 0, batch=10, execute=True) == 1


def test_a_transaction_that_was_open_at_the_point_stays(
    conn: psycopg.Connection, slot: str, database: Database
) -> None:
    with psycopg.connect(database.dsn) as slow:
        app.publish(slow, Noted(order_id="slow"))
        publish(conn, "quick")
        take_point(conn)
    relay_is_here(conn, slot)
    assert prune(conn, 0, batch=1, execute=True) == 0  # slow held the snapshot's xmin back
    assert left(conn) == ["slow", "quick"]
    point(conn)
    relay_is_here(conn, slot)
    assert prune(conn, 0, batch=1, execute=True) == 2
    assert conn.execute("SELECT count(*) FROM pipeline.prune_point").fetchone() == (1,)


def test_the_slowest_of_two_relays_decides(conn: psycopg.Connection, slot: str, prefix: str) -> None:
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"{prefix}2",))
    relay_is_here(conn, f"{prefix}2")
    publish(conn, "1")
    take_point(conn)
    relay_is_here(conn, slot)
    assert prune(conn, 0, batch=10, execute=True) == 0


def test_a_snapshot_that_was_published_without_a_slot_holds_back_nothing(conn: psycopg.Connection, slot: str) -> None:
    publish(conn, "1")
    point(conn)
    relay_is_here(conn, slot)
    relay_is_here(conn, stored_as("once"))
    assert plan(conn).slots == (slot,)
    assert prune(conn, 0, batch=10, execute=True) == 1


def test_a_slot_whose_reader_stored_nothing_holds_back_what_it_has_not_confirmed(
    conn: psycopg.Connection, slot: str, prefix: str
) -> None:
    """As that of a shard whose relay never ran; and of Debezium, which confirms to the server only."""
    other = f"{prefix}2"
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (other,))
    publish(conn, "1")
    point(conn)
    relay_is_here(conn, slot)
    assert set(plan(conn).slots) == {slot, other}
    assert prune(conn, 0, batch=10, execute=True) == 0
    conn.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (other,))
    assert prune(conn, 0, batch=10, execute=True) == 1


def test_retention_is_kept(conn: psycopg.Connection, slot: str) -> None:
    publish(conn, "old", "new")
    conn.execute("UPDATE pipeline.outbox SET created_at = created_at - %s WHERE seq = 1", (timedelta(hours=2),))
    point(conn)
    relay_is_here(conn, slot)
    assert prune(conn, 3600, batch=10, execute=True) == 1
    assert left(conn) == ["new"]


@pytest.mark.parametrize(
    ("doubt", "message"),
    [
        ("UPDATE pipeline.relay_position SET system_id = '1'", "another server"),
        ("UPDATE pipeline.relay_position SET timeline = 99", "another timeline"),
        ("UPDATE pipeline.relay_position SET lsn = 'FFFFFFFF/0'", "beyond this server's WAL"),
        ("UPDATE pipeline.relay_position SET lsn = '0/1'", "moved past the stored position"),
        ("UPDATE pipeline.relay_position SET slot = 'gone'", "it does not exist"),
        ("DELETE FROM pipeline.relay_position", "no relay has stored a position"),
    ],
)
def test_nothing_goes_while_a_slot_is_in_doubt(conn: psycopg.Connection, slot: str, doubt: str, message: str) -> None:
    publish(conn, "1")
    take_point(conn)
    relay_is_here(conn, slot)
    conn.execute(doubt.encode())
    with pytest.raises(SourceError, match=message):
        prune(conn, 0, batch=10, execute=True)
    assert left(conn) == ["1"]


def test_the_command_plans_and_deletes_only_when_told_to(conn: psycopg.Connection, slot: str) -> None:
    publish(conn, "1")
    point(conn)
    relay_is_here(conn, slot)
    planned = run("prune", "--older-than", "0s", "-o", "json")
    assert json.loads(planned.stdout) == {"would_delete": 1, "slots": slot}
    assert len(left(conn)) == 1
    assert json.loads(run("prune", "--older-than", "0s", "--execute", "-o", "json").stdout)["deleted"] == 1
    assert left(conn) == []
    assert run("prune", "--older-than", "soon").exit_code == 2


def test_tail_masks_what_is_personal(conn: psycopg.Connection) -> None:
    publish(conn, "1", "2", "3")
    lines = run("tail", "-n", "2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["2", "3"]
    assert "Ada" not in run("tail").stdout
    assert "Ada" in run("tail", "--reveal").stdout
    assert "outbox.event.order" in run("tail").stdout


def test_tail_follows_and_shows_what_commits_late(conn: psycopg.Connection, database: Database) -> None:
    publish(conn, "first")
    with psycopg.connect(database.dsn) as slow:
        app.publish(slow, Noted(order_id="slow"))
        rows = tail_outbox(Settings.load(), last=1, follow=True, reveal=True, models={})
        assert next(rows).key == "first"
        publish(conn, "quick")
        assert next(rows).key == "quick"
        slow.commit()
        assert next(rows).key == "slow"
        rows.close()


def test_tail_of_an_empty_or_missing_table(conn: psycopg.Connection) -> None:
    assert run("tail").stdout == ""
    conn.execute("DROP SCHEMA pipeline CASCADE")
    with pytest.raises(SourceError, match="pipeline db migrate"):
        list(tail_outbox(Settings.load(), last=1, follow=False, reveal=False, models={}))
