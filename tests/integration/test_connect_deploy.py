"""``pipeline connector`` against the real Kafka Connect with Debezium."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics

from pipeline.connect.rest import Connect
from pipeline.connector import Connector, State
from pipeline.deployment import Waiting, healthy
from pipeline.errors import ConnectError


@pytest.fixture
def cli_environment(cli_environment: dict[str, str], connect_url: str) -> dict[str, str]:
    return {**cli_environment, "PIPELINE_CONNECT__URL": connect_url}


@pytest.fixture
def file(tmp_path: Path, prefix: str, database: Database, pipeline: CommandLine) -> Iterator[Path]:
    """Our connector file, for this test's own database; what it deployed is deleted."""
    made = connector_file(tmp_path, prefix, **{"database.dbname": database.name, "topic.prefix": prefix})
    yield made
    pipeline("connector", "delete", prefix, "--execute")


def changed(file: Path, **changes: str) -> None:
    loaded = json.loads(file.read_text())
    loaded["config"].update(changes)
    file.write_text(json.dumps(loaded))


def states(pipeline: CommandLine, name: str) -> list[str]:
    (found,) = json.loads(pipeline("connector", "status", name, "-o", "json").stdout)
    return [found["state"], *(task["state"] for task in found["tasks"])]


def on_connect(pipeline: CommandLine, file: Path, check: str = "") -> list[dict[str, str]]:
    """What the doctor finds on Connect, of one thing or of all."""
    found = json.loads(pipeline("doctor", str(file), "-o", "json").stdout)
    return [one for one in found if one["area"] == "connect" and check in {"", one["check"]}]


def test_a_connector_is_planned_deployed_changed_commanded_and_deleted(
    file: Path, prefix: str, pipeline: CommandLine, database: Database, topics: Topics, bootstrap_servers: str
) -> None:
    topic = f"{prefix}.events"
    topics.create(topic)
    assert pipeline("connector", "validate", "--connect", str(file)).code == 0
    planned = pipeline("connector", "diff", str(file))
    assert (planned.code, planned.stdout.splitlines()[0]) == (2, f"{prefix}: create")
    assert pipeline("connector", "deploy", str(file), "--dry-run").code == 0
    assert f"there is no connector {prefix}" in pipeline("connector", "status", prefix).stderr

    deployed = pipeline("connector", "deploy", str(file))
    assert (deployed.code, deployed.stderr) == (0, f"{prefix}: create, runs\n")
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        active = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
        until(lambda: conn.execute(active, (prefix,)).fetchone() is not None, "its slot")  # a moment after RUNNING
        first = insert(conn, topic, "k")
        until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first], "the row, by Debezium")
    assert pipeline("connector", "diff", str(file)).code == 0
    again = pipeline("connector", "deploy", str(file), "-o", "json")
    assert json.loads(again.stdout) == [{"connector": prefix, "action": "unchanged", "state": "RUNNING"}]

    changed(file, **{"poll.interval.ms": "20", "max.batch.size": "1000"})
    planned = pipeline("connector", "diff", str(file))
    assert planned.stdout.splitlines() == [
        f"{prefix}: update",
        "  + max.batch.size: 1000",
        "  ~ poll.interval.ms: 10 → 20",
    ]
    assert pipeline("connector", "deploy", str(file)).code == 0

    assert f"{prefix}: PAUSED" in pipeline("connector", "pause", prefix).stderr
    assert states(pipeline, prefix) == ["PAUSED", "PAUSED"]
    assert pipeline("connector", "status", prefix).code == 2
    refused = pipeline("connector", "offsets", "reset", prefix, "--execute")
    assert (refused.code, f"pipeline connector stop {prefix}" in refused.stderr) == (1, True)
    assert pipeline("connector", "stop", prefix).code == 0
    offsets = pipeline("connector", "offsets", "get", prefix).stdout
    assert json.loads(offsets)[0]["offset"]["lsn"] > 0
    Path("offsets.json").write_text(offsets)
    assert "nothing was changed" in pipeline("connector", "offsets", "set", prefix, "offsets.json").stderr
    assert pipeline("connector", "offsets", "set", prefix, "offsets.json", "--execute").code == 0
    assert pipeline("connector", "offsets", "reset", prefix, "--execute").code == 0
    assert json.loads(pipeline("connector", "offsets", "get", prefix).stdout) == []
    assert pipeline("connector", "resume", prefix).code == 0
    assert pipeline("connector", "restart", prefix, "--only-failed").code == 0
    assert pipeline("connector", "restart", prefix).code == 0
    assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]
    assert prefix in pipeline("connector", "list").stdout

    assert "add --execute" in pipeline("connector", "delete", prefix).stderr
    assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]
    assert pipeline("connector", "delete", prefix, "--execute").code == 0
    assert pipeline("connector", "status", prefix).code == 1


