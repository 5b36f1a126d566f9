"""How a worker stands in, rows of ``pipeline consumer workers`` out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from pipeline.beat import Standing

__all__ = ["job_rows", "worker_row"]


def worker_row(one: Standing, *, whole: bool) -> dict[str, object]:
    """Return all that is known of a worker, or what fits a line."""
    beat, worker = one.beat, one.beat.worker
    head = {
        "worker": worker.name,
        "app": worker.app,
        "state": one.state,
        "heard_s": round(one.heard_s, 1),
    }
    if whole:
        said = asdict(beat)
        return {**head, **said.pop("worker"), **said}
    groups = beat.groups
    return {
        **head,
        "handled": sum(group.handled for group in groups),
        "retried": sum(group.retried for group in groups),
        "dead": sum(group.dead for group in groups),
        "in_flight": sum(group.in_flight for group in groups),
        "slow": sum(group.slow for group in groups),
        "oldest_s": round(max((group.oldest_s for group in groups), default=0.0), 1),
        "groups": " ".join(group.group for group in groups),
        "why": "; ".join(f"{part}: {text}" for part, text in beat.reasons.items()) or None,
    }


def job_rows(one: Standing) -> Iterator[dict[str, object]]:
    """Yield what is in a worker's handlers for longest, as of its last heartbeat."""
    for group in one.beat.groups:
        for job in group.jobs:
            yield {"worker": one.beat.worker.name, "state": one.state, "group": group.group, **asdict(job)}
