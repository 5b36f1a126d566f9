"""Deploying where Connect's answers fail in the midst: what stands then, and what the error says of it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.connect.rest import Connect
from pipeline.connector import Connector
from pipeline.deployment import Waiting, deploy, plan
from pipeline.errors import ConnectError

CLASS = "org.example.Source"
OLD, NEW = {"connector.class": CLASS, "a": "old"}, {"connector.class": CLASS, "a": "new"}
REBALANCE = (409, '{"message": "Cannot complete request because of a conflicting operation (e.g. worker rebalance)"}')
FAILURE = (500, '{"message": "Request timed out"}')
PAGE = (502, "<html><title>Bad Gateway</title></html>")
Answer = tuple[int, str]


class StandIn:
    """A Connect that keeps configurations, and for what concerns ``name`` answers as it is told to."""

    def __init__(self) -> None:
        self.configs: dict[str, dict[str, str]] = {}
        self.name = ""
        self.on_put: Answer | None = None  # instead of taking it
        self.after_put: Answer | None = None  # of a PUT that was taken
        self.on_wait: Answer | None = None
        self.on_check: Answer | None = None
        self.puts_back = True
        self.back = "RUNNING"  # its state after it was put back
        self.tasks: dict[str, str] = {}  # what tasks say that they were started with, whatever was put
        self.dies = False  # after a PUT that was taken
        self.dead = False
        self.state = {"first": "RUNNING", "second": "RUNNING"}  # what somebody has made of it

    def put(self, name: str, config: dict[str, str]) -> Answer | None:
        if name == self.name and config.get("a") == "new":
            if self.on_put:
                return self.on_put
            self.configs[name] = config
            self.dead = self.dies
            return self.after_put or (200, "{}")
        if name == self.name and not self.puts_back:
            return FAILURE
        self.configs[name] = config
        if name == self.name:
            self.state[name] = self.back
        return 200, "{}"

    def answer(self, method: str, path: str, body: Any) -> Answer:
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[0] == "connector-plugins":
            if len(parts) == 1:
                return 200, json.dumps([{"class": CLASS}])
            return (self.on_check if body["name"] == self.name else None) or (200, '{"configs": []}')
        if len(parts) == 1:
            return 200, json.dumps({name: {"info": {"config": config}} for name, config in self.configs.items()})
        name, what = parts[1], parts[-1]
        if method == "PUT":
            return self.put(name, body) or (200, "{}")
        if name not in self.configs:
            return 404, '{"message": "not found"}'
        if method == "DELETE":
            del self.configs[name]
            return 204, ""
        if what == "config":
            return 200, json.dumps(self.configs[name])
        if name == self.name and self.on_wait and self.configs[name].get("a") == "new":
            return self.on_wait
        if what == "tasks":
            return 200, json.dumps([{"config": self.tasks or self.configs[name]}])
        told = {"state": self.state[name], "worker_id": "w"}
        tasks = [] if told["state"] == "STOPPED" else [{"id": 0, **told}]
        return 200, json.dumps({"name": name, "connector": told, "tasks": tasks})


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def connect(stand_in: StandIn) -> Iterator[Connect]:
    """Connect's client, for which time flies."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not stand_in.dead:
                status, body = stand_in.answer(self.command, self.path, json.loads(text) if text else None)
            if stand_in.dead:
                return  # the connection is closed without an answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clock = itertools.count(0, 20)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with closing(Connect(url, clock=lambda: next(clock), pause=lambda _s: None)) as made:
        yield made
    server.shutdown()
    server.server_close()


def deployed(connect: Connect, *, first: str = "", **options: Any) -> ConnectError:
    """Deploy one that succeeds, of which ``first`` is told, then the one that does not."""
    clock = itertools.count(0, 5)
    waiting = Waiting(lambda: next(clock), lambda _s: None, 60) if options.pop("wait", True) else None
    files = [Connector("first", NEW, "first.json"), Connector("second", NEW, "second.json")]
    plans = plan(files, connect)
    with pytest.raises(ConnectError) as raised:
        deploy(plans, connect, waiting, **options)
    told = str(raised.value)
    assert told.startswith("second.json: Kafka Connect at ")
    assert (first or f"before it were deployed{', and run' if waiting else ''}: first") in told
    assert ("before it were deployed" in told) is (not first)
    return raised.value


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize(
    ("answer", "told"), [(REBALANCE, "conflicting"), (FAILURE, "Request timed out (500)"), (PAGE, "Bad Gateway")]
)
def test_a_put_that_is_not_taken_changes_nothing_and_says_so(
    stand_in: StandIn, connect: Connect, answer: Answer, told: str, before: dict[str, str] | None
) -> None:
    stand_in.configs = {} if before is None else {"second": before}
    stand_in.name, stand_in.on_put = "second", answer
    error = deployed(connect)
    assert (told in error.what, "nothing was changed by this file" in error.remedy) == (True, True)
    assert stand_in.configs.get("second") == before


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("before", "told"), [(None, "it was removed again"), (OLD, "what ran before was put back")])
def test_a_put_that_was_taken_although_its_answer_is_a_failure_is_undone(
    stand_in: StandIn, connect: Connect, before: dict[str, str] | None, told: str, wait: bool
) -> None:
    stand_in.configs = {} if before is None else {"second": before}
    stand_in.name, stand_in.after_put = "second", FAILURE
    assert told in deployed(connect, wait=wait).remedy
    assert stand_in.configs.get("second", {}).get("a") == (before and "old")


