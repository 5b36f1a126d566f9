"""An outbox that is polled: what no WAL tells has to come out of queries, on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from relays import POLLING_INDEX, RelayProcess, connector_file, headers, ids, insert, read_topic, until
from servers import Database
from waiting import wait_until

from pipeline.capture import Routed
from pipeline.errors import SourceError
from pipeline.postgres import poll_position
from pipeline.postgres.polling import PollingSource, PollSettings

Conn = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def conn(conn: Conn) -> Conn:
    conn.execute(POLLING_INDEX)
    return conn


def polling(folder: Path, name: str, **changes: str | None) -> Path:
    return connector_file(folder, name, **{"pipeline.capture": "polling", "poll.interval.ms": "20", **changes})


def test_committed_rows_arrive_and_nothing_else_does(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database, conn: Conn,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    insert(conn, topic, "before")
    with RelayProcess(polling(tmp_path, prefix), cli_environment) as relay:
        relay.reading()
        first = insert(conn, topic, "k", b"\0\0\0\0\1x", headers='{"a": 1}', traceparent="00-ab-cd-01")
        with psycopg.connect(database.dsn) as other:
            insert(other, topic, "never")
            other.rollback()
        last = insert(conn, topic, "k", None)
        records = until(lambda: len(m := read_topic(bootstrap_servers, topic)) == 2 and m, "both records")
        assert relay.stop() == 0
    assert ids(records) == [first, last]
    assert (records[0].key(), records[0].value(), records[1].value()) == (b"k", b"\0\0\0\0\1x", None)
    assert headers(records[0])["headers"] == b'{"a": 1}'
    assert '"level": "error"' not in relay.log


def test_an_open_transaction_holds_back_pruning_only_and_status_names_it(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database, conn: Conn,
    bootstrap_servers: str, pipeline: CommandLine,
) -> None:  # fmt: skip
    with psycopg.connect(database.dsn) as slow, RelayProcess(polling(tmp_path, prefix), cli_environment) as relay:
        relay.reading()
        late = insert(slow, topic, "slow")
        quick = insert(conn, topic, "quick")
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == [quick], "the quick one")
        found = json.loads(pipeline("outbox", "status", "-o", "json").stdout)
        assert found["oldest_write_transaction_pid"] == slow.info.backend_pid
        (poller,) = found["pollers"]
        assert (poller["slot"], poller["active"]) == (prefix, True)
        assert pipeline("outbox", "status").code == 0
        slow.commit()
        until(lambda: set(ids(read_topic(bootstrap_servers, topic))) == {quick, late}, "both")
        assert relay.stop() == 0
    assert pipeline("outbox", "status").code == 2


def test_rows_are_pruned_once_the_stored_position_is_past_them(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], conn: Conn, bootstrap_servers: str,
    pipeline: CommandLine,
) -> None:  # fmt: skip
    left = "SELECT aggregateid FROM pipeline.outbox"
    prune = lambda: pipeline("outbox", "prune", "--older-than", "0s", "--execute")  # noqa: E731
    with RelayProcess(polling(tmp_path, prefix), cli_environment) as relay:
        relay.reading()
        insert(conn, topic, "published")
        # other tests' transactions on this server may be older than the row: they hold it back
        until(lambda: prune().code == 0 and conn.execute(left).fetchall() == [], "the published row goes", 60)
        assert len(read_topic(bootstrap_servers, topic)) == 1
        assert relay.stop() == 0
    insert(conn, topic, "waits")
    assert prune().code == 0
    assert conn.execute(left).fetchall() == [("waits",)]
    conn.execute("UPDATE pipeline.poll_position SET system_id = '1'")
    refused = prune()
    assert (refused.code, "its position is of another server" in refused.stderr) == (1, True)
    file = polling(tmp_path, prefix)
    with RelayProcess(file, cli_environment) as relay:
        assert relay.process.wait(60) == 1
    assert "is of another server" in relay.log
    assert f"pipeline connector reconcile {file} --execute" in relay.log


def test_reconcile_knows_what_the_poller_has_passed(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], conn: Conn, bootstrap_servers: str,
    pipeline: CommandLine,
) -> None:  # fmt: skip
    lost = insert(conn, topic, "before the first start")
    file = polling(tmp_path, prefix)
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        insert(conn, topic, "k")
        until(lambda: read_topic(bootstrap_servers, topic), "a row")
        done = pipeline("connector", "reconcile", str(file), "--execute")
        assert (done.code, "published: 1" in done.stderr) == (0, True), done
        assert relay.stop() == 0
    assert ids(read_topic(bootstrap_servers, topic)).count(lost) == 1
    insert(conn, topic, "k")
    assert f"slot {prefix} is read by nobody" in pipeline("connector", "reconcile", str(file)).stderr


def test_on_a_server_that_was_promoted_it_goes_on_from_what_is_stored_there(
    prefix: str, topic: str, database: Database, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen and not stored may not be there, and its numbers be given to other transactions."""

    def route(name: bytes) -> Routed:
        return (topic, name, None, [], 0, -1)

    ours = lambda schema, table: (schema, table) == ("pipeline", "outbox")  # noqa: E731
    settings = PollSettings(prefix, ours, "pipeline.outbox", "payload")
    source = PollingSource(database.dsn, settings, lambda _found: (("aggregateid",), route))

    def reads() -> list[bytes | None]:
        return [record[1] for record in until(lambda: source.read(1).records, "rows")]

    assert source.start()
    insert(conn, topic, "stored")
    assert reads() == [b"stored"]
    source.confirm(1000, final=True)
    insert(conn, topic, "acknowledged")
    assert reads() == [b"acknowledged"]
    now = poll_position.line(conn)
    monkeypatch.setattr(poll_position, "line", lambda _conn: now._replace(timeline=now.timeline + 1))
    assert source.start() is False  # the relay drops what is under way
    assert source.start() is True
    assert reads() == [b"acknowledged"]
    monkeypatch.setattr(poll_position, "line", lambda _conn: now)
    with pytest.raises(SourceError, match="an old primary that came back") as raised:
        source.start()
    assert raised.value.retryable
    source.close()
    monkeypatch.undo()
    conn.execute("UPDATE pipeline.poll_position SET timeline = timeline + 1")
    with pytest.raises(SourceError, match="is of a later timeline"):
        PollingSource(database.dsn, settings, lambda _found: (("aggregateid",), route)).start()


