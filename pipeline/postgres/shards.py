"""A table, its key and the shards that read it in, the statements that make their publications and slots out.

A row is of exactly one shard: by the last bits of its key's hash, and of shard 0 where it has no key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pipeline.errors import SourceError
from pipeline.postgres.table import captured, identifier

__all__ = ["Shard", "statements"]

_SINCE = 150000
_HASHES = {  # a row filter takes no cast that calls a function
    25: "hashtextextended", 1043: "hashtextextended", 2950: "uuid_hash_extended", 20: "hashint8extended",
    23: "hashint4extended",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """One of them; ``failover`` is of its slot."""

    slot: str
    publication: str
    failover: bool = False


def statements(
    conn: psycopg.Connection[Any],
    wanted: Callable[[str, str], bool],
    wanted_text: str,
    key: str,
    shards: Sequence[Shard],
) -> list[str]:
    """Return what makes the publications and slots that are not there. Raises SourceError; psycopg.Error."""
    if conn.info.server_version < _SINCE:
        raise SourceError("PostgreSQL: row filters came with version 15", remedy="upgrade, or let one relay do it all")
    relations = captured(conn, wanted)
    if len(relations) != 1:
        names = ", ".join(f"{one.schema}.{one.table}" for one in relations) or "none"
        raise SourceError(
            f"shards read one table, table.include.list={wanted_text} takes {names}", remedy="name one table"
        )
    (relation,) = relations
    table = identifier(relation)
    kind = next((column.type_oid for column in relation.columns if column.name == key), 0)
    if kind not in _HASHES:
        raise SourceError(
            f"{relation.schema}.{relation.table} has no column {key} of type text, varchar, uuid, bigint or integer",
            remedy="name the record's key: table.field.event.key",
        )
    made = []
    for number, shard in enumerate(shards):
        if not _there(conn, "SELECT FROM pg_publication WHERE pubname = %s", shard.publication):
            filtered = _PUBLICATION.format(
                name=sql.Identifier(shard.publication), table=table, hash=sql.SQL(_HASHES[kind]),
                key=sql.Identifier(key), mask=sql.Literal(len(shards) - 1), number=sql.Literal(number),
            )  # fmt: skip
            made.append(filtered.as_string(conn))
    for shard in shards:
        if not _there(conn, "SELECT FROM pg_replication_slots WHERE slot_name = %s", shard.slot):
            more = sql.SQL(", false, false, true" if shard.failover else "")
            made.append(_SLOT.format(slot=sql.Literal(shard.slot), more=more).as_string(conn))
    return made


def _there(conn: psycopg.Connection[Any], query: str, name: str) -> bool:
    return conn.execute(query.encode(), (name,)).fetchone() is not None


_PUBLICATION = sql.SQL(
    "CREATE PUBLICATION {name} FOR TABLE {table} WHERE (coalesce({hash}({key}, 0) & {mask}, 0) = {number})"
    " WITH (publish = 'insert', publish_via_partition_root = true)"
)
_SLOT = sql.SQL("SELECT pg_create_logical_replication_slot({slot}, 'pgoutput'{more})")
