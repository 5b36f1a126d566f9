"""An application whose handlers say which process they run in, and count by themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prometheus_client import Counter

from pipeline import Context, Event, Job, Pipeline, RetryPolicy

app = Pipeline("shop", topic_prefix=os.environ.get("SEVERAL_PREFIX", ""), partitions=4)
OWN = Counter("several_own", "What handlers count by themselves")


class Placed(Event, aggregate="order", key="order_id", format="json"):
    order_id: str
    what: str


class Crunch(Job, queue="crunch", format="json", track=False):
    n: int


def note(kind: str) -> None:
    with (Path(os.environ["SEVERAL_DIR"]) / f"{kind}-{os.getpid()}").open("a") as file:
        file.write("x")


@app.consumer(Placed, group="billing")
def bill(event: Placed, ctx: Context) -> None:
    OWN.inc()
    note("begun")
    if event.what == "slow":
        time.sleep(60)


@app.job(Crunch, process=True, retry=RetryPolicy(attempts=1))
def crunch(job: Crunch, ctx: Context) -> None:
    OWN.inc()
    note("crunched")
