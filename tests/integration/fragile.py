"""Jobs in processes of their own that depend on a file of ``PROCESS_TEST_DIR``."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import Breaker, Context, Job, Pipeline, RetryPolicy


class Fetch(Job, queue="fetch", format="json", track=False):
    n: int


class Down(Exception):
    """The file is not there."""


POLICY = RetryPolicy(attempts=2, first_s=1, factor=1, cap_s=1, jitter=0, uncounted=(Down,))

app = Pipeline("shop", topic_prefix=os.environ.get("PROCESS_TEST_PREFIX", ""), partitions=3)


@app.job(Fetch, retry=POLICY, process=True, breaker=Breaker(threshold=3, cool_down_s=1, factor=1))
def fetch(job: Fetch, ctx: Context) -> None:
    folder = Path(os.environ["PROCESS_TEST_DIR"])
    with (folder / "calls").open("a") as file:
        file.write(f"{job.n}\n")
    if not (folder / "up").exists():
        raise Down
    with (folder / "done").open("a") as file:
        file.write(f"{job.n} {ctx.attempt}\n")
