"""What most integration tests ask for: the command line, the broker, a connection. A module's own goes before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import CommandLine, runner
from jobbing import Desk, OpenDesk
from pair import Pair, pair
from servers import Database, Topics
from working import Broker

from pipeline import Pipeline
from pipeline.postgres.migrations import migrate


@pytest.fixture
def pipeline(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cli_environment: dict[str, str],
    tmp_path: Path,
) -> CommandLine:
    """The command line, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch, cli_environment)


@pytest.fixture
def broker(bootstrap_servers: str) -> Broker:
    """The shared broker, as a test looks at it."""
    return Broker(bootstrap_servers)


@pytest.fixture
def open_desk(database: Database, broker: Broker) -> Iterator[OpenDesk]:
    """Give the desk of an application, once its handlers are declared."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(closing(Desk(app, database, broker)))


@pytest.fixture
def desk(app: Pipeline, open_desk: OpenDesk) -> Desk:
    """The desk of the module's own ``app``."""
    return open_desk(app)


@pytest.fixture
def topic(prefix: str, topics: Topics) -> str:
    """A topic for a relay to publish to."""
    topics.create(f"{prefix}.events", partitions=3)
    return f"{prefix}.events"


@pytest.fixture
def servers() -> Iterator[Pair]:
    """A primary and its standby, of the test's own, with the newest schema ``pipeline``."""
    with tempfile.TemporaryDirectory(prefix="pipeline-pair-") as folder:
        Path(folder).chmod(0o711)  # as root: PostgreSQL's user has to pass
        with pair(Path(folder)) as both:
            with psycopg.connect(both.primary.dsn(), autocommit=True) as conn:
                migrate(conn)
            yield both


@pytest.fixture
def conn(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the test's database, in autocommit mode."""
    with psycopg.connect(database.dsn, autocommit=True) as opened:
        yield opened
