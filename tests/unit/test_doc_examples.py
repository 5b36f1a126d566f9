"""The Python of the pages in docs/ runs: each block in a module of its own, after what its page takes as given.

A block below a comment ``<!-- fragment: why -->`` is not run. What a block declares is an application that a Harness
takes; its tests are called, with the fixtures that they name.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import Pipeline
from pipeline.testing import FakeConnection, Harness

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^(<!-- fragment: .+ -->\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

SHOP = """
import asyncio
import contextvars
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pipeline import *
from pipeline import jobs
from pipeline.breaker import Breaker
from pipeline.codec import Decoder
from pipeline.definition import Rate
from pipeline.errors import BrokerError
from pipeline.event import Message
from pipeline.flow import Flow, batch, chain
from pipeline.job import Unique
from pipeline.jobs_library.email import Smtp, send_emails
from pipeline.jobs_library.files import process_csv, process_folder
from pipeline.jobs_library.report import scheduled_report
from pipeline.outbox import Outbox
from pipeline.record import Record
from pipeline.registry.client import RegistrySchemas
from pipeline.schedule import Tick
from pipeline.testing import FakeConnection, Faults, Harness

app = Pipeline("shop", topic_prefix="")


class OrderPlaced(Event, aggregate="order", key="order_id"):
    order_id: str
    customer: str
    total: Money


class SendReceipt(Job, queue="email"):
    order_id: str
    address: Personal[str]
"""

GIVEN = {
    "jobs": SHOP
    + """
from celery import Celery

PASSWORD = "secret"
celery_app = Celery("shop")
conn = FakeConnection(app)


@celery_app.task(name="send_receipt")
def send_receipt(order_id): ...


class order:
    id = 7


class Publish(Job, queue="flows"):
    album: int = 7


class Render(Job, queue="flows"):
    page: int


class Fetch(Job, queue="flows"):
    url: str


class Mail(Job, queue="flows"):
    to: str


class Parse(Job, queue="flows"): ...


class Store(Job, queue="flows"): ...


class Summary(Job, queue="flows"): ...


class MeasureImages(Job, queue="files"):
    path: str


for model in (Publish, Render, Fetch, Mail, Parse, Store, Summary):
    app.job(model)(lambda job, ctx: None)
""",
    "consumers": SHOP
    + """
DSN = url = "http://localhost"
username = password = None


class OrderBilled(Event, aggregate="order", key="order_id"):
    order_id: str


class ResizeImages(Job, queue="images"):
    path: str


class Fetch(Job, queue="fetch"):
    url: str


class Envelope(Event, aggregate="customer", key="id"):
    id: int


app.register(OrderBilled)
""",
    "publishing": SHOP
    + """
current_tenant = contextvars.ContextVar("tenant", default="acme")
""",
    "testing": SHOP
    + """

class Publish(Job, queue="publish"):
    album: int


class Render(Job, queue="render"):
    page: int


class order:
    id, email, credit = "o-1", "ada@example.org", 100


def place_order(conn, order):
    conn.execute("SELECT credit FROM customers").fetchone()
    app.publish(conn, OrderPlaced(order_id=order.id, customer="ada", total=Decimal("9.90")))
    app.enqueue(conn, SendReceipt(order_id=order.id, address=order.email), delay_s=60)


@app.consumer(OrderPlaced, group="billing")
def bill(event, ctx): ...


@app.job(SendReceipt)
async def send_receipt(job, ctx):
    if job.address.startswith("down"):
        raise ConnectionError


@app.job(Publish)
def publish(job, ctx):
    ctx.result({"pages": len(ctx.children())})


@app.job(Render)
async def render(job, ctx):
    for done in range(4):
        ctx.progress(done)
        await asyncio.sleep(3)


@app.schedule("0 3 * * *", name="nightly-report", timezone="UTC")
def nightly(ctx): ...


harness = Harness(app)
""",
}


def blocks(page: str) -> Iterator[Any]:
    text = (DOCS / f"{page}.md").read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        if not found[1]:
            yield pytest.param(page, line, found[2], id=f"{page}.md:{line}")


def run(source: str, filename: str, line: int, into: ModuleType) -> None:
    exec(compile("\n" * (line - 1) + source, filename, "exec", dont_inherit=True), vars(into))


@pytest.mark.parametrize(("page", "line", "source"), [one for page in GIVEN for one in blocks(page)])
def test_an_example_runs(page: str, line: int, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", "postgresql://localhost/shop")  # nobody asks it
    shop = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", shop)
    run(GIVEN[page], f"what {page}.md takes as given", 1, shop)
    if page == "testing":
        module = ModuleType("example")
        vars(module).update({name: value for name, value in vars(shop).items() if not name.startswith("__")})
    else:
        module = shop
    run(source, str(DOCS / f"{page}.md"), line, module)
    app: Pipeline = module.app
    Harness(app).run_for(1)
    for name, test in list(vars(module).items()):
        if name.startswith("test_"):
            first = {mark.args[0]: mark.args[1][0] for mark in getattr(test, "pytestmark", [])}  # of its parameters
            given = {"harness": Harness(app), "conn": FakeConnection(app), **first}
            test(**{key: given[key] for key in inspect.signature(test).parameters})


def test_no_page_is_left_out_without_a_word() -> None:
    for page in GIVEN:
        found = list(BLOCK.finditer((DOCS / f"{page}.md").read_text()))
        assert len(found) == (DOCS / f"{page}.md").read_text().count("```python")
        assert sum(not one[1] for one in found) > len(found) / 2