def test_a_notification_ends_the_wait(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], conn: Conn, bootstrap_servers: str
) -> None:
    """The statements are those of docs/polling.md."""
    conn.execute(notifying().encode())
    with RelayProcess(polling(tmp_path, prefix, **{"poll.interval.ms": "600000"}), cli_environment) as relay:
        relay.reading()
        sent = [insert(conn, topic, "k")]
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == sent, "the first, perhaps by the first look")
        for _ in range(3):
            sent.append(insert(conn, topic, "k"))
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == sent, "the next")


def test_a_table_of_your_own_is_polled_once_it_has_what_is_needed(
    tmp_path: Path, prefix: str, topic: str, cli_environment: Mapping[str, str], database: Database, conn: Conn,
    bootstrap_servers: str,
) -> None:  # fmt: skip
    """Each error names the statements that mend it: they are run as they are told."""
    conn.execute("CREATE TABLE public.message (number bigint, place text, subject text, body jsonb)")
    conn.execute("INSERT INTO message VALUES (1, %s, 's', '{}')", (topic,))
    settings = PollSettings(prefix, lambda schema, _table: schema == "public", "public.message", "body", seq="n")

    def refused(settings: PollSettings) -> str:
        source = PollingSource(database.dsn, settings, lambda _relation: ((), lambda: None))  # type: ignore[arg-type,return-value]
        with pytest.raises(SourceError) as raised:
            wait_until(source.start, why="an error")  # False while the server has not seen the session of before end
        assert not raised.value.retryable
        return str(raised.value)

    for told in ("it needs a column", "rows are found by an index"):
        error = refused(settings)
        assert 'table "public"."message" cannot be polled' in error
        assert told in error
        for statement in re.findall(r"(?:ALTER|CREATE)[^;]+;", error):
            conn.execute(statement.encode())
    router = "transforms.outbox."
    changes = {
        "table.include.list": "public.message", "pipeline.polling.seq": "n",
        router + "table.field.event.id": "number", router + "table.field.event.key": "subject",
        router + "table.field.event.payload": "body", router + "route.by.field": "place",
        router + "table.field.event.timestamp": None, router + "table.fields.additional.placement": None,
    }  # fmt: skip
    with RelayProcess(polling(tmp_path, prefix, **changes), cli_environment) as relay:
        relay.reading()
        conn.execute("INSERT INTO message (number, place, subject, body) VALUES (2, %s, 's', '{\"a\": 1}')", (topic,))
        (record,) = until(lambda: read_topic(bootstrap_servers, topic), "the row")
        assert (headers(record)["id"], record.key(), record.value()) == (b"2", b"s", b'{"a": 1}')
    conn.execute("CREATE SEQUENCE blocks CACHE 20 OWNED BY message.n")
    conn.execute("ALTER TABLE message ALTER n DROP IDENTITY")
    conn.execute("ALTER TABLE message ALTER n SET DEFAULT nextval('blocks')")
    assert "ALTER SEQUENCE blocks CACHE 1;" in refused(replace(settings, slot="other"))
    conn.execute("ALTER TABLE message ALTER xid SET DEFAULT '1'")
    assert "ALTER xid SET DEFAULT pg_current_xact_id();" in refused(replace(settings, slot="other"))
    assert "polling reads one table" in refused(replace(settings, slot="other", wanted=lambda _schema, _table: True))


def notifying() -> str:
    text = (Path(__file__).parents[2] / "docs" / "polling.md").read_text()
    return text.partition("```sql\nCREATE FUNCTION")[2].partition("```")[0].join(("CREATE FUNCTION", ""))
