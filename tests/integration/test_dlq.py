from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import CommandLine
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from servers import Database, Topics
from working import Broker, Running, wait_until

from pipeline import Context, Event, Job, Money, Personal, Pipeline, RetryPolicy
from pipeline.codec import encode
from pipeline.contract import contract_of
from pipeline.deadletter import Letter, Place, Selection
from pipeline.errors import BrokerError, SourceError
from pipeline.failure import Failure
from pipeline.headers import DeadLetter, Origin, RetryState
from pipeline.kafka.producer import AckProducer
from pipeline.kafka.reader import TopicReader
from pipeline.local import Endpoints
from pipeline.postgres.dead_letters import DeadLetterTable
from pipeline.projector import project
from pipeline.record import Header, Record
from pipeline.registry.subjects import Subjects

NOW_MS = 1_700_000_000_000


class Shop:
    """A group of its own in every test, its topics, and a way to put dead letters there as a worker does."""

    def __init__(self, endpoints: Endpoints, topics: Topics, prefix: str) -> None:
        self.options = {"bootstrap.servers": endpoints.kafka}
        self.group = f"{prefix}.billing"
        self.dlq, self.target = f"{self.group}.dlq", f"{self.group}.retry.0s"
        topics.create(self.dlq, config={"message.timestamp.type": "LogAppendTime"})
        topics.create(self.target, partitions=3, config={"message.timestamp.type": "LogAppendTime"})

    def letter(
        self, number: int, *, error: str = "shop.Declined", kind: str = "Placed", value: bytes = b"{}"
    ) -> Record:
        written: list[Header] = [
            ("id", f"e{number}".encode()),
            ("type", kind.encode()),
            ("mine", b"\0\xff"),
            ("mine", None),
        ]
        record = Record(self.dlq, 0, 0, f"k{number}".encode(), value, written, NOW_MS)
        origin = Origin("orders", 1, 100 + number, NOW_MS + number)
        story = DeadLetter(origin, self.group, 5, Failure(error, "no"), died_ms=NOW_MS + 1000 * number)
        return record._replace(headers=story.headers(record))

    def bury(self, letters: Sequence[Record]) -> None:
        producer = AckProducer(self.options)
        for number, record in enumerate(letters):
            producer.send(self.dlq, record.key, record.value, list(record.headers), 0, number)
        assert producer.flush(60) == 0
        assert [error for _, error in producer.poll() if error] == []
        producer.close()

    def sent_back(self) -> list[Record]:
        return everything(self.options, self.target)


def everything(options: dict[str, str], topic: str) -> list[Record]:
    reader = TopicReader(options)
    try:
        return [r for n, (first, end) in reader.bounds(topic).items() for r in reader.read(topic, n, first, end)]
    finally:
        reader.close()


@pytest.fixture
def shop(endpoints: Endpoints, topics: Topics, prefix: str) -> Shop:
    return Shop(endpoints, topics, prefix)


@pytest.fixture
def reader(endpoints: Endpoints) -> Iterator[TopicReader]:
    reader = TopicReader({"bootstrap.servers": endpoints.kafka})
    yield reader
    reader.close()


def listed(pipeline: CommandLine, shop: Shop, *words: str) -> list[dict[str, Any]]:
    found = pipeline("dlq", "list", "--group", shop.group, "-o", "json", *words)
    assert found.code == 0, found.stderr
    rows: list[dict[str, Any]] = json.loads(found.stdout)
    return rows


def states(database: Database) -> dict[int, str]:
    with psycopg.connect(database.dsn) as conn:
        return dict(conn.execute('SELECT "offset"::int, state FROM pipeline.dead_letter ORDER BY 1').fetchall())


# ── the whole way ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_worker_gave_up_is_listed_redriven_and_handled(
    endpoints: Endpoints, prefix: str, pipeline: CommandLine
) -> None:
    class Placed(Event, aggregate=f"{prefix}o", key="order", format="json"):
        order: str

    app, broken, handled = Pipeline(prefix, topic_prefix="", partitions=1), threading.Event(), []
    broken.set()

    @app.consumer(Placed, group="billing", order="none", retry=RetryPolicy(attempts=1))
    def bill(event: Placed, ctx: Context) -> None:
        if broken.is_set():
            raise PermissionError("account closed")
        handled.append(event.order)

    broker = Broker(endpoints.kafka)
    broker.create(app)
    (group,) = app.groups.values()
    running = Running(broker, group)
    try:
        for number in range(3):
            broker.put(app.topic_of(Placed), "Placed", {"order": f"o{number}"}, key=f"o{number}", event_id=f"e{number}")
        broker.flush()
        wait_until(lambda: broker.count(group.dlq) == 3, why="three dead letters")
        rows = json.loads(pipeline("dlq", "list", "--group", group.name, "-o", "json").stdout)
        assert {(r["id"], r["type"], r["error"], r["state"]) for r in rows} == {
            (f"e{number}", "Placed", "PermissionError", "open") for number in range(3)
        }
        broken.clear()
        done = pipeline("dlq", "redrive", "--group", group.name, "--error-class", "PermissionError", "--execute")
        assert done.code == 0, done.stderr
        wait_until(lambda: sorted(handled) == ["o0", "o1", "o2"], why="redriven letters to be handled")
        assert pipeline("dlq", "list", "--group", group.name).stdout == ""
    finally:
        running.worker.stop()
        wait_until(lambda: not running.alive)


