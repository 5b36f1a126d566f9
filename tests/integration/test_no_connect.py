"""``pipeline connector`` without a Kafka Connect: what only claims to be one, and what is wrong before it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import CommandLine, Result, runner
from relays import connector_file


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
            self.wfile.write((b"{}" if "expand" in self.path else b"[]") if real else body.encode())

        def do_PUT(self) -> None:
            self.do_GET()

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


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (409, "Cannot complete request because of a rebalance"),
        (409, "Cannot complete request momentarily due to stale configuration"),
        (500, "Request timed out"),
    ],
)
def test_what_passes_is_waited_for(alone: CommandLine, status: int, message: str) -> None:
    with pretending(status, json.dumps({"error_code": status, "message": message}), after=2) as url:
        found = ask(alone, url)
    assert (found.code, found.stderr) == (0, "no connectors\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1, column 2"),
        ("[]", "is not a connector: it is a list, and one file is one connector"),
        (" ", "is empty"),
        ('{"name": null, "config": {}}', "name: is null, not a text"),
        ('{"config": {"a": null}}', "a: is null, not a text"),
        ('{"config": {"a": "1", "a": "2"}}', "a: stands there twice"),
        ('{"name": "x", "config": {}, "more": 1}', "unknown key 'more'"),
    ],
)
def test_files_that_are_no_connectors_are_named_before_anybody_is_asked(
    alone: CommandLine, text: str, told: str
) -> None:
    Path("bad.json").write_text(text)
    with pretending(200, "[]") as url:
        for words in (("deploy",), ("diff",), ("validate",), ("validate", "--connect"), ("render",), ("pause",)):
            failed = alone("connector", *words, "bad.json", PIPELINE_CONNECT__URL=url)
            assert failed.code == 1, words
            assert "bad.json" in failed.stderr
            assert told in failed.stderr


def test_validate_takes_folders_and_standard_input_and_looks_at_all(
    alone: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE"):
        monkeypatch.setenv(f"PG{name}", "1")
    folder = tmp_path / "connectors"
    folder.mkdir()
    good, bad = connector_file(folder, "good"), connector_file(folder, "bad", **{"slot.name": "No"})
    shown = alone("connector", "validate", str(folder))
    assert shown.code == 1
    assert f"{bad}: slot.name: 'No' is not a slot's name" in shown.stderr
    assert f"{good}: ok: slot good" in shown.stdout
    with good.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert alone("connector", "validate", "-").stdout.startswith("-: ok: slot good")


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


def test_a_path_that_is_not_there_is_no_name(alone: CommandLine) -> None:
    for word in ("nowhere/", "connectors/outbox", "nowhere.json"):
        refused = alone("connector", "pause", word, PIPELINE_CONNECT__URL="http://127.0.0.1:9")
        assert (refused.code, refused.stderr.splitlines()[0]) == (
            1,
            f"error: {word.rstrip('/')}: No such file or directory",
        )


def test_offsets_are_not_replaced_by_none(alone: CommandLine) -> None:
    Path("none.json").write_text("[]")
    refused = alone("connector", "offsets", "set", "outbox", "none.json", "--execute")
    assert (refused.code, "pipeline connector offsets reset outbox" in refused.stderr) == (1, True)
