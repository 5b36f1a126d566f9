"""The roles of a database in, which grants they lack and the statements that give them, out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from pipeline.finding import Finding
from pipeline.postgres.diagnosis.look import Look, judged
from pipeline.postgres.migrations import applied, available, grants

__all__ = ["examine"]

_RELAY = "pipeline_relay"  # whose grants a connector's user needs, whatever its name
_NOT_NEEDED = {"pipeline.outbox", "pipeline.schema_id"}
_POSITIONS = {"pipeline.relay_position": {"SELECT", "INSERT", "UPDATE"}, "pipeline.poll_position": {"SELECT"}}  # by WAL


def examine(look: Look) -> Iterator[Finding]:
    """Yield findings about replication, the schema's version, and the grants of each role that uses the schema."""
    role = look.one(_ROLE)
    if not look.capture.polls or _takes_over(look):
        yield judged(
            "replication",
            "ok" if role["may"] else "problem",
            f"{role['role']} {'may' if role['may'] else 'may not'} replicate",
            look.provider.replication.format(role=role["role"]),
        )
    if look.row(_THERE, "pipeline.relay_position") is None:
        yield judged("pipeline.relay_position", "problem", "is not there", "pipeline db migrate")
        return
    if look.reads("pipeline.migration"):
        done = applied(look.conn)
        pending = [f"{one.number:04} {one.name}" for one in available() if one.number not in done]
        level, text = ("problem", f"pending: {', '.join(pending)}") if pending else ("ok", "none pending")
        yield judged("migrations", "problem" if level == "problem" else "ok", text, "pipeline db migrate")
        if pending:
            return  # grants on what is not there yet
    yield _granted(look, role["name"], role["role"], _needed(look))
    for known in sorted({one for one, _, _ in grants()} - {role["name"]}):
        user = look.row(_USER, known)
        if user is not None and user["uses"]:
            given = [(privilege, table) for of, privilege, table in grants() if of == known]
            yield _granted(look, known, user["role"], given)


def _takes_over(look: Look) -> bool:
    """Tell whether a relay that polls finds a slot, which it reads first."""
    return look.reads("pipeline.poll_position") and look.row(_LEFT, look.capture.slot) is not None


def _needed(look: Look) -> list[tuple[str, str]]:
    """Return (privilege, table) of what a relay does with our tables, whoever's table it captures.

    That it may read the table is looked at with the table.
    """
    found = [(privilege, table) for of, privilege, table in grants() if of == _RELAY and table not in _NOT_NEEDED]
    kept = {} if look.capture.polls else _POSITIONS
    return [(privilege, table) for privilege, table in found if privilege in kept.get(table, {privilege})]


def _granted(look: Look, name: str, quoted: str, wanted: Iterable[tuple[str, str]]) -> Finding:
    """Compare what a role may do with (privilege, table) of what it has to."""
    missing = defaultdict(list)
    for privilege, table in wanted:
        if look.row(_MAY, table, name, privilege) is None:
            missing[table].append(privilege)
    fixes = [f"GRANT {', '.join(privileges)} ON {table} TO {quoted};" for table, privileges in missing.items()]
    if not look.one("SELECT has_schema_privilege(%s, 'pipeline', 'USAGE') AS may", name)["may"]:
        missing["schema pipeline"].append("USAGE")
        fixes.insert(0, f"GRANT USAGE ON SCHEMA pipeline TO {quoted};")
    lacks = ", ".join(f"{' and '.join(privileges)} on {table}" for table, privileges in missing.items())
    return judged(
        f"grants of {name}",
        "problem" if missing else "ok",
        f"lacks {lacks}" if missing else "complete",
        " ".join(fixes),
    )


_ROLE = """
SELECT current_user::text AS name, quote_ident(current_user) AS role, rolreplication OR rolsuper OR EXISTS (
    SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER')) AS may
FROM pg_roles WHERE rolname = current_user
"""
# by the catalogue: a name is looked up only by who may use its schema
_THERE = "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = %s"
_MAY = f"{_THERE} AND has_table_privilege(%s, c.oid, %s)"
_LEFT = """
SELECT FROM pg_replication_slots s WHERE slot_name = %s AND database = current_database()
AND NOT EXISTS (SELECT FROM pipeline.poll_position p WHERE p.slot = slot_name)
"""
# roles belong to the whole server: one that may not use the schema here is of another database
_USER = """
SELECT quote_ident(rolname) AS role, has_schema_privilege(oid, 'pipeline', 'USAGE') AS uses
FROM pg_roles WHERE rolname = %s
"""
