"""One outbox read by four relays, each from a slot of its own: every key in exactly one of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics

SHARDED = Path(__file__).parents[2] / "connectors" / "outbox-sharded.json"
Conn = psycopg.Connection[tuple[object, ...]]
KEYS = 40


@pytest.fixture
def file(tmp_path: Path, prefix: str, database: Database) -> Path:
    """Ours, for this test's database and names."""
    loaded = json.loads(SHARDED.read_text())
    loaded["name"] = prefix
    loaded["config"] |= {"slot.name": prefix, "publication.name": prefix, "database.dbname": database.name}
    (tmp_path / f"{prefix}.json").write_text(json.dumps(loaded))
    return tmp_path / f"{prefix}.json"


def test_four_relays_after_one_publish_each_row_in_the_order_of_its_key_and_pruning_waits_for_all(
    file: Path, prefix: str, topics: Topics, cli_environment: Mapping[str, str], conn: Conn, bootstrap_servers: str,
    database: Database, pipeline: CommandLine,
) -> None:  # fmt: skip
    topic = f"{prefix}.events"
    topics.create(topic, partitions=3)
    written = defaultdict(list)

    def write(rounds: int) -> None:
        for _ in range(rounds):
            for number in range(KEYS):
                written[f"k{number}"].append(insert(conn, topic, f"k{number}"))

    def published() -> set[str]:
        return set(ids(read_topic(bootstrap_servers, topic)))

    def all_written() -> set[str]:
        return {event for events in written.values() for event in events}

    def left() -> int:
        assert pipeline("outbox", "prune", "--older-than", "0s", "--wait", "0", "--execute").code == 0
        return int(str((conn.execute("SELECT count(*) FROM pipeline.outbox").fetchone() or (0,))[0]))

    one = connector_file(file.parent, f"{prefix}-one", **{"database.dbname": database.name})
    with RelayProcess(one, cli_environment) as relay:
        relay.reading()
        write(1)
        made = pipeline("db", "shards", str(file), "--execute")
        assert (made.code, len(made.stdout.splitlines())) == (0, 8), made
        write(1)
        twice = all_written()
        until(lambda: conn.execute(PASSED, (f"{prefix}_one",)).fetchone() == (True,), "it is past the new slots")
        assert relay.stop() == 0
    conn.execute("SELECT pg_drop_replication_slot(%s)", (f"{prefix}_one",))
    conn.execute("DELETE FROM pipeline.relay_position WHERE slot = %s", (f"{prefix}_one",))
    before = len(written["k0"])

    with ExitStack() as stack:
        run = lambda shard: stack.enter_context(RelayProcess(file, cli_environment, "--shard", str(shard)))  # noqa: E731
        relays = [run(shard) for shard in range(3)]
        for relay in relays:
            relay.reading()
        write(3)
        until(lambda: len(published() - twice) > 50, "rows of three shards")
        assert left() == (before + 3) * KEYS
        write(1)
        until(lambda: len(published() - twice) > 70, "they go on")
        assert left() == (before + 4) * KEYS  # nobody has read those of the fourth
        refused = pipeline("connector", "reconcile", str(file), "--wait", "0")
        assert f"slot {prefix}_3 is read by nobody" in refused.stderr

        relays.append(run(3).reading())
        until(lambda: published() == all_written(), "every row")
        same = pipeline("connector", "reconcile", str(file), "--wait", "0")
        assert (same.code, f"{(before + 4) * KEYS}" in same.stdout) == (0, True), same
        write(1)  # so that all of them pass the point that pruning took
        until(lambda: published() == all_written(), "the last ones")
        until(lambda: left() <= KEYS, "what all have passed goes", 60)
        assert [relay.stop() for relay in relays] == [0] * 4
    found, again = defaultdict(list), set()
    for message in read_topic(bootstrap_servers, topic):
        (event,) = ids([message])
        of_key = found[(message.key() or b"").decode()]
        if event in of_key:
            again.add(event)
        else:
            of_key.append(event)
    assert found == written
    assert again < twice  # what the one relay published after the slots were made