def test_a_task_that_fails_puts_back_what_ran_before_and_says_why(
    file: Path, prefix: str, pipeline: CommandLine, database: Database
) -> None:
    new = dict(json.loads(file.read_text()))
    changed(file, **{"publication.name": "nothing_here"})
    failed = pipeline("connector", "deploy", str(file))
    assert failed.code == 1
    assert str(file) in failed.stderr
    assert "Publication autocreation is disabled" in failed.stderr
    assert "it was removed again" in failed.stderr
    assert f"or what pipeline doctor {file} finds" in failed.stderr
    assert pipeline("connector", "status", prefix).code == 1

    file.write_text(json.dumps(new))
    assert pipeline("connector", "deploy", str(file)).code == 0
    changed(file, **{"publication.name": "nothing_here"})
    failed = pipeline("connector", "deploy", str(file))
    assert (failed.code, "was put back (--keep does not), and runs; " in failed.stderr) == (1, True)
    assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]
    file.write_text(json.dumps(new))
    assert pipeline("connector", "diff", str(file)).code == 0

    changed(file, **{"publication.name": "nothing_here"})
    assert f"status {prefix} -o json" in pipeline("connector", "deploy", str(file), "--keep").stderr
    shown = pipeline("connector", "status", prefix)
    assert (shown.code, "Publication autocreation is disabled" in shown.stdout) == (2, True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"connector.class": "io.debezium.Nowhere"}, "connector.class: io.debezium.Nowhere is not installed"),
        ({"tasks.max": "many"}, "tasks.max: Invalid value many"),
        ({"max.batch.size": "x"}, "max.batch.size"),
        ({"database.password": "wrong-one"}, "database.password: a secret in plain text"),
        ({"database.password": "${env:NOT_SET_ANYWHERE}"}, "password"),
        ({"slot.name": "Not-a-slot"}, "slot.name"),
        ({"database.sslpassword": "wrong-one"}, "database.sslpassword: a secret in plain text"),  # by its type
        ({"heartbeat.intervall.ms": "1"}, "heartbeat.intervall.ms: unknown key"),
        ({"transforms.outbox.route.by.feild": "topic"}, "did you mean transforms.outbox.route.by.field?"),
    ],
)
def test_what_connect_would_refuse_is_refused_before_anything_changes(
    file: Path, prefix: str, pipeline: CommandLine, changes: dict[str, str], told: str
) -> None:
    changed(file, **changes)
    failed = pipeline("connector", "deploy", str(file))
    assert failed.code == 1
    assert str(file) in failed.stderr
    assert told in failed.stderr
    assert "wrong-one" not in failed.stderr + failed.stdout
    assert pipeline("connector", "status", prefix).code == 1


