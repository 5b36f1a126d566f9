"""Enqueueing jobs on a real database: what stands where after the caller's transaction, and after a refusal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from servers import Database

from pipeline import Job, Pipeline
from pipeline.errors import ConfigError, JobError
from pipeline.job import Unique
from pipeline.outbox import Outbox
from pipeline.retry import RetryPolicy

app = Pipeline("shop", topic_prefix="")


class Mail(Job, queue="email", format="json"):
    to: str
    body: str = ""


class Fast(Job, queue="fast", format="json", track=False):
    n: int


app.register(Mail, Fast)


@pytest.fixture
def conn(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn) as connection:
        yield connection


def jobs(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM pipeline.job ORDER BY id").fetchall()


def count(conn: psycopg.Connection[Any], table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM pipeline.{table}").fetchone()
    assert row is not None
    return int(row[0])


def counted(conn: psycopg.Connection[Any]) -> dict[str, int]:
    rows = conn.execute(
        "SELECT state, sum(count)::int FROM (SELECT state, count FROM pipeline.job_count UNION ALL"
        " SELECT state, count FROM pipeline.job_delta) AS c GROUP BY state HAVING sum(count) <> 0"
    ).fetchall()
    return dict(rows)


def test_a_tracked_job_is_stored_with_its_outbox_row_and_counted(conn: psycopg.Connection[Any]) -> None:
    job_id = app.enqueue(conn, Mail(to="a@b.c"), tags=["x", "y", "x"])
    (job,) = jobs(conn)
    assert (job["id"], job["queue"], job["type"], job["state"]) == (job_id, "shop.jobs.email", "Mail", "waiting")
    assert job["tags"] == ["x", "y"]
    assert count(conn, "outbox") == 1
    assert counted(conn) == {"waiting": 1}
    conn.rollback()
    assert (count(conn, "job"), count(conn, "outbox"), counted(conn)) == (0, 0, {})


def test_an_untracked_job_is_an_outbox_row_alone(conn: psycopg.Connection[Any]) -> None:
    app.enqueue_many(conn, [Fast(n=n) for n in range(50)])
    assert (count(conn, "outbox"), count(conn, "job")) == (50, 0)


@pytest.mark.parametrize("unique", [None, Unique(key="a")])
def test_a_class_that_is_not_tracked_has_no_job_with_a_row_that_nobody_would_update(
    conn: psycopg.Connection[Any], unique: Unique | None
) -> None:
    with pytest.raises(ConfigError, match="track=False out of the class"):
        app.enqueue(conn, Fast(n=1), track=True, unique=unique)
    assert (count(conn, "outbox"), count(conn, "job")) == (0, 0)


def test_a_delayed_job_waits_encoded_and_not_in_the_outbox(conn: psycopg.Connection[Any]) -> None:
    job_id = app.enqueue(conn, Mail(to="a@b.c"), delay_s=90, headers={"tenant": "7"})
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT *, due_at - now() AS wait FROM pipeline.due").fetchone()
    assert row is not None
    assert row["id"] == job_id
    assert row["payload"] == b'{"to":"a@b.c","body":""}'
    assert row["headers"] == {"tenant": "7"}
    assert row["topic"] == "shop.jobs.email"
    assert timedelta(seconds=30) < row["wait"] < timedelta(seconds=95)
    assert count(conn, "outbox") == 0
    assert jobs(conn)[0]["state"] == "delayed"


def test_run_at_is_kept_to_the_microsecond_whatever_its_zone(conn: psycopg.Connection[Any]) -> None:
    when = datetime(2031, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
    app.enqueue(conn, Mail(to="a"), run_at=when.astimezone(tz=None))
    assert conn.execute("SELECT due_at FROM pipeline.due").fetchone() == (when,)
    assert jobs(conn)[0]["due_at"] == when


def test_a_bulk_of_delayed_jobs_keeps_ids_in_order(conn: psycopg.Connection[Any]) -> None:
    ids = app.enqueue_many(conn, [Mail(to=str(n)) for n in range(1200)], delay_s=5)
    assert len(set(ids)) == 1200
    found = dict(conn.execute("SELECT id, convert_from(payload, 'UTF8')::json->>'to' FROM pipeline.due").fetchall())
    assert [found[one] for one in ids] == [str(n) for n in range(1200)]
    assert counted(conn) == {"delayed": 1200}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"run_at": datetime(2030, 1, 1)}, "no time zone"),  # noqa: DTZ001 — that is what is refused
        ({"delay_s": -1}, "delay_s=-1"),
        ({"delay_s": float("nan")}, "delay_s=nan"),
        ({"delay_s": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "together"),
        ({"tags": ["x"] * 33}, "tags"),
        ({"tags": "abc"}, "tags"),
        ({"priority": "urgent"}, "urgent"),
        ({"unique": Unique(), "track": False}, "unique"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"timeout_s": True}, "timeout_s=True"),
        ({"expires_s": -1}, "expires_s=-1"),
        ({"retry": {"attempts": 3}}, "retry="),
        ({"retry": RetryPolicy(attempts=3, jitter=False)}, "retry="),
        ({"retry": RetryPolicy(fatal=(ValueError,))}, "fatal"),
        ({"headers": {"pipeline.terms": "{}"}}, "is ours"),
        ({"unique": Unique(by=("nothing",))}, "no field 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    conn: psycopg.Connection[Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        app.enqueue(conn, Mail(to="a"), **options)
    assert [count(conn, table) for table in ("outbox", "due", "job", "job_key")] == [0, 0, 0, 0]


def test_terms_stand_in_a_header_of_the_row_and_in_what_is_known_of_the_job(conn: psycopg.Connection[Any]) -> None:
    policy = RetryPolicy(attempts=3, first_s=1, factor=2, cap_s=60, jitter=0)
    app.enqueue(conn, Mail(to="a"), timeout_s=5, retry=policy, expires_s=60.5, headers={"tenant": "7"})
    app.enqueue(conn, Mail(to="b"), timeout_s=5, delay_s=60)
    app.enqueue(conn, Mail(to="c"))
    retry = {"attempts": 3, "first_s": 1, "factor": 2, "cap_s": 60, "jitter": 0}
    given = {"timeout_s": 5, "expires_s": 60.5, "retry": retry}
    (now, none), later = (
        conn.execute(f"SELECT headers FROM pipeline.{table} ORDER BY id").fetchall() for table in ("outbox", "due")
    )
    assert json.loads(now[0].pop("pipeline.terms")) == {"version": 1, **given}
    assert now[0] == {"tenant": "7"}
    assert none == (None,)
    assert [row[0]["pipeline.terms"] for row in later] == ['{"version": 1, "timeout_s": 5}']
    assert [job["terms"] for job in jobs(conn)] == [given, {"timeout_s": 5}, None]


def test_a_table_without_headers_takes_no_job_with_terms(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE mine (id uuid, aggregateid text, type text, payload bytea, topic text)")
    none = {"aggregatetype": None, "headers": None, "traceparent": None}
    other = Pipeline("shop", topic_prefix="", outbox=Outbox("public", "mine", columns=none))
    other.enqueue(conn, Mail(to="a"))
    for options in ({"timeout_s": 5}, {"timeout_s": 5, "delay_s": 60}):
        with pytest.raises(ConfigError, match=r"public\.mine has no headers"):
            other.enqueue(conn, Mail(to="a"), **options)


def test_unique_keeps_the_first_while_it_is_unfinished(conn: psycopg.Connection[Any]) -> None:
    once = Unique(key="welcome-7")
    first = app.enqueue(conn, Mail(to="a"), unique=once)
    assert app.enqueue(conn, Mail(to="b"), unique=once) == first
    assert app.enqueue(conn, Mail(to="b"), unique=Unique(key="other")) != first
    assert (count(conn, "outbox"), count(conn, "job")) == (2, 2)
    conn.execute("SELECT pipeline.settle_jobs(%s)", (f'[{{"id": "{first}", "state": "done"}}]',))
    assert app.enqueue(conn, Mail(to="b"), unique=once) != first


def test_unique_for_a_period_outlives_the_job_and_ends(conn: psycopg.Connection[Any]) -> None:
    hourly = Unique(by=("to",), period_s=3600)
    first = app.enqueue(conn, Mail(to="a"), unique=hourly)
    conn.execute("SELECT pipeline.settle_jobs(%s)", (f'[{{"id": "{first}", "state": "done"}}]',))
    assert app.enqueue(conn, Mail(to="a", body="again"), unique=hourly) == first
    conn.execute("UPDATE pipeline.job_key SET until = now() - interval '1 second'")
    assert app.enqueue(conn, Mail(to="a"), unique=hourly) != first


def test_unique_rejects_and_takes_no_other_key_on_the_way(conn: psycopg.Connection[Any]) -> None:
    rejecting = Unique(by=("to",), on_conflict="reject")
    first = app.enqueue(conn, Mail(to="a"), unique=rejecting)
    with pytest.raises(JobError, match=str(first)):
        app.enqueue_many(conn, [Mail(to="new"), Mail(to="a")], unique=rejecting)
    assert (count(conn, "outbox"), count(conn, "job"), count(conn, "job_key")) == (1, 1, 1)
    assert app.enqueue(conn, Mail(to="new"), unique=rejecting)


def test_unique_replaces_what_has_not_begun(conn: psycopg.Connection[Any]) -> None:
    latest = Unique(key="report", on_conflict="replace")
    first = app.enqueue(conn, Mail(to="old"), unique=latest, delay_s=60)
    second = app.enqueue(conn, Mail(to="new"), unique=latest, delay_s=30)
    assert conn.execute("SELECT id FROM pipeline.due").fetchall() == [(second,)]
    assert {job["id"]: job["state"] for job in jobs(conn)} == {first: "cancelled", second: "delayed"}
    assert conn.execute("SELECT job_id FROM pipeline.job_key").fetchall() == [(second,)]


def test_jobs_of_one_call_agree_on_their_keys(conn: psycopg.Connection[Any]) -> None:
    ids = app.enqueue_many(conn, [Mail(to="a"), Mail(to="b"), Mail(to="a")], unique=Unique(by=("to",)))
    assert ids[0] == ids[2] != ids[1]
    assert count(conn, "outbox") == 2
    with pytest.raises(JobError):
        app.enqueue_many(conn, [Mail(to="c"), Mail(to="c")], unique=Unique(by=("to",), on_conflict="reject"))
    assert count(conn, "outbox") == 2


def test_concurrent_transactions_enqueue_a_unique_job_once(database: Database) -> None:
    ids: list[Any] = []
    barrier = threading.Barrier(8)

    def enqueue() -> None:
        with psycopg.connect(database.dsn) as own:
            barrier.wait()
            ids.append(app.enqueue(own, Mail(to="x"), unique=Unique(key="one")))

    threads = [threading.Thread(target=enqueue) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with psycopg.connect(database.dsn) as conn:
        assert (len(ids), len(set(ids)), count(conn, "outbox")) == (8, 1, 1)


def test_cancel_ends_a_delayed_job_at_once_and_asks_for_the_end_of_a_waiting_one(conn: psycopg.Connection[Any]) -> None:
    delayed = app.enqueue(conn, Mail(to="a"), delay_s=60, unique=Unique(key="k"))
    waiting = app.enqueue(conn, Mail(to="b"))
    rows = conn.execute("SELECT * FROM pipeline.cancel_jobs(%s)", ([delayed, waiting],)).fetchall()
    assert dict(rows) == {delayed: "cancelled", waiting: "waiting"}
    assert (count(conn, "due"), count(conn, "job_key")) == (0, 0)
    assert counted(conn) == {"cancelled": 1, "waiting": 1}


def test_unique_replaces_a_holder_and_asks_for_its_end_where_it_runs(
    conn: psycopg.Connection[Any],
) -> None:
    latest = Unique(key="report", on_conflict="replace")
    left = app.enqueue(conn, Mail(to="on its way"), unique=latest)
    begun = app.enqueue(conn, Mail(to="running"), unique=Unique(key="long", on_conflict="replace"))
    conn.execute("SELECT pipeline.settle_jobs(%s)", (f'[{{"id": "{begun}", "state": "running"}}]',))
    second = app.enqueue(conn, Mail(to="new"), unique=latest)
    third = app.enqueue(conn, Mail(to="new"), unique=Unique(key="long", on_conflict="replace"))
    assert len({left, begun, second, third}) == 4
    # a worker ends what waits before it begins, and what runs where it can be; the key is the new one's
    assert {job["id"]: (job["state"], job["cancel_at"] is not None) for job in jobs(conn)} == {
        left: ("waiting", True),
        begun: ("running", True),
        second: ("waiting", False),
        third: ("waiting", False),
    }
    for ended, state in ((left, "cancelled"), (begun, "done")):
        conn.execute("SELECT pipeline.settle_jobs(%s)", (f'[{{"id": "{ended}", "state": "{state}"}}]',))
    # the ends of those that were replaced do not free the keys of those that came after
    assert set(conn.execute("SELECT job_id FROM pipeline.job_key").fetchall()) == {(second,), (third,)}
    assert app.enqueue(conn, Mail(to="b"), unique=Unique(key="report")) == second
    assert count(conn, "outbox") == 4


def test_many_are_copied_and_few_are_inserted(conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    copy = psycopg.Cursor.copy

    def spy(cursor: psycopg.Cursor[Any], statement: bytes, *given: Any, **named: Any) -> Any:
        copied.append(statement.decode().split(" (")[0])
        return copy(cursor, statement, *given, **named)

    monkeypatch.setattr(psycopg.Cursor, "copy", spy)
    app.enqueue_many(conn, [Fast(n=n) for n in range(19)])
    assert copied == []
    app.enqueue_many(conn, [Mail(to=str(n)) for n in range(20)])
    assert copied == ['COPY "pipeline"."outbox"']
    assert (count(conn, "outbox"), count(conn, "job")) == (39, 20)
