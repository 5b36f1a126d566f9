"""Connections of the PostgreSQL adapter find out that their server is gone."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from servers import Database

from pipeline.postgres.liveness import ALIVE
from pipeline.postgres.move import _connected
from pipeline.postgres.refused_rows import RefusedRows
from pipeline.postgres.retained import Range, Retained
from pipeline.postgres.statistics import SlotWatch


def test_connections_that_no_statement_limits_ask_whether_the_server_lives(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, dict[str, str]] = {}

    def connect(*words: Any, **parameters: Any) -> psycopg.Connection[Any]:
        conn = psycopg.Connection.connect(*words, **parameters)
        found = conn.info.get_parameters()
        told[found["application_name"]] = {name: found.get(name, "") for name in ALIVE}
        return conn

    monkeypatch.setattr(psycopg, "connect", connect)
    SlotWatch(database.dsn).look()
    Retained(database.dsn, [], [], Range()).close()
    RefusedRows(database.dsn, "c").keep(("t", None, b"v", [("id", "1")], 0, -1), "t")
    with _connected(database.dsn):
        pass
    alive = {name: str(value) for name, value in ALIVE.items()}
    assert told == {
        "pipeline-slots": alive,
        "pipeline-reconcile": alive,
        "pipeline-relay": {**alive, "tcp_user_timeout": "10000"},
        "pipeline-move": alive,
    }
