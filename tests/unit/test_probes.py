"""The server of metrics and probes: whom it answers, and for how long it waits."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from threading import Event

import pytest
from prometheus_client import CollectorRegistry
from waiting import DEADLINE_S

from pipeline.errors import ConfigError
from pipeline.probes import Readiness, serve
from pipeline.runtime.supervisor import supervise

SHOP = """
from pipeline import Event, Pipeline
class Placed(Event, aggregate="order", key="n", format="json"):
    n: int
app = Pipeline("shop")
@app.consumer(Placed, group="billing")
def handle(event, ctx): ...
@app.lifespan
def pool():
    try:
        yield {}
    finally:
        print("pool closed")
"""
COMMANDS = """
import sys
from pipeline.cli.main import cli
from pipeline.errors import ConfigError
for words in ("scheduler run", "consumer run shop:app", "connector run outbox.json"):
    try:
        cli.main([*words.split(), *sys.argv[1:]], standalone_mode=False)
    except ConfigError as error:
        print(error.what)
"""
ELSEWHERE = "192.0.2.1"  # for documentation: no address of any machine


def get(host: str, port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=DEADLINE_S) as answer:
        return int(answer.status)


def serving(host: str = "127.0.0.1", timeout_s: float = 5.0) -> int:
    readiness = Readiness("relay")
    readiness.ready()
    return serve(CollectorRegistry(), readiness.state, 0, host, timeout_s=timeout_s)


def test_it_answers_at_the_address_that_it_is_given_whatever_stands_behind_the_path() -> None:
    port = serving("0.0.0.0")
    for host in ("127.0.0.1", socket.gethostname()):
        assert get(host, port, "/readyz") == 200
    for path in ("/metrics?name[]=up", "/readyz?verbose", "/healthz?"):
        assert get("127.0.0.1", port, path) == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_an_address_of_ipv6_is_served() -> None:
    assert get("[::1]", serving("::1"), "/readyz") == 200


def test_a_client_that_says_nothing_is_sent_away() -> None:
    with socket.create_connection(("127.0.0.1", serving(timeout_s=0.02)), timeout=DEADLINE_S) as client:
        assert client.recv(1) == b""


def test_an_address_of_another_machine_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="--metrics-host"):
        serving(ELSEWHERE)


def test_every_command_that_serves_takes_the_address(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    outbox = Path(__file__).parents[2] / "connectors" / "outbox.json"
    (tmp_path / "outbox.json").write_text(outbox.read_text())
    env = {
        "PIPELINE_POSTGRES__DSN": "postgresql://localhost:1/shop", "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "localhost:1",
        "PIPELINE_REGISTRY__URL": "http://localhost:1", "PGUSER": "shop", "PGPASSWORD": "shop", "PGDATABASE": "shop",
    }  # fmt: skip
    command = [sys.executable, "-c", COMMANDS, "--metrics-port", "0", "--metrics-host", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_S)
    refused = f"metrics port {ELSEWHERE}:0: Cannot assign requested address"
    assert done.stdout.splitlines() == [refused, "pool closed", refused, refused], done.stderr


def test_a_supervisor_takes_the_address() -> None:
    with pytest.raises(ConfigError, match="--metrics-host"):
        supervise(
            lambda _number: ["true"], processes=1, drain_timeout_s=5, metrics_port=0, metrics_host=ELSEWHERE,
            until=Event(), at_once=Event(),
        )  # fmt: skip
