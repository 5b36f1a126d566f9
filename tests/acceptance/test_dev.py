"""``pipeline dev`` as a developer uses it: one command, an edit, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from servers import Database

ROOT = Path(__file__).parents[2]
APP = """
import os
import psycopg
from pipeline import Event, Job, Pipeline

app = Pipeline("shop", partitions=1)

class Placed(Event, aggregate="order", key="order_id"):
    order_id: str

class Mail(Job, queue="mail"):
    order_id: str

def note(what, order_id):
    with psycopg.connect(os.environ["SHOP_DSN"]) as conn:
        conn.execute("INSERT INTO seen VALUES (%s, %s)", (what, order_id))

@app.consumer(Placed, group="billing")
def bill(event, ctx):
    note("billed by version 1", event.order_id)

@app.job(Mail)
async def mail(job, ctx):
    note("mailed", job.order_id)
"""
PLACE = """
import os, sys, psycopg, shop
with psycopg.connect(os.environ["SHOP_DSN"]) as conn:
    shop.app.publish(conn, shop.Placed(order_id=sys.argv[1]))
    shop.app.enqueue(conn, shop.Mail(order_id=sys.argv[1]), delay_s=0.5)
"""


class Dev:
    """One run in a folder."""

    def __init__(self, folder: Path, env: dict[str, str], *words: str) -> None:
        self.folder, self.env = folder, env
        self.log = folder / "dev.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "dev", "shop:app", *words],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait(self, done: Callable[[], object], what: str, deadline_s: float = 90) -> None:
        end = time.monotonic() + deadline_s
        while not done():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < end, f"not within {deadline_s} s: {what}\n{self.text}"
            time.sleep(0.1)

    def place(self, order_id: str) -> None:
        subprocess.run([sys.executable, "-c", PLACE, order_id], cwd=self.folder, env=self.env, check=True)

    def seen(self, what: str) -> set[str]:
        with psycopg.connect(self.env["SHOP_DSN"]) as conn:
            rows = conn.execute("SELECT order_id FROM seen WHERE what = %s", (what,)).fetchall()
        return {row[0] for row in rows}

    def stop(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
        return code


@pytest.fixture
def folder(tmp_path: Path, prefix: str) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    file = json.loads((ROOT / "connectors/outbox.json").read_text())
    file["config"]["slot.name"] = f"{prefix}_dev"  # slots belong to the whole server, which others use too
    (tmp_path / "connectors").mkdir()
    (tmp_path / "connectors/outbox.json").write_text(json.dumps(file))
    return tmp_path


@pytest.fixture
def environment(cli_environment: dict[str, str], database: Database, prefix: str) -> dict[str, str]:
    with psycopg.connect(database.dsn) as conn:
        conn.execute("CREATE TABLE seen (what text, order_id text)")
    return {**cli_environment, "SHOP_DSN": database.dsn, "PIPELINE_TOPIC_PREFIX": f"{prefix}."}


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Any]:
    started: list[Dev] = []

    def begin(*words: str) -> Dev:
        started.append(Dev(folder, environment, *words))
        return started[-1]

    yield begin
    for dev in started:
        if dev.process.poll() is None:
            dev.stop()


def test_an_edit_is_at_work_a_moment_later_and_ctrl_c_ends_all(start: Any, folder: Path) -> None:
    dev = start("--reload")
    dev.wait(lambda: "worker" in dev.text and "partitions assigned" in dev.text, "the worker begins")
    assert sorted(file.name.split("-")[1] for file in (folder / "schemas").iterdir()) == ["Mail.avsc", "Placed.avsc"]
    dev.place("o-1")
    dev.wait(lambda: dev.seen("billed by version 1") and dev.seen("mailed"), "the first order")

    (folder / "shop.py").write_text(APP.replace("billed by version 1", "billed by version 2"))
    dev.wait(lambda: dev.text.count("partitions assigned") >= 4, "both groups again")
    dev.place("o-2")
    dev.wait(lambda: dev.seen("billed by version 2") == {"o-2"}, "the new code")

    (folder / "shop.py").write_text("this is no Python")
    dev.wait(lambda: "SyntaxError" in dev.text, "the mistake is shown")
    (folder / "shop.py").write_text(APP.replace("billed by version 1", "billed by version 3"))
    dev.wait(lambda: dev.text.count("partitions assigned") >= 6, "it goes on when it is mended")
    dev.place("o-3")
    dev.wait(lambda: "o-3" in dev.seen("billed by version 3"), "the mended code")

    assert '"message"' not in dev.text, "logs are for people here"
    assert dev.stop() == 0


def test_without_reload_what_cannot_go_on_ends_all_and_says_why(start: Any, folder: Path) -> None:
    (folder / "shop.py").write_text("import nothing_of_this_name\n")
    dev = start()
    assert dev.process.wait(90) == 1
    assert "nothing_of_this_name" in dev.text
    assert psutil.Process().children() == []
