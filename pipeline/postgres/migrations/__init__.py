"""Numbered SQL files in, the schema ``pipeline`` at the newest version out.

All pending files are applied in one transaction, under an advisory lock: two at once, or a crash in the middle,
leave either the old version or the new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import LiteralString, cast

import psycopg

from pipeline.postgres.errors import translated

__all__ = ["Migration", "applied", "available", "grants", "migrate", "script"]

_LOCK = 0x6F7574626F78  # "outbox"; any constant that nobody else uses

_VERSION_TABLE: LiteralString = """
CREATE SCHEMA IF NOT EXISTS pipeline;
CREATE TABLE IF NOT EXISTS pipeline.migration (
    number     integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file ``NNNN_name.sql``."""

    number: int
    name: str
    sql: str


def available() -> list[Migration]:
    """Return all migrations, lowest number first."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".sql")]
    found = [Migration(int(f.name[:4]), f.name[5:-4], f.read_text(encoding="utf-8")) for f in files]
    return sorted(found, key=lambda migration: migration.number)


def applied(conn: psycopg.Connection[tuple[object, ...]]) -> set[int]:
    """Return the numbers that were applied. Raises SourceError."""
    try:
        if conn.execute("SELECT to_regclass('pipeline.migration')").fetchone() == (None,):
            return set()
        return {cast(int, row[0]) for row in conn.execute("SELECT number FROM pipeline.migration")}
    except psycopg.Error as error:
        raise translated(error) from error


def migrate(conn: psycopg.Connection[tuple[object, ...]]) -> list[Migration]:
    """Apply what is pending, in one transaction, and return it. Raises SourceError; nothing is changed then."""
    try:
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            conn.execute(_VERSION_TABLE)
            done = applied(conn)
            pending = [migration for migration in available() if migration.number not in done]
            for migration in pending:
                conn.execute(migration.sql.encode())
                conn.execute(
                    "INSERT INTO pipeline.migration (number, name) VALUES (%s, %s)", (migration.number, migration.name)
                )
    except psycopg.Error as error:
        raise translated(error) from error
    return pending


def script(*, grants: bool = True) -> str:
    """Return all migrations as one SQL script, for a reviewer or another migration tool.

    ``grants`` adds least-privilege roles for relay, writers and workers.
    """
    parts = ["BEGIN;", _VERSION_TABLE.strip()]
    for migration in available():
        parts += [
            f"\n-- {migration.number:04} {migration.name}",
            migration.sql.strip(),
            f"INSERT INTO pipeline.migration (number, name) VALUES ({migration.number}, '{migration.name}');",  # noqa: S608 — file names of ours
        ]
    if grants:
        parts.append(_GRANTS)
    parts.append("COMMIT;")
    return "\n".join(parts) + "\n"


def grants() -> list[tuple[str, str, str]]:
    """Return (role, privilege, table) of all that ``script`` grants table by table."""
    found = re.findall(r"GRANT ([A-Z, ]+) ON (pipeline\.[^;]+?) TO (\w+);", _GRANTS)
    return [
        (role, privilege, table)
        for privileges, tables, role in found
        for table in re.split(r",\s*", tables)
        for privilege in privileges.split(", ")
    ]


_GRANTS = """
-- Least-privilege roles; give each a password, or drop what you do not need. Roles belong to the whole server, so they
-- may be there already.
DO $$
DECLARE role record;
BEGIN
    FOR role IN VALUES ('pipeline_relay', 'LOGIN REPLICATION'), ('pipeline_writer', 'NOLOGIN'),
                       ('pipeline_worker', 'NOLOGIN'), ('pipeline_scheduler', 'NOLOGIN'),
                       ('pipeline_pruner', 'NOLOGIN'), ('pipeline_operator', 'NOLOGIN') LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role.column1) THEN
            EXECUTE format('CREATE ROLE %I %s', role.column1, role.column2);
        END IF;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA pipeline TO pipeline_relay;
GRANT SELECT ON pipeline.outbox, pipeline.schema_id, pipeline.migration TO pipeline_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON pipeline.relay_position, pipeline.poll_position TO pipeline_relay;
GRANT INSERT ON pipeline.refused_row TO pipeline_relay;

GRANT USAGE ON SCHEMA pipeline TO pipeline_writer;
GRANT INSERT ON pipeline.outbox TO pipeline_writer;
GRANT SELECT ON pipeline.schema_id TO pipeline_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON pipeline.job, pipeline.job_key, pipeline.due TO pipeline_writer;

GRANT USAGE ON SCHEMA pipeline TO pipeline_worker;
GRANT SELECT, UPDATE ON pipeline.job TO pipeline_worker;
GRANT SELECT, UPDATE, DELETE ON pipeline.job_key, pipeline.due TO pipeline_worker;
GRANT SELECT, INSERT, UPDATE ON pipeline.rate TO pipeline_worker;
GRANT SELECT ON pipeline.control TO pipeline_worker;
GRANT SELECT, INSERT ON pipeline.inbox TO pipeline_worker;

GRANT USAGE ON SCHEMA pipeline TO pipeline_scheduler;
GRANT INSERT ON pipeline.outbox TO pipeline_scheduler;
GRANT SELECT, INSERT, UPDATE, DELETE ON pipeline.due, pipeline.job, pipeline.job_key, pipeline.job_count,
    pipeline.job_delta, pipeline.schedule, pipeline.tick TO pipeline_scheduler;
GRANT SELECT ON pipeline.relay_position TO pipeline_scheduler;
GRANT SELECT (seq, created_at) ON pipeline.outbox TO pipeline_scheduler;

GRANT USAGE ON SCHEMA pipeline TO pipeline_pruner;
GRANT SELECT, DELETE ON pipeline.outbox TO pipeline_pruner;
GRANT SELECT ON pipeline.relay_position, pipeline.poll_position TO pipeline_pruner;
GRANT SELECT, INSERT, DELETE ON pipeline.prune_point TO pipeline_pruner;
GRANT SELECT, DELETE ON pipeline.inbox TO pipeline_pruner;

GRANT USAGE ON SCHEMA pipeline TO pipeline_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA pipeline TO pipeline_operator;
GRANT INSERT, UPDATE ON pipeline.schema_id, pipeline.dead_letter, pipeline.control TO pipeline_operator;
GRANT DELETE ON pipeline.refused_row TO pipeline_operator;
GRANT UPDATE ON pipeline.job, pipeline.schedule TO pipeline_operator;
GRANT INSERT, UPDATE, DELETE ON pipeline.job_key TO pipeline_operator;
GRANT UPDATE, DELETE ON pipeline.due TO pipeline_operator;
"""