def test_folders_and_standard_input_are_taken_and_others_are_pruned_when_they_were_confirmed(
    file: Path, prefix: str, pipeline: CommandLine, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "connectors"
    folder.mkdir()
    other = connector_file(folder, f"{prefix}-b", **{"database.dbname": database.name, "topic.prefix": prefix})
    file.rename(folder / file.name)
    clash = pipeline("connector", "deploy", str(folder))
    assert (clash.code, "topic.prefix" in clash.stderr) == (1, True)
    changed(other, **{"topic.prefix": f"{prefix}-b"})
    assert pipeline("connector", "deploy", str(folder)).code == 0
    other.unlink()
    listed = pipeline("connector", "deploy", str(folder), "--prune")
    assert listed.code == 1
    assert f"--confirm {prefix}-b" in listed.stderr
    strangers = [word for word in listed.stderr.split("exactly these:")[1].split() if word != "--confirm"]
    if strangers == [f"{prefix}-b"]:  # not those of tests that run beside this one
        assert pipeline("connector", "deploy", str(folder), "--prune", "--confirm", f"{prefix}-b").code == 0
        assert pipeline("connector", "status", f"{prefix}-b").code == 1
    else:
        assert pipeline("connector", "delete", f"{prefix}-b", "--execute").code == 0
    rendered = pipeline("connector", "render", str(folder / file.name), "-o", "json").stdout
    with Path("stdin.json").open("w+") as stdin:
        stdin.write(rendered)
        stdin.seek(0)
        monkeypatch.setattr("sys.stdin", stdin)
        assert pipeline("connector", "diff", "-").code == 0
        stdin.seek(0)
        stdin.truncate()
        stdin.write(rendered.replace('"10"', '"20"'))
        stdin.seek(0)
        deployed = pipeline("connector", "deploy", "-")
        assert (deployed.code, deployed.stdout) == (0, f"{prefix}: update\n  ~ poll.interval.ms: 10 → 20\n")


def test_with_a_label_only_what_carries_it_is_pruned(
    file: Path, prefix: str, pipeline: CommandLine, tmp_path: Path, database: Database
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    changed(file, **{"pipeline.label": prefix})
    other = connector_file(
        folder,
        f"{prefix}-b",
        **{"database.dbname": database.name, "topic.prefix": f"{prefix}-b", "pipeline.label": prefix},
    )
    try:
        assert pipeline("connector", "deploy", str(file), str(folder)).code == 0
        planned = pipeline("connector", "deploy", str(file), "--prune", "--label", prefix, "--dry-run")
        assert f"would delete {prefix}-b" in planned.stderr
        wrong = pipeline("connector", "deploy", str(file), "--prune", "--label", "another")
        assert (wrong.code, "pipeline.label: is not 'another'" in wrong.stderr) == (1, True)
        assert states(pipeline, f"{prefix}-b") == ["RUNNING", "RUNNING"]
        assert pipeline("connector", "deploy", str(file), "--prune", "--label", prefix).code == 0
        assert pipeline("connector", "status", f"{prefix}-b").code == 1
        assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]
    finally:
        pipeline("connector", "delete", f"{prefix}-b", "--execute")
    assert other.exists()


def test_a_slot_is_for_one_connector(
    file: Path, prefix: str, pipeline: CommandLine, tmp_path: Path, database: Database
) -> None:
    assert pipeline("connector", "deploy", str(file)).code == 0
    same = {"database.dbname": database.name, "topic.prefix": f"{prefix}-b", "slot.name": prefix}
    clash = pipeline("connector", "deploy", str(connector_file(tmp_path, f"{prefix}-b", **same)))
    assert (clash.code, f"slot.name: '{prefix}' is that of connector {prefix} too" in clash.stderr) == (1, True)
    assert pipeline("connector", "status", f"{prefix}-b").code == 1


def test_a_slot_that_a_native_relay_reads_and_a_role_without_rights_are_told_with_file_and_cause(
    file: Path, prefix: str, pipeline: CommandLine, cli_environment: dict[str, str], database: Database,
) -> None:  # fmt: skip
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        changed(file, **{"slot.max.retries": "0", "errors.max.retries": "0"})
        failed = pipeline("connector", "deploy", str(file), "--timeout", "90")
        assert (failed.code, str(file) in failed.stderr) == (1, True)
        assert f'replication slot "{prefix}" is active for PID' in failed.stderr
        assert pipeline("connector", "status", prefix).code == 1
        assert relay.readiness()["ready"]  # what runs is left as it was
        assert relay.stop() == 0
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {prefix} LOGIN PASSWORD 'p'")
        try:
            changed(file, **{"database.user": prefix, "database.password": "p"})
            failed = pipeline("connector", "deploy", str(file), "--allow-plain-secrets", "--timeout", "90")
            assert (failed.code, str(file) in failed.stderr) == (1, True)
            assert "permission denied" in failed.stderr or "REPLICATION" in failed.stderr
            assert pipeline("connector", "status", prefix).code == 1
        finally:
            conn.execute(f"DROP OWNED BY {prefix}")
            conn.execute(f"DROP ROLE {prefix}")


def test_what_somebody_has_stopped_takes_a_new_configuration_and_stays_stopped(
    file: Path, prefix: str, pipeline: CommandLine
) -> None:
    assert pipeline("connector", "deploy", str(file)).code == 0
    told = f"STOPPED as before: pipeline connector resume {prefix}"
    assert pipeline("connector", "stop", prefix).code == 0
    again = pipeline("connector", "deploy", str(file))
    assert (again.code, again.stderr) == (2, f"{prefix}: unchanged, {told}\n")
    again = pipeline("connector", "deploy", str(file), "-o", "json")
    assert json.loads(again.stdout) == [{"connector": prefix, "action": "unchanged", "state": "STOPPED"}]
    assert again.code == 2
    changed(file, **{"max.batch.size": "1000"})
    taken = pipeline("connector", "deploy", str(file))
    assert (taken.code, taken.stderr) == (2, f"{prefix}: update, {told}\n")
    assert states(pipeline, prefix) == ["STOPPED"]
    assert pipeline("connector", "diff", str(file)).code == 0
    assert pipeline("connector", "deploy", str(file), "--no-wait").code == 0
    for words in ((), ("--only-failed",)):
        refused = pipeline("connector", "restart", prefix, *words)
        assert (refused.code, f"→ pipeline connector resume {prefix}" in refused.stderr) == (1, True)
    assert pipeline("connector", "resume", prefix).code == 0
    assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]