# ── redrive ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_plan_does_nothing(shop: Shop, pipeline: CommandLine, database: Database) -> None:
    shop.bury([shop.letter(n, error="A" if n else "B") for n in range(3)])
    found = pipeline("dlq", "redrive", "--group", shop.group, "-o", "json")
    plan = json.loads(found.stdout)
    assert plan["letters"] == 3
    assert {(row["error"], row["letters"]) for row in plan["plan"]} == {("A", 2), ("B", 1)}
    assert (plan["targets"], plan["kept"]) == ({shop.target: 3}, {})
    assert "--execute" in found.stderr
    assert shop.sent_back() == []
    assert set(states(database).values()) == {"open"}


def test_bytes_go_back_as_they_were_and_the_letter_turns_redriven(
    shop: Shop, pipeline: CommandLine, database: Database
) -> None:
    shop.bury([shop.letter(4, value=b"\0\1raw\xff")])
    before = time.time() * 1000 - 60_000
    assert pipeline("dlq", "redrive", "--group", shop.group, "--execute").code == 0
    (record,) = shop.sent_back()
    assert (record.key, record.value) == (b"k4", b"\0\1raw\xff")
    assert record.headers[:4] == [("id", b"e4"), ("type", b"Placed"), ("mine", b"\0\xff"), ("mine", None)]
    assert not any(name.startswith("__dlq.") for name, _ in record.headers)
    state = RetryState.of(record)
    assert (state.attempt, state.last_error, state.history) == (1, None, ())
    assert state.origin == Origin("orders", 1, 104, NOW_MS + 4)
    assert record.timestamp_ms > before  # stamped now: retention must not take it
    assert states(database) == {0: "redriven"}


def test_redriven_and_discarded_letters_stay_unless_asked(
    shop: Shop, pipeline: CommandLine, database: Database
) -> None:
    shop.bury([shop.letter(n) for n in range(3)])
    command = ("--group", shop.group, "--execute")
    assert "discarded: 1" in pipeline("dlq", "discard", *command, "--max", "1").stderr
    assert "redriven: 2" in pipeline("dlq", "redrive", *command).stderr
    assert states(database) == {0: "discarded", 1: "redriven", 2: "redriven"}
    again = pipeline("dlq", "redrive", *command, "-o", "json")
    assert json.loads(again.stdout) == {"redriven": 0, "targets": {}, "kept": {}}
    assert len(shop.sent_back()) == 2
    assert "redriven: 3" in pipeline("dlq", "redrive", *command, "--again").stderr
    assert len(shop.sent_back()) == 5


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["--error-class", "Declined"], [0, 2, 4]),
        (["--error-class", "shop.Declined", "--max", "2"], [0, 2]),
        (["--type", "Other"], [3, 4]),
        (["--id", "e1", "--id", "e3"], [1, 3]),
        (["--since", "2023-11-14T22:13:21Z", "--until", "2023-11-14T23:13:23+01:00"], [1, 2]),
        (["--letter", "DLQ[0]@4"], [4]),
        (["--letter", "DLQ[0]@0", "--letter", "DLQ[0]@3", "--type", "Placed"], [0]),
    ],
)
def test_a_selection_is_redriven_and_nothing_else(
    shop: Shop, pipeline: CommandLine, database: Database, words: list[str], numbers: list[int]
) -> None:
    shop.bury(
        [
            shop.letter(n, error="ValueError" if n % 2 else "shop.Declined", kind="Other" if n > 2 else "Placed")
            for n in range(5)
        ]
    )
    chosen = [word.replace("DLQ", shop.dlq) for word in words]
    selected = listed(pipeline, shop, *(w for w in chosen if w not in {"--max", "2"}))
    assert {int(row["id"][1:]) for row in selected} >= set(numbers)
    assert pipeline("dlq", "redrive", "--group", shop.group, *chosen, "--execute").code == 0
    assert sorted(record.key or b"" for record in shop.sent_back()) == [f"k{n}".encode() for n in numbers]
    assert [n for n, state in states(database).items() if state == "redriven"] == numbers


