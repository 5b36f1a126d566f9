"""A database's connection, and one file on both sides: Debezium and the native relay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from pairs import SIDES, Capture, Conn, Start, go_on
from servers import Database, Topics


@pytest.fixture
def conn(database: Database) -> Iterator[Conn]:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def start(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str],
    topics: Topics, conn: Conn,
) -> Iterator[Start]:  # fmt: skip
    """Start a file with these changes on both sides, and wait until both read their slots.

    ``name``: of one more pair; ``more``: environment of the native relay.
    """
    with ExitStack() as stack:

        def begin(name: str = "", more: Mapping[str, str] = {}, **changes: str | None) -> dict[str, Capture]:
            environment = {**cli_environment, **more}
            made = {
                side: Capture(side, prefix + name, tmp_path, connect_url, environment, database.name, changes)
                for side in SIDES
            }
            topics.create(*(one.topic for one in made.values()))
            for one in made.values():
                stack.callback(one.end)
            go_on(conn, made)
            return made

        yield begin
