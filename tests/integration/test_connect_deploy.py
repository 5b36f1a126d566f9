"""``pipeline connector`` against the real Kafka Connect with Debezium, and against things that only claim to be one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import yaml
from commands import CommandLine, Result, runner
from relays import connector_file, ids, insert, read_topic, until
from servers import Database, Topics


@pytest.fixture
def pipeline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str],
    connect_url: str, tmp_path: Path,
) -> CommandLine:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch, {**cli_environment, "PIPELINE_CONNECT__URL": connect_url})


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
    assert json.loads(again.stdout) == [{"connector": prefix, "action": "unchanged"}]

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
    assert pipeline("connector", "status", prefix).code == 1

    file.write_text(json.dumps(new))
    assert pipeline("connector", "deploy", str(file)).code == 0
    changed(file, **{"publication.name": "nothing_here"})
    failed = pipeline("connector", "deploy", str(file))
    assert (failed.code, "what ran before was put back" in failed.stderr) == (1, True)
    file.write_text(json.dumps(new))
    assert pipeline("connector", "diff", str(file)).code == 0
    until(lambda: states(pipeline, prefix) == ["RUNNING", "RUNNING"], "what ran before")

    changed(file, **{"publication.name": "nothing_here"})
    assert "status NAME" in pipeline("connector", "deploy", str(file), "--keep").stderr
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


def test_strimzi_manifests_have_the_class_the_tasks_and_references_to_a_secret(
    file: Path, prefix: str, pipeline: CommandLine
) -> None:
    shown = pipeline("connector", "render", str(file), "--cluster", "events", "--secret", "shop/postgres")
    manifest = yaml.safe_load(shown.stdout)
    assert manifest["metadata"] == {"name": prefix, "labels": {"strimzi.io/cluster": "events"}}
    assert manifest["spec"]["class"] == "io.debezium.connector.postgresql.PostgresConnector"
    assert manifest["spec"]["tasksMax"] == 1
    assert manifest["spec"]["config"]["database.password"] == "${secrets:shop/postgres:PGPASSWORD}"
    assert {"connector.class", "tasks.max", "name"} & manifest["spec"]["config"].keys() == set()


@contextmanager
def pretending(status: int, body: str, *, after: int | None = None) -> Iterator[str]:
    """Something that answers every request so; as an empty Connect ``after`` so many."""
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += 1
            real = after is not None and asked > after
            self.send_response(200 if real else status)
            self.end_headers()
            self.wfile.write(b"[]" if real else body.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """The command line without any server."""
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch, {})


def ask(alone: CommandLine, url: str) -> Result:
    return alone("connector", "list", PIPELINE_CONNECT__URL=url)


def test_a_rebalance_is_waited_for(alone: CommandLine) -> None:
    with pretending(
        409, '{"error_code": 409, "message": "Cannot complete request because of a rebalance"}', after=2
    ) as url:
        found = ask(alone, url)
    assert (found.code, found.stderr) == (0, "no connectors\n")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, '{"error_code": 500, "message": "Request timed out"}', "Request timed out (500)"),
        (409, '{"error_code": 409, "message": "Connector x already exists"}', "already exists (409)"),
        (502, "<html><head><title>502 Bad Gateway</title></head></html>", "answered 502 without JSON: 502 Bad Gateway"),
        (200, "<html><body>Welcome</body></html>", "answered 200 without JSON: Welcome"),
        (401, '{"message": "who are you?"}', "sign in"),
    ],
)
def test_what_is_not_an_answer_of_connect_is_said_with_what_to_do(
    alone: CommandLine, status: int, body: str, told: str
) -> None:
    with pretending(status, body) as url:
        found = ask(alone, url)
    assert found.code == 1
    assert told in found.stderr
    assert url in found.stderr


def test_connect_that_is_not_there_or_not_named(alone: CommandLine) -> None:
    assert "is it up" in ask(alone, "http://127.0.0.1:9").stderr
    assert "http://HOST:8083" in ask(alone, "127.0.0.1").stderr
    missing = alone("connector", "list", PIPELINE_DATA_DIR=str(Path.cwd()))
    assert "pipeline up --connect" in missing.stderr
