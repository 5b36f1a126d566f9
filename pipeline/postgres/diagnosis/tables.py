"""Captured tables and a publication in, what of their rows would not come, out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import sql

from pipeline.errors import SourceError
from pipeline.finding import Finding, Level
from pipeline.postgres.diagnosis.look import Look, judged
from pipeline.postgres.poll_table import found_table

__all__ = ["examine"]

_SNAPSHOTS = {"no_data", "never"}  # that read no row


def examine(look: Look) -> Iterator[Finding]:
    """Yield findings about each table, and its place in the publication; or whether it can be polled."""
    there = []
    for table in look.capture.tables:
        row = look.row(_TABLE, table)
        if row is None:
            fix = "pipeline db migrate; or correct table.include.list"
            yield judged(f"table {table}", "problem", "is not there, or its schema may not be used", fix)
            continue
        there.append((table, row))
        yield judged(
            f"table {table}",
            "ok" if row["may"] else "problem",
            "readable" if row["may"] else "not readable",
            f"GRANT SELECT ON {table} TO {row['role']};",
        )
        lost = look.capture.without(row["columns"])
        if lost:
            fix = f"ALTER TABLE {table} ADD COLUMN {lost[0]} …; or correct the file"
            yield judged(f"columns of {table}", "problem", f"has no {', '.join(lost)}", fix)
        if (column := look.capture.timestamp) in map(look.capture.adjust, row["zoned"]):
            text = f"{column} has a time zone: neither Debezium nor the relay makes a record's time of it"
            own = sql.Identifier(look.capture.own(column, row["zoned"])).as_string(look.conn)
            change = f"ALTER COLUMN {own} TYPE timestamp USING {own} AT TIME ZONE 'UTC'"
            fix = f"ALTER TABLE {table} {change}; or take table.field.event.timestamp out of the file"
            yield judged(f"columns of {table}", "problem", text, fix)
        if look.capture.snapshot not in _SNAPSHOTS and row["may"]:
            yield _snapshot(look, table, row)
    if look.capture.polls:
        yield from _polled(look, [table for table, _ in there])
    else:
        yield from _publication(look, there)


def _polled(look: Look, tables: list[str]) -> Iterator[Finding]:
    names, capture = ", ".join(tables), look.capture
    if not tables:
        return
    try:
        found_table(look.conn, lambda schema, table: f"{schema}.{table}" in tables, names, capture.seq, capture.xid)
    except SourceError as error:
        yield judged(f"polling of {names}", "problem", error.what, error.remedy)
    else:
        yield judged(f"polling of {names}", "ok", "its rows have numbers and transactions, and are found by an index")


def _snapshot(look: Look, table: str, row: dict[str, Any]) -> Finding:
    """Say what a snapshot would publish, by the planner's estimate: a count would read the whole table."""
    slot = look.row("SELECT FROM pg_replication_slots WHERE slot_name = %s", look.capture.slot)
    rows = max(row["estimate"], 0)
    level: Level = "ok" if slot is not None or not rows else "warning"
    return judged(
        f"snapshot of {table}",
        level,
        f"snapshot.mode={look.capture.snapshot} publishes about {rows} rows that are there, at the first start",
        "set snapshot.mode=no_data, unless they were never published",
    )


def _publication(look: Look, tables: list[tuple[str, dict[str, Any]]]) -> Iterator[Finding]:
    name = look.capture.publication
    row = look.row("SELECT *, quote_ident(pubname) AS quoted FROM pg_publication WHERE pubname = %s", name)
    check = f"publication {name}"
    if row is None:
        level: Level = "ok" if look.capture.creates else "problem"
        listed = ", ".join(look.capture.tables)
        fix = f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH (publish = 'insert');"
        if look.capture.shards:
            fix = "pipeline db shards FILE --execute"
        yield judged(check, level, "is not there", fix)
        return
    yield judged(
        check,
        "ok" if row["pubinsert"] else "problem",
        "publishes inserts" if row["pubinsert"] else "does not publish inserts",
        f"ALTER PUBLICATION {row['quoted']} SET (publish = 'insert');",
    )
    for table, about in tables:
        yield from _published(look, row, table, about)


def _published(look: Look, publication: dict[str, Any], table: str, about: dict[str, Any]) -> Iterator[Finding]:
    check, quoted = f"{table} in {publication['pubname']}", publication["quoted"]
    found = look.row(_PUBLISHED, publication["pubname"], table, table)
    if found is None:
        yield judged(check, "problem", "is not in the publication", f"ALTER PUBLICATION {quoted} ADD TABLE {table};")
        return
    if (publication["pubupdate"] or publication["pubdelete"]) and not found["identity"]:
        fix = f"ALTER TABLE {table} REPLICA IDENTITY FULL;"
        yield judged(check, "problem", "has no replica identity, so that UPDATE and DELETE on it fail", fix)
    if about["partitioned"] and not publication["pubviaroot"]:
        fix = f"ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"
        yield judged(check, "problem", "its rows come under the names of its partitions", fix)
    if look.version >= 150000:
        yield from _filtered(look, publication, table, check)


def _filtered(look: Look, publication: dict[str, Any], table: str, check: str) -> Iterator[Finding]:
    found = look.row(_FILTER, publication["pubname"], table)
    if found is None:
        return
    lost = look.capture.without(found["columns"])
    if lost:
        fix = f"ALTER PUBLICATION {publication['quoted']} SET TABLE {table};"
        yield judged(check, "problem", f"its column list leaves out {', '.join(lost)}", fix)
    if found["filter"] and not look.capture.shards:
        yield judged(check, "note", f"only rows with {found['filter']}: others need a connector of their own")


_TABLE = """
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS may,
       quote_ident(current_user) AS role, c.relkind = 'p' AS partitioned,
       (SELECT coalesce(sum(greatest(p.reltuples, pg_stat_get_live_tuples(p.oid))), 0)::bigint
        FROM pg_class p WHERE p.oid = c.oid OR p.oid IN (SELECT relid FROM pg_partition_tree(c.oid))) AS estimate,
       (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
       (SELECT coalesce(array_agg(attname::text), '{}') FROM pg_attribute
        WHERE attrelid = c.oid AND atttypid = 'timestamptz'::regtype AND NOT attisdropped) AS zoned
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = %s
"""
_PUBLISHED = """
SELECT c.relreplident IN ('f', 'i') OR (c.relreplident = 'd' AND EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)) AS identity
FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %s AND (t.schemaname || '.' || t.tablename = %s OR c.oid IN (
    SELECT p.relid FROM pg_class o JOIN pg_namespace m ON m.oid = o.relnamespace, pg_partition_tree(o.oid) p
    WHERE m.nspname || '.' || o.relname = %s))
"""
_FILTER = """
SELECT rowfilter AS filter, attnames::text[] AS columns FROM pg_publication_tables
WHERE pubname = %s AND schemaname || '.' || tablename = %s
"""