def test_a_database_that_is_not_there_is_told_with_the_keys_by_which_it_is_reached(
    file: Path, prefix: str, pipeline: CommandLine
) -> None:
    """Debezium tells of all of it under database.hostname."""
    changed(file, **{"database.dbname": "nowhere_at_all"})
    refused = pipeline("connector", "deploy", str(file))
    assert (refused.code, 'database "nowhere_at_all" does not exist' in refused.stderr) == (1, True)
    assert "database.password=${env:PGPASSWORD}, database.dbname=nowhere_at_all" in refused.stderr
    assert pipeline("connector", "status", prefix).code == 1


def test_a_reference_that_connect_cannot_resolve_is_told_with_its_key(
    file: Path, prefix: str, pipeline: CommandLine
) -> None:
    changed(file, **{"database.password": "${env:NO_SUCH_SECRET}"})
    refused = pipeline("connector", "deploy", str(file))
    assert refused.code == 1
    assert f"{file}: Connect refuses it" in refused.stderr
    assert "references are resolved where Connect runs" in refused.stderr
    assert "database.password=${env:NO_SUCH_SECRET}" in refused.stderr
    changed(file, **{"database.password": "${file:/no/such/file:password}"})
    refused = pipeline("connector", "deploy", str(file))
    assert refused.code == 1
    assert f"{file}: database.password: ${{file:/no/such/file:password}}: " in refused.stderr
    assert "let /no/such/file be there, and readable, where Connect runs" in refused.stderr
    assert pipeline("connector", "status", prefix).code == 1


def test_a_failed_task_is_restarted_once_its_cause_is_mended(
    file: Path, prefix: str, pipeline: CommandLine, database: Database
) -> None:
    changed(file, **{"publication.name": prefix})
    assert pipeline("connector", "deploy", str(file), "--keep").code == 1
    assert pipeline("connector", "list").code == 2
    (told,) = on_connect(pipeline, file, f"connector {prefix}")
    assert (told["level"], told["fix"].split(", ")[0]) == ("problem", f"pipeline connector status {prefix}")
    assert "FAILED" in told["found"]
    again = pipeline("connector", "restart", str(file), "--only-failed")
    assert (again.code, "Publication autocreation is disabled" in again.stderr) == (1, True)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE PUBLICATION {prefix} FOR TABLE pipeline.outbox")
    assert pipeline("connector", "restart", str(file), "--only-failed").code == 0
    assert states(pipeline, prefix) == ["RUNNING", "RUNNING"]
    assert [one["level"] for one in on_connect(pipeline, file)] == ["ok", "ok"]


def test_the_doctor_says_which_keys_connect_refuses_and_which_no_plugin_reads(
    file: Path, prefix: str, pipeline: CommandLine
) -> None:
    assert [(one["check"], one["level"]) for one in on_connect(pipeline, file)] == [("Kafka Connect", "ok")]
    changed(file, **{"max.batch.size": "x", "max.btch.size": "1", "nobodys.key": "1"})
    told = {one["check"]: (one["level"], one["found"], one["fix"]) for one in on_connect(pipeline, file)}
    assert told.keys() == {"max.batch.size", "max.btch.size", "nobodys.key"}
    assert told["max.batch.size"][::2] == ("problem", f"correct max.batch.size in {file}")
    assert "max.batch.size" in told["max.batch.size"][1]
    passed_over = ("warning", "is unknown, and passed over in silence")
    assert told["max.btch.size"] == (*passed_over, "did you mean max.batch.size?")
    assert told["nobodys.key"] == (*passed_over, f"remove nobodys.key from {file}")


def test_the_doctor_says_that_a_native_relay_holds_the_slot_of_a_connector_that_runs(
    file: Path, prefix: str, pipeline: CommandLine, cli_environment: dict[str, str]
) -> None:
    check = f"connector {prefix}"
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        assert pipeline("connector", "deploy", str(file)).code == 0
        (told,) = on_connect(pipeline, file, check)
        assert told["level"] == "problem"
        assert f"a native relay reads slot {prefix.replace('-', '_')}" in told["found"]
        assert pipeline("doctor", str(file)).code == 2
        assert relay.stop() == 0
    until(lambda: on_connect(pipeline, file, check)[0]["level"] == "ok", "the connector has its slot")


