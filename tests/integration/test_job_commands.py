"""What people ask and command of jobs: by Python in their own transaction, and by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from commands import CommandLine, runner
from servers import Database
from working import wait_until

from pipeline import Job, Pipeline, jobs
from pipeline.errors import ConfigError, JobError
from pipeline.postgres.due import DueStore
from pipeline.postgres.tidy import tidy
from pipeline.scheduler import Moved

APP = """
from pipeline import Breaker, Context, Job, Pipeline, RetryPolicy
app = Pipeline("shop", topic_prefix="")

class Mail(Job, queue="email", format="json"):
    to: str
    copies: int = 1

@app.job(Mail, retry=RetryPolicy(attempts=4, first_s=5, factor=4, cap_s=60, jitter=0))
def mail(job: Mail, ctx: Context) -> None: ...

class Fetch(Job, queue="fetch", format="json"):
    url: str

@app.job(
    Fetch, retry=RetryPolicy(uncounted=(ConnectionError,)), breaker=Breaker(threshold=4, cool_down_s=30, cap_s=300)
)
def fetch(job: Fetch, ctx: Context) -> None: ...

@app.schedule("0 3 * * *", name="nightly", timezone="Europe/Berlin")
async def nightly(ctx: Context) -> None: ...
"""

app = Pipeline("shop", topic_prefix="")


class Mail(Job, queue="email", format="json"):
    to: str


class Other(Job, queue="other", format="json"):
    to: str


@pytest.fixture
def conn(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn) as connection:
        yield connection


def finish(conn: psycopg.Connection[Any], job_id: UUID, state: str) -> None:
    conn.execute("SELECT pipeline.settle_jobs(%s)", (json.dumps([{"id": str(job_id), "state": state}]),))


def states(conn: psycopg.Connection[Any]) -> dict[tuple[str, str], int]:
    return {(queue, state): n for queue, _, state, n in app.run(conn, jobs.counts())}


def test_lists_are_filtered_and_paged_and_counts_agree(conn: psycopg.Connection[Any]) -> None:
    ids = [app.enqueue(conn, Mail(to=str(n)), tags=["odd"] if n % 2 else []) for n in range(25)]
    other = app.enqueue(conn, Other(to="x"), delay_s=60)
    for job_id in ids[:5]:
        finish(conn, job_id, "done")
    newest = sorted((*ids, other), reverse=True)
    assert [row.id for row in app.run(conn, jobs.listing(limit=26))] == newest
    found: list[UUID] = []
    while page := app.run(conn, jobs.listing(queue="shop.jobs.email", before=found[-1] if found else None, limit=7)):
        found += [row.id for row in page]
    assert found == sorted(ids, reverse=True)
    assert {row.id for row in app.run(conn, jobs.listing(state="done"))} == set(ids[:5])
    assert [row.id for row in app.run(conn, jobs.listing(state="delayed", type_name="Other"))] == [other]
    assert {row.id for row in app.run(conn, jobs.listing(tag="odd", state="waiting"))} == set(ids[5::2])
    expected = {("shop.jobs.email", "done"): 5, ("shop.jobs.email", "waiting"): 20, ("shop.jobs.other", "delayed"): 1}
    assert states(conn) == expected
    conn.commit()
    conn.autocommit = True
    tidy(conn, keep_days=7)
    with conn.transaction():
        assert states(conn) == expected
        assert {row.id for row in app.run(conn, jobs.listing(state="done"))} == set(ids[:5])


def test_lists_and_counts_read_the_index_and_not_the_table(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "INSERT INTO pipeline.job (id, queue, type, state) SELECT gen_random_uuid(), 'q' || n % 3, 't' || n % 5,"
        " CASE WHEN n % 100 = 0 THEN 'dead' ELSE 'done' END FROM generate_series(1, 60000) AS n"
    )
    conn.commit()
    conn.autocommit = True
    for _ in range(3):
        tidy(conn, keep_days=7)
    conn.execute("VACUUM ANALYZE pipeline.job")
    for steps in (jobs.listing(state="dead"), jobs.listing(queue="q1"), jobs.listing(), jobs.counts()):
        statement = next(steps)
        plan = conn.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql.encode(), statement.rows[0]).fetchone()
        assert plan is not None
        assert "Seq Scan on job" not in json.dumps(plan[0]).replace('"Relation Name": "job_', "")
        assert _rows_read(plan[0][0]["Plan"]) < 3000


def _rows_read(plan: dict[str, Any]) -> float:
    assert not (plan["Node Type"] == "Seq Scan" and plan.get("Relation Name") == "job")
    own = plan["Actual Rows"] * plan["Actual Loops"] if plan.get("Relation Name") == "job" else 0
    return float(own + sum(_rows_read(child) for child in plan.get("Plans", ())))


def test_a_delayed_job_is_rescheduled_edited_and_then_no_more(conn: psycopg.Connection[Any]) -> None:
    job_id = app.enqueue(conn, Mail(to="old"), delay_s=60)
    when = datetime(2031, 1, 1, tzinfo=UTC)
    assert app.run(conn, jobs.reschedule(job_id, run_at=when)) == when
    app.run(conn, app.edit(job_id, Mail(to="new")))
    row = conn.execute("SELECT due_at, payload FROM pipeline.due").fetchone()
    assert row == (when, b'{"to":"new"}')
    assert app.run(conn, jobs.find(job_id)).due_at == when
    with pytest.raises(JobError, match="no delayed Other"):
        app.run(conn, app.edit(job_id, Other(to="x")))
    with pytest.raises(ConfigError, match="time zone"):
        app.run(conn, jobs.reschedule(job_id, run_at=datetime(2031, 1, 1)))  # noqa: DTZ001 — that is what is refused
    assert app.run(conn, jobs.cancel(job_id)) == "cancelled"
    with pytest.raises(JobError, match="is cancelled"):
        app.run(conn, jobs.reschedule(job_id, delay_s=1))
    with pytest.raises(JobError, match="nothing to cancel"):
        app.run(conn, jobs.cancel(job_id))


def test_a_dead_job_is_sent_again_under_its_own_id_and_its_letter_counts_as_redriven(
    conn: psycopg.Connection[Any],
) -> None:
    job_id = app.enqueue(conn, Mail(to="a"))
    with pytest.raises(JobError, match="is waiting"):
        app.run(conn, jobs.retry(job_id))
    finish(conn, job_id, "dead")
    conn.execute(
        'INSERT INTO pipeline.dead_letter (topic, partition, "offset", event_id, fingerprint, error, died_at)'
        " VALUES ('q.dlq', 0, 0, %s, 'f', 'E', now())",
        (str(job_id),),
    )
    before = conn.execute("SELECT seq FROM pipeline.outbox WHERE id = %s", (job_id,)).fetchone()
    app.run(conn, jobs.retry(job_id))
    after = conn.execute("SELECT seq FROM pipeline.outbox WHERE id = %s", (job_id,)).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert app.run(conn, jobs.find(job_id)).state == "waiting"
    assert conn.execute("SELECT state FROM pipeline.dead_letter").fetchone() == ("redriven",)
    finish(conn, job_id, "dead")
    conn.execute("DELETE FROM pipeline.outbox")
    with pytest.raises(JobError, match="not there any more"):
        app.run(conn, jobs.retry(job_id))


def test_many_are_cancelled_and_sent_again_at_once_and_others_left_alone(conn: psycopg.Connection[Any]) -> None:
    ids = [app.enqueue(conn, Mail(to=str(n)), delay_s=60 if n < 3 else 0) for n in range(8)]
    finish(conn, ids[7], "done")
    assert app.run(conn, jobs.cancel_many(ids[:5])) == 5
    assert [app.run(conn, jobs.find(one)).state for one in ids[:5]] == ["cancelled"] * 3 + ["waiting"] * 2
    for job_id in ids[4:7]:
        finish(conn, job_id, "dead")
    conn.execute("DELETE FROM pipeline.outbox WHERE id = %s", (ids[5],))
    # of the first the row went with the cancellation, of the sixth by itself; the eighth is done
    assert set(app.run(conn, jobs.retry_many(ids))) == {ids[4], ids[6]}  # ids of one millisecond have any order
    assert [app.run(conn, jobs.find(one)).state for one in ids[4:]] == ["waiting", "dead", "waiting", "done"]
    assert app.run(conn, jobs.find(ids[4])).cancel_at is None


def test_jobs_are_found_by_when_they_were_enqueued(conn: psycopg.Connection[Any]) -> None:
    before = app.enqueue(conn, Mail(to="a"), tags=["x"])
    row = conn.execute("SELECT clock_timestamp() + interval '2 ms'").fetchone()
    assert row is not None
    wait_until(lambda: datetime.now(UTC) > row[0])
    after = app.enqueue(conn, Mail(to="b"), tags=["x"])
    for which in ({}, {"tag": "x"}, {"type_name": "Mail"}):
        assert [one.id for one in app.run(conn, jobs.listing(since=row[0], **which))] == [after]  # type: ignore[misc]
        assert {one.id for one in app.run(conn, jobs.listing(since=None, **which))} == {before, after}  # type: ignore[misc]
    with pytest.raises(ConfigError, match="time zone"):
        app.run(conn, jobs.listing(since=datetime(2031, 1, 1)))  # noqa: DTZ001 — that is what is refused


def test_unknown_ids_are_said_so(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(JobError, match="no job"):
        app.run(conn, jobs.find("01900000-0000-7000-8000-000000000000"))
    with pytest.raises(ConfigError, match="not a job's id"):
        app.run(conn, jobs.cancel("seven"))
    with pytest.raises(JobError, match="no schedule shop"):
        app.run(conn, jobs.pause_schedule("shop.nope"))
    with pytest.raises(ConfigError, match="no schedule nope"):
        app.tick("nope")


class Shell:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def __call__(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "pipeline", *words]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr


@pytest.fixture
def shell(tmp_path: Path, cli_environment: dict[str, str]) -> Shell:
    (tmp_path / "shop.py").write_text(APP)
    return Shell(tmp_path, cli_environment)


def test_the_command_line_enqueues_shows_cancels_and_lists(shell: Shell, conn: psycopg.Connection[Any]) -> None:
    arguments = ("jobs", "enqueue", "shop:app", "Mail")
    first = shell(*arguments, '{"to": "a"}', "--delay", "60", "--tag", "x", "--unique-key", "k").strip()
    assert shell(*arguments, '{"to": "b"}', "--unique-key", "k").strip() == first
    own = ("--timeout", "5", "--retry", "attempts=2,first_s=1", "--expires", "60", "--delay", "60")
    second = json.loads(shell("jobs", "show", shell(*arguments, '{"to": "a"}', *own).strip(), "-o", "json"))
    assert (second["terms"]["timeout_s"], second["terms"]["expires_s"]) == (5, 60)
    assert (second["terms"]["retry"]["attempts"], second["terms"]["retry"]["first_s"]) == (2, 1)
    shell("jobs", "cancel", second["id"])
    shown = json.loads(shell("jobs", "show", first, "-o", "json"))
    assert (shown["state"], shown["tags"], shown["type"]) == ("delayed", ["x"], "Mail")
    shell("jobs", "cancel", first)
    assert json.loads(shell("jobs", "show", first, "--wait", "5", "-o", "json"))["state"] == "cancelled"
    fourth = shell(*arguments, '{"to": "d"}', "--delay", "60").strip()
    said = shell("jobs", "cancel", first, "x", fourth, code=2)  # each is tried
    assert said.splitlines() == [
        f"{first}: job {first} is cancelled: there is nothing to cancel",
        "x: 'x' is not a job's id",
        f"{fourth}: cancelled",
    ]
    later = shell(*arguments, '{"to": "c"}', "--run-at", "2031-03-01T03:00:00+01:00").strip()
    assert [row["id"] for row in json.loads(shell("jobs", "list", "--state", "delayed", "-o", "json"))] == [later]
    counted = json.loads(shell("jobs", "list", "--counts", "-o", "json"))
    assert {row["state"]: row["count"] for row in counted} == {"cancelled": 3, "delayed": 1}
    shell("jobs", "pause", "shop.jobs.email")
    assert conn.execute("SELECT queue, paused FROM pipeline.control").fetchall() == [("shop.jobs.email", True)]
    conn.commit()
    shell("jobs", "resume", "shop.jobs.email")
    assert conn.execute("SELECT paused FROM pipeline.control").fetchall() == [(False,)]


def test_a_queue_of_which_no_job_is_known_is_paused_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str],
    conn: psycopg.Connection[Any],
) -> None:  # fmt: skip
    pipeline = runner(capsys, monkeypatch, cli_environment)
    paused = pipeline("jobs", "pause", "email")
    assert (paused.code, "is that its full name" in paused.stderr) == (0, True)
    app.enqueue(conn, Mail(to="a"))
    conn.commit()
    assert "full name" not in pipeline("jobs", "pause", "shop.jobs.email").stderr


def test_the_command_line_plans_before_it_changes_many(shell: Shell, conn: psycopg.Connection[Any]) -> None:
    ids = [app.enqueue(conn, Mail(to=str(n)), tags=["x"] if n % 2 else []) for n in range(2500)]
    app.enqueue(conn, Other(to="x"), delay_s=60)
    conn.commit()
    plan = json.loads(shell("jobs", "cancel", "--tag", "x", "-o", "json"))
    assert plan == [{"queue": "shop.jobs.email", "type": "Mail", "state": "waiting", "count": 1250}]
    assert conn.execute("SELECT count(*) FROM pipeline.job WHERE cancel_at IS NOT NULL").fetchone() == (0,)
    shell("jobs", "cancel", "--tag", "x", "--execute")
    assert conn.execute("SELECT count(*) FROM pipeline.job WHERE cancel_at IS NOT NULL").fetchone() == (1250,)
    conn.execute("UPDATE pipeline.job SET state = 'dead', finished_at = now() WHERE type = 'Mail'")
    conn.execute("DELETE FROM pipeline.outbox WHERE id = %s", (ids[0],))
    conn.commit()
    assert json.loads(shell("jobs", "retry", "--type", "Mail", "-o", "json"))[0]["count"] == 2500
    assert "left: 1: another job has their unique key, or their outbox rows" in shell(
        "jobs", "retry", "--type", "Mail", "--execute", code=2
    )
    assert states(conn) == {
        ("shop.jobs.email", "waiting"): 2499,
        ("shop.jobs.email", "dead"): 1,
        ("shop.jobs.other", "delayed"): 1,
    }
    conn.commit()
    assert "at least one of" in shell("jobs", "cancel", code=2)
    assert "at least one of" in shell("jobs", "retry", str(ids[0]), "--type", "Mail", code=2)


def test_the_command_line_filters_by_each_option_and_gives_a_priority(
    pipeline: CommandLine, tmp_path: Path, conn: psycopg.Connection[Any]
) -> None:
    (tmp_path / "shop.py").write_text(APP + 'app.queue("fetch", priorities=True)')

    def listed(*words: str) -> list[str]:
        found = pipeline("jobs", "list", *words, "-o", "json")
        assert found.code == 0, found.stderr
        return [row["id"] for row in json.loads(found.stdout)]

    def enqueued(name: str, arguments: str, *words: str) -> str:
        found = pipeline("jobs", "enqueue", "shop:app", name, arguments, *words)
        assert found.code == 0, found.stderr
        return found.stdout.strip()

    mails = [enqueued("Mail", f'{{"to": "{n}"}}') for n in range(2)]
    fetch = enqueued("Fetch", '{"url": "u"}', "--priority", "high")
    conn.execute("UPDATE pipeline.job SET created_at = '2026-03-01T09:30:00Z' WHERE id = %s", (mails[0],))
    assert json.loads(pipeline("jobs", "show", fetch, "-o", "json").stdout)["priority"] == "high"
    assert conn.execute("SELECT topic FROM pipeline.outbox WHERE id = %s", (fetch,)).fetchone() == (
        "shop.jobs.fetch.high",
    )
    assert json.loads(pipeline("jobs", "show", mails[0], "-o", "json").stdout)["priority"] == "normal"
    refused = pipeline("jobs", "enqueue", "shop:app", "Mail", '{"to": "a"}', "--priority", "high")
    assert (refused.code, "has no priorities" in refused.stderr) == (1, True)
    assert pipeline("jobs", "enqueue", "shop:app", "Fetch", '{"url": "u"}', "--priority", "urgent").code == 2
    assert listed() == [fetch, mails[1], mails[0]]
    assert listed("--queue", "shop.jobs.fetch") == [fetch]
    assert listed("--type", "Mail") == [mails[1], mails[0]]
    enqueued_at = [datetime.fromtimestamp((UUID(mail).int >> 80) / 1000, UTC).isoformat() for mail in mails]
    assert listed("--since", enqueued_at[1], "--type", "Mail") == [mails[1]]
    assert listed("--since", enqueued_at[0], "--type", "Mail") == [mails[1], mails[0]]
    first = pipeline("jobs", "list", "--limit", "2", "-o", "json")
    assert f"more: --before {mails[1]}" in first.stderr
    assert listed("--limit", "2", "--before", mails[1]) == [mails[0]]


def test_the_command_line_sends_a_dead_job_again_and_holds_a_schedule(
    pipeline: CommandLine, database: Database, tmp_path: Path, conn: psycopg.Connection[Any]
) -> None:
    job_id = app.enqueue(conn, Mail(to="a"))
    before = conn.execute("SELECT seq FROM pipeline.outbox").fetchall()
    finish(conn, job_id, "dead")
    conn.commit()
    sent = pipeline("jobs", "retry", str(job_id))
    assert (sent.code, sent.stderr.strip()) == (0, "waiting")
    assert json.loads(pipeline("jobs", "show", str(job_id), "-o", "json").stdout)["state"] == "waiting"
    assert conn.execute("SELECT seq FROM pipeline.outbox").fetchall() > before  # it leaves again
    again = pipeline("jobs", "retry", str(job_id))
    assert (again.code, "is waiting" in again.stderr) == (1, True)

    (tmp_path / "shop.py").write_text(APP)
    assert pipeline("jobs", "pause", "--schedule", "shop.nightly").code == 1  # no scheduler has had it
    ours = Pipeline("shop", topic_prefix="")
    ours.schedule("0 3 * * *", name="nightly", timezone="Europe/Berlin")(lambda tick, ctx: None)
    store = DueStore(database.dsn, ours.outbox, Moved)
    store.declare(ours.schedules)
    for command, said, paused in (("pause", "is paused", True), ("resume", "goes on", False)):
        done = pipeline("jobs", command, "--schedule", "shop.nightly")
        assert (done.code, done.stderr.strip()) == (0, f"shop.nightly {said}")
        conn.rollback()
        assert conn.execute("SELECT name, paused FROM pipeline.schedule").fetchall() == [("shop.nightly", paused)]
        assert set(store.decided(ours.schedules)) == (set() if paused else {"shop.nightly"})  # no ticks of a paused one
        assert conn.execute("SELECT count(*) FROM pipeline.control").fetchone() == (0,)
        assert pipeline("jobs", command, "shop.jobs.email", "--schedule", "shop.nightly").code == 2
    store.close()


def test_the_command_line_moves_edits_and_ticks(shell: Shell, conn: psycopg.Connection[Any]) -> None:
    job_id = app.enqueue(conn, Mail(to="old"), delay_s=60)
    conn.commit()
    when = shell("jobs", "reschedule", str(job_id), "--run-at", "2031-03-01T03:00:00+01:00").strip()
    assert when == "2031-03-01T02:00:00+00:00"
    shell("jobs", "edit", "shop:app", str(job_id), '{"to": "new"}')
    assert conn.execute("SELECT due_at, payload FROM pipeline.due").fetchone() == (
        datetime(2031, 3, 1, 2, tzinfo=UTC),
        b'{"to":"new","copies":1}',
    )
    assert "Field required" in shell("jobs", "edit", "shop:app", str(job_id), "{}", code=1)
    assert "--delay or --run-at" in shell("jobs", "reschedule", str(job_id), code=2)
    ticked = shell("jobs", "tick", "shop:app", "nightly").strip()
    found = conn.execute("SELECT schedule, job_id::text, at > now() - interval '1 min' FROM pipeline.tick").fetchone()
    assert found == ("shop.nightly", ticked, True)
    assert json.loads(shell("jobs", "show", ticked, "-o", "json"))["type"] == "Tick_nightly"
    coming = json.loads(shell("jobs", "schedules", "shop:app", "--next", "3", "-o", "json"))
    assert len({row["at"] for row in coming}) == 3
    assert {row["name"] for row in coming} == {"shop.nightly"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("enqueue", "shop:app", "Nope", "{}"), "no job 'Nope'.*\n.*jobs are: .*Mail"),
        (("enqueue", "shop:app", "Mail", '{"to": 1}'), "Mail: to: "),
        (("enqueue", "shop:app", "Mail", "{"), "Mail: JSON: "),
        (("enqueue", "shop:app", "Mail", '{"to": "a"}', "--run-at", "2031-01-01T00:00:00"), "no time zone"),
        (("enqueue", "shop:app", "Mail", '{"to": "a"}', "--run-at", "tomorrow"), "is not a time"),
        (("enqueue", "shop:app", "Mail", '{"to": "a"}', "--retry", "often"), "is not a policy"),
        (("enqueue", "shop:app", "Mail", '{"to": "a"}', "--retry", "attempts=0"), "attempts=0 must be"),
        (("enqueue", "shop:app", "Mail", '{"to": "a"}', "--unique-key", ""), "1 to 500 characters"),
        (("show", "x"), "not a job's id"),
    ],
)
def test_bad_input_is_said_and_nothing_is_enqueued(
    shell: Shell, conn: psycopg.Connection[Any], words: tuple[str, ...], says: str
) -> None:
    import re

    assert re.search(says, shell("jobs", *words, code=1))
    assert conn.execute("SELECT count(*) FROM pipeline.job").fetchone() == (0,)


def test_schedules_and_policies_are_explained(shell: Shell) -> None:
    (row,) = json.loads(shell("jobs", "schedules", "shop:app", "-o", "json"))
    assert (row["name"], row["cron"], row["last"]) == ("shop.nightly", "0 3 * * *", None)
    assert "03:00" not in row["next"]  # in UTC
    rows = json.loads(shell("jobs", "policy", "explain", "shop:app", "Mail", "-o", "json"))
    assert [row["wait"] for row in rows] == ["0s", "5s", "20s", "60s", ""]
    assert rows[2]["topic"] == "shop.jobs.email.retry.20s"
    assert rows[2]["retention"] == "14 d"
    assert rows[3]["at the latest"] == "1 min 25 s"
    assert rows[-1]["topic"] == "shop.jobs.email.dlq"
    breaker = json.loads(shell("jobs", "policy", "explain", "shop:app", "Fetch", "-o", "json"))[-2]
    assert breaker["attempt"] == "breaker"
    assert breaker["wait"] == "30s to 300s"
    assert breaker["topic"] == "4 of ConnectionError within 1 min, 50% of all attempts"