@pytest.mark.parametrize(
    ("answer", "told"), [(REBALANCE, "conflicting"), (FAILURE, "Request timed out (500)"), (PAGE, "Bad Gateway")]
)
def test_a_wait_that_gets_no_answer_puts_back_what_ran_before(
    stand_in: StandIn, connect: Connect, answer: Answer, told: str
) -> None:
    stand_in.configs = {"second": OLD}
    stand_in.name, stand_in.on_wait = "second", answer
    error = deployed(connect)
    assert (told in error.what, "put back (--keep does not), and runs; " in error.remedy) == (True, True)
    assert stand_in.configs["second"]["a"] == "old"


def test_what_was_put_back_and_does_not_run_again_is_told_so(stand_in: StandIn, connect: Connect) -> None:
    stand_in.configs = {"second": OLD}
    stand_in.name, stand_in.on_wait, stand_in.back = "second", PAGE, "FAILED"
    assert "was put back (--keep does not), and does not run: FAILED, tasks: 1 FAILED" in deployed(connect).remedy


def test_tasks_that_still_have_a_key_which_was_removed_are_those_of_before(stand_in: StandIn, connect: Connect) -> None:
    before = NEW | {"gone": "x"}
    stand_in.configs, stand_in.tasks = {"first": before}, before
    clock = itertools.count(0, 5)
    waiting = Waiting(lambda: next(clock), lambda _s: None, 60)
    file = Connector("first", NEW, "first.json")
    with pytest.raises(ConnectError, match="does not run: not started") as raised:
        deploy(plan([file], connect), connect, waiting)
    assert "put back (--keep does not), and runs; " in raised.value.remedy
    stand_in.tasks = {}
    assert deploy(plan([file], connect), connect, waiting) == []
    assert "gone" not in stand_in.configs["first"]


def test_with_keep_the_new_configuration_stays_and_the_error_says_that_it_stands(
    stand_in: StandIn, connect: Connect
) -> None:
    stand_in.configs = {"second": OLD}
    stand_in.name, stand_in.on_wait = "second", FAILURE
    assert "the new configuration stands" in deployed(connect, put_back=False).remedy
    assert stand_in.configs["second"]["a"] == "new"


@pytest.mark.parametrize("put_back", [True, False])
def test_a_connect_that_dies_after_the_put_may_have_the_new_configuration(
    stand_in: StandIn, connect: Connect, put_back: bool
) -> None:
    stand_in.configs = {"second": OLD}
    stand_in.name, stand_in.dies = "second", True
    error = deployed(connect, put_back=put_back)
    assert "the new configuration may stand" in error.remedy
    assert "pipeline connector diff second.json says so" in error.remedy
    assert ("could not be put back" in error.what) is put_back


def test_a_putting_back_that_is_refused_is_told_beside_the_first_cause(stand_in: StandIn, connect: Connect) -> None:
    stand_in.configs = {"second": OLD}
    stand_in.name, stand_in.on_wait, stand_in.puts_back = "second", PAGE, False
    error = deployed(connect)
    assert ("Bad Gateway" in error.what, "could not be put back" in error.what) == (True, True)
    assert "the new configuration may stand" in error.remedy


def test_a_check_that_fails_names_the_file(stand_in: StandIn, connect: Connect) -> None:
    stand_in.name, stand_in.on_check = "second", FAILURE
    with pytest.raises(ConnectError, match=r"^second\.json: Kafka Connect at .*Request timed out"):
        plan([Connector("first", NEW, "first.json"), Connector("second", NEW, "second.json")], connect)
    assert stand_in.configs == {}


@pytest.mark.parametrize("state", ["STOPPED", "PAUSED"])
def test_one_that_rests_is_not_told_as_running_where_a_later_file_fails(
    stand_in: StandIn, connect: Connect, state: str
) -> None:
    stand_in.configs = {"first": OLD, "second": OLD}
    stand_in.state["first"] = state
    stand_in.name, stand_in.on_wait = "second", FAILURE
    deployed(connect, first=f"first is {state}, as before, and has its file's keys")
    assert stand_in.configs["first"]["a"] == "new"