def test_kafka_connect_runs_the_four_and_publishes_each_row_once_in_the_order_of_its_key(
    file: Path, prefix: str, topics: Topics, conn: Conn, bootstrap_servers: str, pipeline: CommandLine,
    cli_environment: Mapping[str, str], connect_url: str,
) -> None:  # fmt: skip
    topic = f"{prefix}.events"
    topics.create(topic, partitions=3)
    loaded = json.loads(file.read_text())
    loaded["config"]["topic.prefix"] = prefix
    file.write_text(json.dumps(loaded))
    there = {"PIPELINE_CONNECT__URL": connect_url}
    assert pipeline("db", "shards", str(file), "--execute").code == 0
    names = [f"{prefix}-{shard}" for shard in range(4)]
    try:
        deployed = pipeline("connector", "deploy", str(file), "-o", "json", **there)
        assert deployed.code == 0, deployed.stderr
        assert json.loads(deployed.stdout) == [
            {"connector": name, "action": "create", "state": "RUNNING"} for name in names
        ]
        active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE %s AND active"
        until(lambda: conn.execute(active, (f"{prefix}%",)).fetchone() == (4,), "all four slots are read", 60)
        written = defaultdict(list)
        for _ in range(5):
            for number in range(KEYS):
                written[f"k{number}"].append(insert(conn, topic, f"k{number}"))
        until(lambda: len(read_topic(bootstrap_servers, topic)) >= 5 * KEYS, "every row")
    finally:
        for name in names:
            pipeline("connector", "delete", name, "--execute", **there)
    found = defaultdict(list)
    for message in read_topic(bootstrap_servers, topic):
        found[(message.key() or b"").decode()] += ids([message])
    assert found == written


PASSED = """
SELECT min(confirmed_flush_lsn) FILTER (WHERE slot_name = %s) >= max(confirmed_flush_lsn)
FROM pg_replication_slots WHERE database = current_database()
"""


def test_the_doctor_finds_a_shard_that_is_missing_and_keys_that_are_in_two(
    file: Path, prefix: str, conn: Conn, pipeline: CommandLine
) -> None:
    def told() -> dict[str, tuple[str, str, str]]:
        found = json.loads(pipeline("doctor", str(file), "-o", "json").stdout)
        return {one["check"]: (one["level"], one["found"], one["fix"]) for one in found}

    shards = "shards of pipeline.outbox"
    for statement in pipeline("db", "shards", str(file)).stdout.splitlines():
        conn.execute(statement.encode())
    assert "nothing to do" in pipeline("db", "shards", str(file), "--execute").stderr
    found = told()
    assert found[shards] == ("ok", "each key is in exactly one", "")
    assert all(found[f"publication {prefix}_{shard}"][0] == "ok" for shard in range(4))

    conn.execute(f"DROP PUBLICATION {prefix}_2".encode())
    found = told()
    assert found[f"publication {prefix}_2"] == ("problem", "is not there", f"pipeline db shards {file} --execute")
    assert "keys are in none" in found[shards][1]
    assert len(pipeline("db", "shards", str(file), "--execute").stdout.splitlines()) == 1
    conn.execute(f"ALTER PUBLICATION {prefix}_3 SET TABLE pipeline.outbox".encode())
    assert "keys are in more than one, and published twice" in told()[shards][1]


@pytest.mark.parametrize(
    ("changes", "words", "error"),
    [
        ({}, ("connector", "run"), "it has 4 shards, each for a process of its own"),
        ({}, ("connector", "run", "--shard", "4"), "--shard 4: there is no such shard"),
        ({"pipeline.shards": "3"}, ("connector", "validate"), "pipeline.shards: '3' is no number of shards"),
        ({"pipeline.capture": "polling"}, ("connector", "validate"), "does not go with pipeline.capture=polling"),
        ({"table.include.list": "pipeline.*"}, ("db", "shards"), "shards read one table"),
        ({"transforms.outbox.table.field.event.key": "seen"}, ("db", "shards"), "has no column seen of type text"),
    ],
)
def test_what_cannot_be_sharded_is_said(
    file: Path, pipeline: CommandLine, changes: dict[str, str], words: tuple[str, ...], error: str
) -> None:
    loaded = json.loads(file.read_text())
    loaded["config"] |= changes
    file.write_text(json.dumps(loaded))
    failed = pipeline(*words, str(file))
    assert (failed.code, error in failed.stderr) == (1, True), failed
