"""pytest fixtures for an application's tests.

In the root conftest.py: ``pytest_plugins = ["pipeline.testing.plugin"]``. Define a fixture
``pipeline_app`` that returns your Pipeline; the others are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.app import Pipeline
from pipeline.testing.connection import AsyncFakeConnection, FakeConnection
from pipeline.testing.harness import Harness
from pipeline.writers import Connection

__all__ = ["afake_connection", "fake_connection", "harness", "pipeline_app", "run_enqueued"]


@pytest.fixture
def pipeline_app() -> Pipeline:
    """Your application: override this fixture."""
    raise pytest.UsageError("define a fixture pipeline_app that returns your Pipeline")


@pytest.fixture
def harness(pipeline_app: Pipeline) -> Iterator[Harness]:
    """A broker in memory with the application's workers."""
    made = Harness(pipeline_app)
    yield made
    made.close()


@pytest.fixture
def fake_connection(harness: Harness) -> FakeConnection:
    """A connection without a database; what is committed on it arrives at the harness."""
    return harness.connection()


@pytest.fixture
def afake_connection(harness: Harness) -> AsyncFakeConnection:
    """The same for ``await app.apublish(conn, …)``."""
    return harness.aconnection()


@pytest.fixture
def run_enqueued(harness: Harness) -> Callable[[Connection], Harness]:
    """``run_enqueued(conn)``: handle what the connection's open transaction has published and enqueued so far."""

    def run(conn: Connection) -> Harness:
        harness.take(conn)
        harness.run_until_idle()
        return harness

    return run