def test_a_kill_in_the_middle_loses_nothing_and_the_rest_goes_on(
    shop: Shop, pipeline: CommandLine, cli_environment: dict[str, str], database: Database
) -> None:
    shop.bury([shop.letter(n) for n in range(60)])
    words = ["dlq", "redrive", "--group", shop.group, "--execute"]
    slow = subprocess.Popen([sys.executable, "-m", "pipeline", *words, "--rate", "10"], env=cli_environment)
    try:
        wait_until(lambda: "redriven" in states(database).values(), why="the first letters to go")
    finally:
        os.kill(slow.pid, signal.SIGKILL)
        slow.wait()
    sent = len(shop.sent_back())
    assert 0 < sent < 60
    assert pipeline(*words).code == 0
    keys = [record.key for record in shop.sent_back()]
    assert set(keys) == {f"k{n}".encode() for n in range(60)}
    assert len(keys) - 60 <= 10  # at most the page that was on its way
    assert set(states(database).values()) == {"redriven"}


def test_two_redrives_at_once_send_each_letter_once(shop: Shop, database: Database, reader: TopicReader) -> None:
    shop.bury([shop.letter(n) for n in range(4)])
    with psycopg.connect(database.dsn, autocommit=True) as one, psycopg.connect(database.dsn, autocommit=True) as two:
        first, second = DeadLetterTable(one), DeadLetterTable(two)
        project([shop.dlq], reader, first)
        chosen = Selection((shop.dlq,))
        with first.claim(chosen, None, 2) as mine, second.claim(chosen, None, 10) as theirs:
            assert [place.offset for place in mine] == [0, 1]
            assert [place.offset for place in theirs] == [2, 3]


def test_letters_without_their_topic_are_left_and_said(shop: Shop, pipeline: CommandLine, topics: Topics) -> None:
    shop.bury([shop.letter(0)])
    topics.delete([shop.target])
    wait_until(lambda: shop.target not in topics.names(), why="the topic to go")
    found = pipeline("dlq", "redrive", "--group", shop.group, "--execute")
    assert found.code == 2
    assert f"topic {shop.target} does not exist (pipeline topics apply)" in found.stderr
    assert shop.target not in topics.names()  # nothing made it in passing, with a wrong number of partitions
    assert [row["state"] for row in listed(pipeline, shop)] == ["open"]


# ── look ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_corrupt_letters_are_listed_and_shown_and_not_redriven(shop: Shop, pipeline: CommandLine) -> None:
    bare = Record(shop.dlq, 0, 0, None, None, [], 0)
    corrupt = bare._replace(
        key=b"\xff",
        value=b"\0\0",
        headers=[
            ("id", b"\0abc"),
            ("__dlq.errors.topic", b"\xff"),
            ("__dlq.errors.partition", b"x"),
            ("__dlq.errors.time", b"9" * 19),
            ("__dlq.errors.history", b"{"),
            ("__dlq.errors.exception.class", b"\0" * 5000),
        ],
    )
    shop.bury([bare, corrupt, shop.letter(0)])
    assert [row["state"] for row in listed(pipeline, shop)] == ["open"] * 3
    for output in ("table", "json"):
        shown = pipeline("dlq", "show", f"{shop.dlq}[0]@1", "-o", output)
        assert shown.code == 0, shown.stderr
        assert "its group is not known" in shown.stdout
    found = pipeline("dlq", "redrive", "--group", shop.group, "--execute", "-o", "json")
    assert found.code == 2
    outcome = json.loads(found.stdout)
    assert outcome["redriven"] == 1
    assert sum(outcome["kept"].values()) == 2


class Address(Job, queue="mail", name="DlqAddress"):
    order: str
    address: Personal[str]
    total: Money


