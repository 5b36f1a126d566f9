"""Published outbox rows past their retention in, deleted rows out, a few at a time.

A row goes only when every relay's stored position is at or past a point of the WAL that was read after a snapshot in
which the row's transaction had ended, or, of one that polls, is a snapshot in which it had; never while it is in doubt
whether a position belongs to its slot. Of slots for which none was stored, as of a shard whose relay never ran, and
Debezium's, what their readers have confirmed has to be past it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.errors import SourceError
from pipeline.postgres.errors import translated

__all__ = ["Plan", "plan", "prune", "take_point"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What may go: rows of transactions below ``horizon``. None: no point was passed by all relays yet.

    ``slots`` names the slots whose stored positions were asked, ``lsn`` is the lowest of them, empty where all poll.
    """

    slots: tuple[str, ...]
    lsn: str
    horizon: int | None


def take_point(conn: psycopg.Connection[Any]) -> None:
    """Remember a snapshot's xmin and then, in a statement of its own, the end of the WAL. ``conn`` is in autocommit."""
    try:
        xmin = conn.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
        assert xmin is not None
        lsn = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert lsn is not None
        conn.execute("INSERT INTO pipeline.prune_point (horizon, lsn) VALUES (%s::xid8, %s::pg_lsn)", (xmin[0], lsn[0]))
    except psycopg.Error as error:
        raise translated(error) from error


def plan(conn: psycopg.Connection[Any]) -> Plan:
    """Return what may go. Raises SourceError where no relay has stored a position, or one of them is in doubt."""
    try:
        with conn.cursor(row_factory=dict_row) as cursor:
            slots = cursor.execute(_SLOTS).fetchall()
            problems = [f"slot {slot['slot']}: {slot['doubt']}" for slot in slots if slot["doubt"]]
            if not any(slot["stored"] for slot in slots) or problems:
                raise SourceError(
                    f"nothing may be pruned: {'; '.join(problems) or 'no relay has stored a position'}",
                    remedy="start the relay; of one that is gone for good drop the slot, and delete the row of "
                    "pipeline.relay_position or pipeline.poll_position",
                )
            streams = [slot for slot in slots if slot["lsn"]]
            lsn = min(streams, key=lambda slot: int(slot["bytes"]))["lsn"] if streams else ""
            passed = cursor.execute(_POINT, {"lsn": lsn}).fetchone() if streams else None
    except psycopg.Error as error:
        raise translated(error) from error
    horizons = [int(found["horizon"]) for found in (*slots, *([passed] if passed else [])) if found["horizon"]]
    known = bool(passed) or not streams
    return Plan(tuple(slot["slot"] for slot in slots), lsn, min(horizons) if known else None)


def prune(
    conn: psycopg.Connection[Any],
    retention_s: float,
    *,
    batch: int,
    execute: bool,
    step: Callable[[int], None] = lambda _rows: None,
) -> int:
    """Delete (or only count) rows older than ``retention_s`` that may go, ``batch`` in each transaction.

    Returns how many. ``conn`` is in autocommit mode. Each batch has a new plan, so that a slot in doubt stops it.
    Raises SourceError; what was deleted until then is deleted.
    """
    after: int | None = -1
    done = 0
    while True:
        allowed = plan(conn)
        if allowed.horizon is None:
            return done
        try:
            with conn.transaction():
                parameters = {"after": after, "batch": batch, "horizon": str(allowed.horizon), "age": retention_s}
                row = conn.execute(_DELETE if execute else _COUNT, parameters).fetchone()
        except psycopg.Error as error:
            raise translated(error) from error
        seen, old, gone, last = row or (0, 0, 0, after)
        done += gone
        step(gone)
        if seen < batch or not old:
            if execute:
                _forget(conn, allowed)
            return done
        after = last