def test_names_may_be_files_and_offsets_come_in_connects_own_form(
    file: Path, prefix: str, pipeline: CommandLine, topics: Topics, database: Database, bootstrap_servers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    topic = f"{prefix}.events"
    topics.create(topic)
    assert pipeline("connector", "deploy", str(file)).code == 0
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        active = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
        until(lambda: conn.execute(active, (prefix,)).fetchone() is not None, "its slot")
        insert(conn, topic, "k")
        until(lambda: ids(read_topic(bootstrap_servers, topic)), "the row")
    assert pipeline("connector", "status", str(file)).code == 0
    assert pipeline("connector", "pause", f"{file.parent}/").code == 0
    assert states(pipeline, prefix) == ["PAUSED", "PAUSED"]
    assert pipeline("connector", "stop", str(file)).code == 0
    offsets = json.loads(pipeline("connector", "offsets", "get", prefix).stdout)
    own = Path("offsets.txt")
    own.write_text(json.dumps({"offsets": offsets}))
    assert json.loads(pipeline("connector", "offsets", "get", str(file)).stdout) == offsets
    assert pipeline("connector", "offsets", "set", str(file), str(own), "--execute").code == 0
    assert "nothing was changed" in pipeline("connector", "offsets", "reset", str(file)).stderr
    connector_file(file.parent, f"{prefix}-b")
    two = pipeline("connector", "offsets", "get", f"{file.parent}/")
    assert (two.code, f"holds 2 connectors\n  → name one: {prefix}, {prefix}-b" in two.stderr) == (1, True)
    for text, told in (
        ("{", "offsets.txt: Expecting property name"),
        ('{"lsn": 1}', "offsets.txt: is not a list"),
        ('[{"partition": {}}]', "offsets.txt: is not a list"),
    ):
        own.write_text(text)
        failed = pipeline("connector", "offsets", "set", prefix, str(own), "--execute")
        assert (failed.code, told in failed.stderr, "offsets get prints" in failed.stderr) == (1, True, True)
    assert json.loads(pipeline("connector", "offsets", "get", prefix).stdout) == offsets


def test_a_connect_that_is_away_for_a_moment_while_it_is_waited_for_ends_nothing(
    file: Path, prefix: str, pipeline: CommandLine, connect_url: str
) -> None:
    assert pipeline("connector", "deploy", str(file)).code == 0
    with closing(Connect(connect_url)) as real:
        asked = 0

        class Flaky(Connect):
            def state(self, name: str) -> State | None:
                nonlocal asked
                asked += 1
                if asked == 2:
                    raise ConnectError("refused", retryable=True)
                return real.state(name)

        with closing(Flaky(connect_url)) as flaky:
            waiting = Waiting(time.monotonic, time.sleep, 30)
            connector = Connector(prefix, real.config(prefix) or {})
            assert healthy(connector, flaky, waiting) is None
            assert asked > 2
            asked = 1
            with pytest.raises(ConnectError, match="refused"):
                healthy(connector, flaky, Waiting(time.monotonic, time.sleep, -1))


def test_a_file_that_is_polled_is_not_for_connect_and_passed_over_in_a_folder(
    file: Path, prefix: str, pipeline: CommandLine, tmp_path: Path, database: Database
) -> None:
    folder = tmp_path / "connectors"
    folder.mkdir()
    file = file.rename(folder / file.name)
    polled = connector_file(folder, f"{prefix}-polled", **{"pipeline.capture": "polling", "slot.name": prefix})
    for words in (("deploy",), ("diff",), ("validate", "--connect"), ("render",)):
        refused = pipeline("connector", *words, str(polled))
        assert refused.code == 1, words
        assert f"{polled}: pipeline.capture: polling is for the native relay" in refused.stderr
    assert pipeline("connector", "diff", str(folder)).stdout.splitlines()[0] == f"{prefix}: create"
    assert pipeline("connector", "deploy", str(folder)).code == 0
    assert pipeline("connector", "status", f"{prefix}-polled").code == 1
    changed(file, **{"pipeline.capture": "polling", "database.dbname": database.name})
    (told,) = on_connect(pipeline, file)
    assert told["fix"].startswith(f"pipeline connector stop {prefix}")
