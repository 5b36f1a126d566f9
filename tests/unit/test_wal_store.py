"""A position that is never stored, as on a connection that a firewall forgot."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.postgres.slot import Identity
from pipeline.postgres.wal import WalSettings, WalSource


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.5  # so that waiting for ever ends
        return self.now


class Silent:
    """A stream that works, and a store whose write gets no answer."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def confirm(self, lsn: int, *, ask: bool = False) -> None:
        self.told.append(lsn)

    def end(self) -> None:
        pass

    def begin(self, position: Any) -> None:
        pass

    def done(self) -> bool:
        return False

    def close(self) -> None:
        pass


def source(silent: Silent) -> WalSource:
    settings = WalSettings("s", "p", lambda _schema, _table: True, "t", liveness_s=30)
    made = WalSource("", settings, lambda _relation: None, clock=Clock())
    made._conn = made._store = silent  # type: ignore[assignment]
    made._server = Identity("1", 1, 0, 180000)
    return made


def test_a_position_that_is_not_stored_for_long_is_a_lost_connection() -> None:
    silent = Silent()
    reading = source(silent)

    def confirm_for_ever() -> None:
        for _ in range(200):
            reading.confirm(77)

    with pytest.raises(SourceError, match="not stored within 30 s") as raised:
        confirm_for_ever()
    assert raised.value.retryable
    assert 77 not in silent.told


def test_the_end_does_not_wait_for_ever_for_a_position_to_be_stored() -> None:
    reading = source(Silent())
    with pytest.raises(SourceError, match="not stored within 30 s"):
        reading.confirm(77, final=True)
