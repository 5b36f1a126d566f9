"""Jobs that run in processes of their own; where they come by shows in files of ``PROCESS_TEST_DIR``."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import Context, Job, Pipeline, Reject, RetryLater, RetryPolicy


class Crunch(Job, queue="crunch", format="json", track=False):
    what: str


class Soak(Job, queue="crunch", format="json", track=False):
    what: str


class TwoArguments(Exception):
    """Comes out of no pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


TRIES = RetryPolicy(attempts=2, first_s=0.1, factor=1, cap_s=1, jitter=0, fatal=(TwoArguments,))

app = Pipeline("shop", topic_prefix=os.environ.get("PROCESS_TEST_PREFIX", ""), partitions=3)


def note(kind: str, text: str) -> None:
    path = Path(os.environ["PROCESS_TEST_DIR"]) / f"{kind}-{os.getpid()}"
    with path.open("a") as file:
        file.write(text + "\n")


@app.lifespan
def place() -> Iterator[dict[str, Any]]:
    note("entered", "")
    yield {"pid": os.getpid()}
    note("left", "")


@app.job(Crunch, retry=TRIES, timeout_s=1.5, process=True)
def crunch(job: Crunch, ctx: Context) -> None:
    note("begun", f"{job.what} {ctx.attempt} {ctx.event_id}")
    assert ctx.state.pid == os.getpid()
    match job.what:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "overrun":
            time.sleep(60)
        case "odd":
            raise TwoArguments(1, 2)
        case "reject":
            raise Reject("not this one")
        case "later" if ctx.attempt == 1:
            raise RetryLater(0.1)
        case "tell":
            ctx.progress(1, 2)
            ctx.result([child.result for child in ctx.children()])
        case "look":
            while True:
                ctx.raise_if_cancelled()
                time.sleep(0.01)
        case "raise":
            raise KeyError("in the child")
    note("done", f"{job.what} {ctx.attempt}")


@app.job(Soak, retry=TRIES, process=True)
async def soak(job: Soak, ctx: Context) -> None:
    note("begun", job.what)
    if job.what == "long":
        await asyncio.sleep(60)
    await asyncio.sleep(0)
    note("done", job.what)
