"""An application's handlers in, tests of them out: without servers, in milliseconds, by the code of production.

``Harness`` runs the workers on a broker in memory. ``assert_published`` and ``assert_enqueued`` look into the open
transaction of a real connection, or of a ``FakeConnection``. ``pipeline.testing.plugin`` has pytest fixtures.
"""

from pipeline.testing.assertions import (
    aassert_enqueued,
    aassert_published,
    assert_enqueued,
    assert_nothing_enqueued,
    assert_nothing_published,
    assert_published,
    store_schemas,
)
from pipeline.testing.broker import Broker
from pipeline.testing.clock import Clock
from pipeline.testing.connection import AsyncFakeConnection, FakeConnection
from pipeline.testing.faults import Faults
from pipeline.testing.harness import Harness, NotIdle
from pipeline.testing.seen import Dead, Handled, Retry

__all__ = [
    "AsyncFakeConnection",
    "Broker",
    "Clock",
    "Dead",
    "FakeConnection",
    "Faults",
    "Handled",
    "Harness",
    "NotIdle",
    "Retry",
    "aassert_enqueued",
    "aassert_published",
    "assert_enqueued",
    "assert_nothing_enqueued",
    "assert_nothing_published",
    "assert_published",
    "store_schemas",
]
