"""A slot, a publication and the server's settings in, an error with its remedy out where a connector cannot read so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.capture import lsn_text
from pipeline.errors import SourceError
from pipeline.postgres.position import Position
from pipeline.postgres.slot import Identity, ReplicationConnection, Slot, quoted

__all__ = ["check_not_older", "check_publication", "check_slot", "check_tables", "slot_gone", "status_every_s"]

log = logging.getLogger(__name__)


class Server(Protocol):
    """A server, and in which of its histories it is."""

    @property
    def system_id(self) -> str:
        """The same for a primary and its copies."""

    @property
    def timeline(self) -> int:
        """Grows with each promotion."""


def check_not_older(server: Server, known: Server | None) -> None:
    """Refuse the primary of before a failover that came back as one: what is written there belongs to nobody.

    ``known`` is the server that was read before. Raises SourceError.
    """
    if known and known.system_id == server.system_id and known.timeline > server.timeline:
        raise SourceError(
            f"PostgreSQL: this server is on timeline {server.timeline}, the one read before on {known.timeline}: "
            "an old primary that came back",
            remedy="stop it, and make it a standby of the new primary (pg_rewind)",
            retryable=True,
        )


def slot_gone(name: str, stored: Position, server: Identity) -> SourceError:
    """Return what to say of a slot that is not there, but was read up to ``stored``."""
    promoted = ": the server was promoted, and had no copy of it (slot.failover, sync_replication_slots)"
    return SourceError(
        f"slot {name} is gone, but rows up to {lsn_text(stored.lsn)} were published from it"
        + (promoted if stored.timeline < server.timeline else ""),
        remedy=f"rows committed since then may be missing on the topics: delete the row '{name}' of "
        "pipeline.relay_position, start again, which creates the slot anew, and publish what is missing: "
        "pipeline connector reconcile FILE --execute",
    )


def check_slot(slot: Slot, conn: ReplicationConnection) -> None:
    """Raise SourceError where the server gave the slot up, or it is another's."""
    if slot.wal_status == "lost":
        raise SourceError(
            f"slot {slot.name} is lost: the server removed WAL that it needed (max_slot_wal_keep_size)",
            remedy=f"drop it with pg_drop_replication_slot('{slot.name}'), delete its row of "
            "pipeline.relay_position, start again, and publish what is missing: pipeline connector reconcile FILE "
            "--execute",
        )
    if slot.plugin != "pgoutput":
        raise SourceError(
            f"slot {slot.name} is for plugin {slot.plugin or 'none'}, not pgoutput",
            remedy="use another slot.name, or drop that slot",
        )
    if slot.database != (here := conn.rows("SELECT current_database()")[0][0]):
        raise SourceError(
            f"slot {slot.name} is for database {slot.database}, not {here}",
            remedy="correct database.dbname, or use another slot.name",
        )


def status_every_s(conn: ReplicationConnection, wanted_s: float) -> float:
    """Return how often to tell the server that this lives: twice at least in what it waits for that."""
    waits_s = int(conn.rows("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'")[0][0] or 0) / 1000
    if not waits_s or wanted_s <= waits_s / 2:
        return wanted_s
    log.info(
        "the server's wal_sender_timeout is %g s: status.update.interval.ms is taken as %g, not %g",
        waits_s, waits_s * 500, wanted_s * 1000, extra={"action": "connector.notice"},
    )  # fmt: skip
    return waits_s / 2


def check_publication(conn: ReplicationConnection, name: str) -> None:
    """Raise SourceError where a publication is missing."""
    if not conn.rows(f"SELECT 1 FROM pg_publication WHERE pubname = {quoted(name)}"):  # noqa: S608
        raise SourceError(
            f"publication {name} does not exist",
            remedy="pipeline db migrate, or create it: publication.autocreate.mode is disabled",
        )


def check_tables(
    conn: ReplicationConnection, publication: str, wanted: Callable[[str, str], bool], wanted_text: str
) -> None:
    """Raise SourceError where a publication has no table that ``wanted`` takes."""
    listed = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = "
    tables = [(str(schema), str(table)) for schema, table in conn.rows(listed + quoted(publication))]
    if not any(wanted(schema, table) for schema, table in tables):
        raise SourceError(
            f"publication {publication} has no table that table.include.list={wanted_text} takes",
            remedy=f"it has {_named(tables)}: ALTER PUBLICATION {publication} ADD TABLE …; a partitioned "
            "table needs publish_via_partition_root",
        )


def _named(tables: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{schema}.{table}" for schema, table in tables[:5]) or "none"
