"""Where reading goes on after the connection was lost, told by a server made of lists.

What was handed out and not acknowledged is dropped when another relay is active, and comes again when it is not.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.postgres import wal
from pipeline.postgres.position import Position
from pipeline.postgres.slot import Identity, Slot
from pipeline.postgres.wal import WalSettings, WalSource


class Server:
    """What a test says of the server, and what it was asked."""

    def __init__(self) -> None:
        self.timeline = 1
        self.active = False
        self.slot_confirmed = 100
        self.stored: Position | None = Position("1", 1, 100)
        self.started: list[int] = []
        self.confirmed: list[int] = []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    class Connection:
        def __init__(self, *_args: Any, **_options: Any) -> None:
            pass

        def identify(self) -> Identity:
            return Identity("1", made.timeline, 10_000, 180000)

        def slot(self, name: str) -> Slot:
            return Slot(name, made.active, made.slot_confirmed, "reserved", 0, "pgoutput", "d")

        def rows(self, sql: str) -> list[tuple[str, ...]]:
            if "wal_sender_timeout" in sql:
                return [("60000",)]
            return (
                [("d",)] if "current_database" in sql else [("s", "t")] if "pg_publication_tables" in sql else [("1",)]
            )

        def start(self, _name: str, _publication: str, after: int, _options: Any) -> None:
            made.started.append(after)

        def confirm(self, lsn: int, *, ask: bool = False) -> None:
            made.confirmed.append(lsn)

        def close(self) -> None:
            pass

    class Store:
        def __init__(self, *_args: Any) -> None:
            pass

        def load(self) -> Position | None:
            return made.stored

        def begin(self, position: Position) -> None:
            made.stored = position

        def done(self) -> bool:
            return True

        def close(self) -> None:
            pass

    monkeypatch.setattr(wal, "ReplicationConnection", Connection)
    monkeypatch.setattr(wal, "PositionStore", Store)
    return made


def reading() -> WalSource:
    return WalSource("", WalSettings("s", "p", lambda _schema, _table: True, "t"), lambda _relation: None)


def test_a_lost_connection_goes_on_behind_what_was_handed_out(server: Server) -> None:
    source = reading()
    assert source.start()
    source._handed_out = 400
    assert source.start()
    assert server.started == [100, 400]


def test_what_was_dropped_while_standing_by_comes_again(server: Server) -> None:
    source = reading()
    assert source.start()
    source._handed_out = 400
    server.active = True  # its own walsender, half open, or another relay
    assert not source.start()
    server.active = False
    assert source.start()
    assert server.started == [100, 100]


def test_a_position_of_another_timeline_confirms_nothing_on_the_promoted_server(server: Server) -> None:
    server.stored = Position("1", 1, 500)
    server.timeline = 2
    server.slot_confirmed = 200
    source = reading()
    assert source.start()
    source.confirm(0)
    assert server.started == [200]
    assert max(server.confirmed, default=0) <= 200


def test_a_server_that_was_promoted_under_way_begins_anew_with_nothing_in_flight(server: Server) -> None:
    source = reading()
    assert source.start()
    source._handed_out = 400
    server.stored = Position("1", 1, 300)
    server.timeline = 2
    server.slot_confirmed = 200
    assert not source.start(), "the relay has to drop what is of the other WAL"
    assert source.start()
    source.confirm(0)
    assert server.started == [100, 200]
    assert max(server.confirmed, default=0) <= 200