def test_personal_fields_are_masked_unless_revealed(
    shop: Shop, pipeline: CommandLine, endpoints: Endpoints, prefix: str
) -> None:
    app = Pipeline(prefix, topic_prefix="")
    app.register(Address)
    (entry,) = contract_of(app).entries
    registry = Subjects(endpoints.registry, endpoints.registry_username, endpoints.registry_password)
    schema_id = registry.register(entry.subject, entry.schema.text)
    registry.close()
    message = Address(order="o1", address="ann@example.org", total=Decimal("1.50"))
    letter = shop.letter(1, value=encode(message, schema_id))._replace(key=b"ann@example.org")
    shop.bury([letter])
    for output in ("table", "json"):
        hidden = pipeline("dlq", "show", "e1", "--group", shop.group, "-o", output)
        assert hidden.code == 0, hidden.stderr
        assert "ann@example.org" not in hidden.stdout
        assert "•••" in hidden.stdout
        assert "1.50" in hidden.stdout
    shown = json.loads(pipeline("dlq", "show", f"{shop.dlq}[0]@0", "--reveal", "-o", "json").stdout)
    assert shown["payload"]["address"] == shown["key"] == "ann@example.org"
    assert (shown["schema_id"], shown["attempts"], shown["origin"]) == (schema_id, 5, "orders[1]@101")
    assert (shown["value_bytes"], shown["state"], shown["alike"]) == (len(letter.value or b""), "open", 1)
    without = pipeline("dlq", "show", "e1", "--group", shop.group, PIPELINE_REGISTRY__URL="http://127.0.0.1:9")
    assert without.code == 0
    assert "payload_problem" in without.stdout  # all else can be seen without the registry


def test_pages_have_every_letter_once_newest_first(shop: Shop, pipeline: CommandLine) -> None:
    shop.bury([shop.letter(n) for n in range(7)])
    seen: list[str] = []
    after: list[str] = []
    while rows := listed(pipeline, shop, "--limit", "3", *after):
        seen += [row["id"] for row in rows]
        after = ["--after", rows[-1]["letter"]]
    assert seen == [f"e{n}" for n in reversed(range(7))]


def test_letters_of_a_topic_that_was_made_anew_replace_the_old_ones(
    shop: Shop, pipeline: CommandLine, topics: Topics
) -> None:
    shop.bury([shop.letter(n) for n in range(3)])
    assert len(listed(pipeline, shop)) == 3
    topics.delete([shop.dlq])
    wait_until(lambda: shop.dlq not in topics.names(), why="the topic to go")
    topics.create(shop.dlq)
    shop.bury([shop.letter(9)])
    found = pipeline("dlq", "list", "--group", shop.group, "-o", "json")
    assert [row["id"] for row in json.loads(found.stdout)] == ["e9"]
    assert "3 letters of the earlier topic were removed" in found.stderr


# ── without a database, and without what else is needed ────────────────────────────────────────────────────────────


def test_without_a_database_the_topic_is_enough_and_states_are_unknown(shop: Shop, pipeline: CommandLine) -> None:
    shop.bury([shop.letter(n) for n in range(3)])
    none = {"PIPELINE_POSTGRES__DSN": "postgresql://nobody@127.0.0.1:9/none"}
    failed = pipeline("dlq", "list", "--group", shop.group, **none)
    assert failed.code == 1
    assert "Traceback" not in failed.stderr
    found = pipeline("dlq", "list", "--group", shop.group, "--no-database", "-o", "json", **none)
    assert [row["state"] for row in json.loads(found.stdout)] == ["unknown"] * 3
    assert "is not known" in found.stderr
    done = pipeline("dlq", "redrive", "--topic", shop.dlq, "--no-database", "--max", "2", "--execute", **none)
    assert done.code == 0, done.stderr
    assert sorted(record.key or b"" for record in shop.sent_back()) == [b"k0", b"k1"]
    assert pipeline("dlq", "discard", "--group", shop.group, "--no-database", **none).code == 2