def _forget(conn: psycopg.Connection[Any], used: Plan) -> None:
    """Delete the points before the one that was used: a newer one allows more."""
    try:
        conn.execute(
            "DELETE FROM pipeline.prune_point "
            "WHERE id < (SELECT max(id) FROM pipeline.prune_point WHERE lsn <= nullif(%s, '')::pg_lsn)",
            (used.lsn,),
        )
    except psycopg.Error as error:
        raise translated(error) from error


# A snapshot that was published without a slot holds back nothing.
# Another position is a relay's own: the slot is there and of this server's line, and nobody moved it past the position.
_SLOTS = """
SELECT p.slot, true AS stored, p.lsn::text AS lsn, p.lsn - '0/0'::pg_lsn AS bytes, NULL AS horizon, CASE
    WHEN s.slot_name IS NULL THEN 'it does not exist in this database'
    WHEN s.wal_status = 'lost' THEN 'it was invalidated'
    WHEN p.system_id <> (SELECT system_identifier::text FROM pg_control_system())
        THEN 'its position is of another server'
    WHEN p.timeline <> (SELECT timeline_id FROM pg_control_checkpoint()) THEN 'its position is of another timeline'
    WHEN p.lsn > pg_current_wal_insert_lsn() THEN 'its position is beyond this server''s WAL'
    WHEN s.confirmed_flush_lsn > p.lsn THEN 'it was recreated, or moved past the stored position by somebody else'
    END AS doubt
FROM pipeline.relay_position p
LEFT JOIN pg_replication_slots s
    ON s.slot_name = p.slot AND s.database = current_database() AND s.slot_type = 'logical'
WHERE NOT starts_with(p.slot, 'snapshot:')
UNION ALL
SELECT slot_name, false, coalesce(confirmed_flush_lsn, '0/0')::text,
       coalesce(confirmed_flush_lsn, '0/0') - '0/0'::pg_lsn, NULL,
       CASE WHEN wal_status = 'lost' THEN 'it was invalidated' END
FROM pg_replication_slots s
WHERE database = current_database() AND plugin = 'pgoutput' AND NOT temporary
AND NOT EXISTS (SELECT FROM pipeline.relay_position p WHERE p.slot = slot_name)
AND NOT EXISTS (SELECT FROM pipeline.poll_position p WHERE p.slot = slot_name)
UNION ALL
SELECT slot, true, NULL, NULL, pg_snapshot_xmin(taken)::text, CASE
    WHEN system_id <> (SELECT system_identifier::text FROM pg_control_system())
        THEN 'its position is of another server'
    WHEN timeline > ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
        THEN 'its position is of a later timeline'
    WHEN pg_snapshot_xmax(taken) > pg_snapshot_xmax(pg_current_snapshot()) THEN 'its position lies in the future'
    END
FROM pipeline.poll_position
"""

_POINT = """
SELECT horizon::text AS horizon FROM pipeline.prune_point WHERE lsn <= %(lsn)s::pg_lsn ORDER BY id DESC LIMIT 1
"""

_WINDOW = """
WITH lowest AS MATERIALIZED (
    SELECT id, seq, xid, created_at < (clock_timestamp() AT TIME ZONE 'UTC') - %(age)s * interval '1 second' AS old
    FROM pipeline.outbox WHERE seq > %(after)s ORDER BY seq LIMIT %(batch)s
), ripe AS (
    SELECT id FROM lowest WHERE old AND xid < %(horizon)s::xid8
)"""

_COUNT = f"""{_WINDOW}
SELECT count(*), count(*) FILTER (WHERE old), (SELECT count(*) FROM ripe), max(seq) FROM lowest
"""  # noqa: S608 — of constants

_DELETE = f"""{_WINDOW}, gone AS (
    DELETE FROM pipeline.outbox o USING ripe WHERE o.id = ripe.id RETURNING 1
)
SELECT count(*), count(*) FILTER (WHERE old), (SELECT count(*) FROM gone), max(seq) FROM lowest
"""  # noqa: S608 — of constants
