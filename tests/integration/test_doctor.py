"""``pipeline doctor`` on real servers: what is broken is named, with what mends it, and mending it helps."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from commands import CommandLine
from psycopg import conninfo
from relays import connector_file
from servers import Database


@pytest.fixture
def cli_environment(cli_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    own = {key: value for key, value in cli_environment.items() if key != "PIPELINE_CONNECT__URL"}
    return {**own, "PIPELINE_DATA_DIR": str(tmp_path)}


def problems(pipeline: CommandLine, file: Path, *words: str) -> dict[str, str]:
    """Check → fix, of what is a problem."""
    found = pipeline("doctor", str(file), *words, "-o", "json")
    listed = {one["check"]: one["fix"] for one in json.loads(found.stdout) if one["level"] == "problem"}
    assert found.code == (2 if listed else 0)
    return listed


def test_each_problem_has_a_fix_that_helps(
    pipeline: CommandLine, tmp_path: Path, prefix: str, database: Database
) -> None:
    file = connector_file(tmp_path, prefix, **{"database.dbname": database.name})
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        assert problems(pipeline, file) == {}
        assert "is not there" in pipeline("doctor", str(file)).stdout  # its slot, a warning

        conn.execute("ALTER PUBLICATION pipeline_outbox DROP TABLE pipeline.outbox")
        check = "pipeline.outbox in pipeline_outbox"
        fix = problems(pipeline, file)[check]
        conn.execute(fix.encode())
        conn.execute("ALTER PUBLICATION pipeline_outbox SET (publish = 'update, delete')")
        conn.execute("ALTER TABLE pipeline.outbox REPLICA IDENTITY NOTHING")
        fixes = problems(pipeline, file)
        assert fixes.keys() == {"publication pipeline_outbox", check}
        conn.execute(fixes["publication pipeline_outbox"].encode())
        conn.execute("DROP PUBLICATION pipeline_outbox")
        conn.execute(problems(pipeline, file)["publication pipeline_outbox"].encode())

        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (prefix,))
        assert "slot.name" in problems(pipeline, file)[f"slot {prefix}"]
        conn.execute("SELECT pg_drop_replication_slot(%s)", (prefix,))
        assert problems(pipeline, file) == {}

        conn.execute(f"CREATE ROLE {prefix} LOGIN PASSWORD 'p'")  # the name is ours
        try:
            poor = connector_file(
                tmp_path,
                prefix,
                **{"database.dbname": database.name, "database.user": prefix, "database.password": "p"},
            )
            assert problems(pipeline, poor, "--provider", "rds")["replication"] == f"GRANT rds_replication TO {prefix};"
            conn.execute(f"GRANT USAGE ON SCHEMA pipeline TO {prefix}")
            for fix in problems(pipeline, poor).values():
                conn.execute(fix.encode())
            assert problems(pipeline, poor) == {}
        finally:
            conn.execute(f"DROP OWNED BY {prefix}")
            conn.execute(f"DROP ROLE {prefix}")


def test_servers_that_are_away_are_findings(
    pipeline: CommandLine, tmp_path: Path, prefix: str, database: Database
) -> None:
    file = connector_file(tmp_path, prefix, **{"database.dbname": "nowhere_at_all"})
    found = pipeline(
        "doctor", str(file), "-o", "json",
        PIPELINE_REGISTRY__URL="http://127.0.0.1:9", PIPELINE_CONNECT__URL="http://127.0.0.1:9",
    )  # fmt: skip
    told = {one["area"]: one["found"] for one in json.loads(found.stdout) if one["level"] == "problem"}
    assert (found.code, told.keys()) == (2, {"postgres", "registry", "connect"})
    assert conninfo.conninfo_to_dict(database.dsn)["password"] not in found.stdout + found.stderr


def test_an_expression_that_cannot_be_is_a_finding_beside_the_others(
    pipeline: CommandLine, tmp_path: Path, prefix: str, database: Database
) -> None:
    changes = {"database.dbname": database.name, "transforms.outbox.route.topic.regex": "(?<routedByValue>.*"}
    found = pipeline("doctor", str(connector_file(tmp_path, prefix, **changes)), "-o", "json")
    told = {one["check"]: one for one in json.loads(found.stdout)}
    assert (found.code, told["broker"]["level"]) == (2, "ok")
    assert "route.topic.regex" in told["topics of the file"]["found"]
