"""A relay's DSN, slot, publication and tables in, what is wrong with the database and how to mend it out.

Only looks: nothing is created, moved or locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg

from pipeline.finding import Finding
from pipeline.postgres.diagnosis import failover, polling, rights, server, shards, slots, tables
from pipeline.postgres.diagnosis.look import Capture, Look
from pipeline.postgres.diagnosis.providers import PROVIDERS
from pipeline.postgres.diagnosis.sample import Retained, retained
from pipeline.postgres.diagnosis.slots import reader
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive

__all__ = ["PROVIDERS", "Capture", "Retained", "examine", "reader", "retained"]


def examine(
    dsn: str, capture: Capture, *, provider: str = "", known: bool = False, now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Yield what was found, first the connection. ``now`` is this machine's clock, in Unix time.

    ``provider`` is one of PROVIDERS; empty: told by the host's name. ``known`` is a server that was looked at with an
    earlier shard: what is this one's own is looked at.
    """
    try:
        with psycopg.connect(alive(dsn, "pipeline-doctor"), autocommit=True) as conn:
            look = Look(conn, capture, provider)
            if not known:
                yield from server.examine(look, now)
                yield from rights.examine(look)
                yield from shards.examine(look)
            yield from tables.examine(look)
            if capture.polls:
                yield from polling.examine(look)
            else:
                yield from slots.examine(look)
                yield from failover.examine(look)
    except psycopg.Error as error:
        found = translated(error)
        yield Finding("postgres", "connection", "problem", found.what, found.remedy)
