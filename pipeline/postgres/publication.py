"""``publication.autocreate.mode`` and the tables that are there in, a publication out.

As Debezium does it: a missing publication is created as the mode says; ``filtered`` also brings one that is there in
step with the tables that are wanted now, and leaves it alone where it is. Nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from pipeline.errors import SourceError
from pipeline.postgres.slot import ReplicationConnection, quoted

__all__ = ["Mode", "ensure"]

Mode = Literal["disabled", "all_tables", "filtered", "no_tables"]
Table = tuple[str, str]

_TABLES = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' "
    "AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2"
)
_LISTED = (
    "SELECT n.nspname, c.relname FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid "
    "JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = "
)


def ensure(
    conn: ReplicationConnection, name: str, mode: Mode, wanted: Callable[[str, str], bool], *, by_root: bool
) -> None:
    """Create the publication ``name``, or change its tables. ``by_root``: publish_via_partition_root, where created.

    Raises SourceError, with the grants that are needed.
    """
    if mode == "disabled":
        return
    there = conn.rows(f"SELECT puballtables FROM pg_publication WHERE pubname = {quoted(name)}")  # noqa: S608
    more = " WITH (publish_via_partition_root = true)" if by_root else ""
    if mode == "filtered":
        tables = [table for table in _tables(conn, _TABLES) if wanted(*table)]
        if not tables:
            raise SourceError(
                f"publication {name}: there is no table that table.include.list takes",
                remedy="create the table, or correct table.include.list",
            )
        if not there:
            _change(conn, name, f"CREATE PUBLICATION {_identifier(name)} FOR TABLE {_list(tables)}{more}", mode)
        elif there[0][0] == "t":
            raise SourceError(
                f"publication {name} is for all tables, but publication.autocreate.mode is filtered",
                remedy="set publication.autocreate.mode=all_tables, or use another publication.name",
            )
        elif set(tables) != set(_tables(conn, _LISTED + quoted(name))):
            _change(conn, name, f"ALTER PUBLICATION {_identifier(name)} SET TABLE {_list(tables)}", mode)
    elif not there:
        what = " FOR ALL TABLES" if mode == "all_tables" else ""
        _change(conn, name, f"CREATE PUBLICATION {_identifier(name)}{what}{more}", mode)


def _change(conn: ReplicationConnection, name: str, sql: str, mode: Mode) -> None:
    try:
        conn.rows(sql)
    except SourceError as error:
        if "(SQLSTATE 42501)" not in error.what:
            raise
        owner = "own the tables and the publication, and have CREATE on the database"
        needed = "be a superuser" if mode == "all_tables" else owner
        raise SourceError(
            f"publication {name}: {error.what}",
            remedy=f"let the role {needed}; or create it by hand ({sql}) and set publication.autocreate.mode=disabled",
        ) from error


def _tables(conn: ReplicationConnection, sql: str) -> list[Table]:
    return [(str(schema), str(table)) for schema, table in conn.rows(sql)]


def _list(tables: Iterable[Table]) -> str:
    return ", ".join(f"{_identifier(schema)}.{_identifier(table)}" for schema, table in tables)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