def test_bad_input_is_said_with_what_to_do(
    shop: Shop, pipeline: CommandLine, empty_database: Database, tmp_path: Path, prefix: str
) -> None:
    (tmp_path / "shop.py").write_text(f"from pipeline import Pipeline\napp = Pipeline({prefix!r})\n")
    cases: list[tuple[list[str], list[str]]] = [
        (["dlq", "list", "--group", f"{prefix}.none"], [f"no topic {prefix}.none.dlq", "topics apply"]),
        (["dlq", "list", "--topic", f"{prefix}.none"], [f"no topic {prefix}.none"]),
        (["dlq", "list", "shop:app", "--group", "none"], ["no group 'none'"]),
        (["dlq", "list", "nowhere:app"], ["no module 'nowhere'"]),
        (["dlq", "show", "e404", "--group", shop.group], ["no dead letter e404", "dlq list"]),
        (["dlq", "show", f"{shop.dlq}[0]@5"], ["no dead letter"]),
        (["dlq", "show", f"{shop.dlq}@5"], ["topic[partition]@offset"]),
        (["dlq", "redrive", "--group", shop.group, "--letter", "x"], ["topic[partition]@offset"]),
    ]
    for words, said in cases:
        found = pipeline(*words)
        assert (found.code, found.stdout) == (1, ""), words
        assert all(part in found.stderr for part in said), found.stderr
    zone = pipeline("dlq", "list", "--since", "2026-01-01T00:00:00")
    assert zone.code == 2
    assert "has no zone" in zone.stderr
    unmigrated = pipeline("dlq", "list", "--group", shop.group, PIPELINE_POSTGRES__DSN=empty_database.dsn)
    assert unmigrated.code == 1
    assert "pipeline db migrate" in unmigrated.stderr
    down = pipeline("dlq", "list", "--group", shop.group, PIPELINE_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert down.code == 1
    assert "bootstrap.servers" in down.stderr


# ── adapters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reading_passes_over_aborted_transactions_ends_at_markers_and_joins_no_group(
    shop: Shop, endpoints: Endpoints, reader: TopicReader, prefix: str
) -> None:
    producer = Producer({"bootstrap.servers": endpoints.kafka, "transactional.id": prefix})
    producer.init_transactions()
    for value, commit in ((b"kept", True), (b"aborted", False), (b"kept too", True)):
        producer.begin_transaction()
        producer.produce(shop.dlq, value)
        producer.flush(60)
        producer.commit_transaction() if commit else producer.abort_transaction()
    wait_until(lambda: reader.bounds(shop.dlq) == {0: (0, 6)}, why="the last marker: it comes after the commit returns")
    first, end = 0, 6
    shop.bury([shop.letter(0)])  # after the end, whose last offset is a marker
    assert [record.value for record in reader.read(shop.dlq, 0, first, end)] == [b"kept", b"kept too"]
    assert [record.value for record in reader.fetch([Place(shop.dlq, 0, 4), Place(shop.dlq, 0, 2)])] == [b"kept too"]
    groups = AdminClient({"bootstrap.servers": endpoints.kafka}).list_consumer_groups().result(60)
    assert "pipeline-reader" not in {group.group_id for group in groups.valid}


def test_reading_ends_where_the_topic_ended_when_it_began(shop: Shop, reader: TopicReader) -> None:
    shop.bury([shop.letter(n) for n in range(3)])
    ((first, end),) = reader.bounds(shop.dlq).values()
    records = reader.read(shop.dlq, 0, first, end)
    next(records)
    shop.bury([shop.letter(n) for n in range(3, 6)])
    assert len(list(records)) == 2


def test_far_apart_records_are_fetched_and_missing_ones_are_not_invented(shop: Shop, reader: TopicReader) -> None:
    shop.bury([shop.letter(n) for n in range(2500)])
    places = [Place(shop.dlq, 0, offset) for offset in (2499, 0, 1200, 9999)] + [Place(shop.dlq, 7, 0)]
    assert [record.offset for record in reader.fetch(places)] == [0, 1200, 2499]


def test_an_unknown_topic_is_an_error_of_ours(reader: TopicReader, prefix: str) -> None:
    with pytest.raises(BrokerError, match=f"{prefix}.none"):
        reader.bounds(f"{prefix}.none")


def test_entering_letters_again_keeps_their_states_and_a_lost_connection_is_ours(
    shop: Shop, database: Database, reader: TopicReader
) -> None:
    shop.bury([shop.letter(n) for n in range(2)])
    summaries = [Letter.of(record).summary() for record in everything(shop.options, shop.dlq)]
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        table = DeadLetterTable(conn)
        table.enter(summaries)
        table.mark([summaries[0].place], "discarded")
        table.enter(summaries)
        assert states(database) == {0: "discarded", 1: "open"}
        assert table.next_offset(shop.dlq, 0) == 2
        conn.close()
        with pytest.raises(SourceError):
            table.next_offset(shop.dlq, 0)


def test_the_page_of_open_letters_is_served_by_an_index(shop: Shop, database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(
            'INSERT INTO pipeline.dead_letter (topic, partition, "offset", fingerprint, error, died_at, state) '
            "SELECT %s, 0, n, 'f', 'E', now(), CASE WHEN n %% 100 = 0 THEN 'open' ELSE 'redriven' END "
            "FROM generate_series(1, 50000) n",
            (shop.dlq,),
        )
        conn.execute("ANALYZE pipeline.dead_letter")
        plans: list[str] = []
        execute = conn.execute

        def explaining(sql: Any, values: Any = None) -> Any:
            plans.extend(row[0] for row in execute("EXPLAIN " + sql, values).fetchall())
            return execute(sql, values)

        conn.execute = explaining  # type: ignore[method-assign]
        table = DeadLetterTable(conn)
        assert len(table.page(Selection((shop.dlq,)), None, 50)) == 50
        assert table.next_offset(shop.dlq, 0) == 50001
    assert not any("Seq Scan" in line for line in plans), plans
