"""The application that a campaign runs: what its events ask of a handler, the handler does, and writes it down.

Every start and every success of a handler is a line in a file that is appended to, so that the log of what happened
needs no server and outlives a ``kill -9``. One group has its effects exactly once, by ``inbox=True``.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

from pipeline import Context, Event, Job, Pipeline, Reject, RetryPolicy

app = Pipeline("bank")

TABLES = """
CREATE SCHEMA faults;
CREATE TABLE faults.counter (key text PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE faults.ledger (
    event_id uuid PRIMARY KEY, kind text NOT NULL, key text NOT NULL, n bigint NOT NULL, fate text NOT NULL);
CREATE TABLE faults.effect (
    pos bigint GENERATED ALWAYS AS IDENTITY, event_id uuid NOT NULL, key text NOT NULL, n bigint NOT NULL);
"""


class Moved(Event, aggregate="account", key="account"):
    """Money moved on an account. ``fails`` attempts fail first; ``fate`` is done, reject or exhaust."""

    account: str
    n: int
    fails: int
    fate: str
    pause_ms: int
    filler: str


class Parcel(Event, aggregate="parcel", key="parcel"):
    """A parcel went on. Its topic is deleted and made again now and then."""

    parcel: str
    n: int


class Letter(Job, queue="mail"):
    """A letter is to be sent. As with Moved, it says what becomes of it."""

    letter: str
    n: int
    fails: int
    fate: str
    pause_ms: int


class Refusal(Exception):
    """What a handler was told to raise."""


@app.consumer(Moved, group="ledger", retry=RetryPolicy(attempts=4, first_s=0.1, factor=2))
def keep_ledger(event: Moved, ctx: Context) -> None:
    """Threads, order by key, retried in place."""
    _write("start", "ledger", ctx, event.account, event.n)
    time.sleep(event.pause_ms / 1000)
    _obey(event.fails, event.fate, ctx)
    _write("done", "ledger", ctx, event.account, event.n)


@app.consumer(Moved, group="mirror", retry=RetryPolicy(attempts=4, first_s=0.2, factor=2), inbox=True)
def mirror(event: Moved, ctx: Context) -> None:
    """Effects exactly once, in the inbox's transaction."""
    _write("start", "mirror", ctx, event.account, event.n)
    ctx.conn.execute(
        "INSERT INTO faults.effect (event_id, key, n) VALUES (%s, %s, %s)", (ctx.event_id, event.account, event.n)
    )
    _write("done", "mirror", ctx, event.account, event.n)


@app.consumer(Parcel, group="post")
def forward(event: Parcel, ctx: Context) -> None:
    """A handler on a topic that comes and goes."""
    _write("start", "post", ctx, event.parcel, event.n)
    _write("done", "post", ctx, event.parcel, event.n)


@app.job(Letter, retry=RetryPolicy(attempts=4, first_s=0.5, factor=2, cap_s=1))
async def send(letter: Letter, ctx: Context) -> None:
    """A coroutine, no order, retried by way of the retry topics."""
    import asyncio

    _write("start", "mail", ctx, letter.letter, letter.n)
    await asyncio.sleep(letter.pause_ms / 1000)
    _obey(letter.fails, letter.fate, ctx)
    _write("done", "mail", ctx, letter.letter, letter.n)


def _obey(fails: int, fate: str, ctx: Context) -> None:
    if fate == "reject":
        raise Reject("told to")
    if fate == "exhaust" or ctx.attempt <= fails:
        raise Refusal("told to")


@functools.cache
def _file(pid: int) -> int:
    path = Path(os.environ["FAULTS_FOLDER"], f"handled-{pid}-{time.time_ns()}.log")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _write(what: str, group: str, ctx: Context, key: str, n: int) -> None:
    line = f"{time.time_ns()} {what} {group} {ctx.event_id} {key} {n} {ctx.attempt} {os.getpid()}\n"
    os.write(_file(os.getpid()), line.encode())
