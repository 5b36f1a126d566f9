"""A target that was half read and is gone on with, by a source that had handed out more of it than was stored."""

from __future__ import annotations

from typing import Any

import psycopg
from relays import POLLING_INDEX
from servers import Database

from pipeline.capture import Routed
from pipeline.postgres.polling import PollingSource, PollSettings


def test_none_is_left_out_where_more_was_handed_out_than_is_stored(prefix: str, database: Database) -> None:
    def route(seq: bytes | None) -> Routed:
        return ("t", seq, b"", [], 1, -1)

    settings = PollSettings(
        prefix, lambda schema, table: (schema, table) == ("pipeline", "outbox"), "outbox", "payload"
    )
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(POLLING_INDEX)
        source = PollingSource(database.dsn, settings, lambda _relation: (["seq"], route))
        assert source.start()
        conn.execute(
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, topic, payload)"
            " SELECT gen_random_uuid(), 'a', 'k', 't', 't', '' FROM generate_series(1, 5000)"
        )
        seen: list[Any] = []

        def read() -> Any:
            batch = source.read(5.0)
            seen.extend(record[1] for record in batch.records)
            return batch

        while not seen:
            read()
        second = read()
        read()
        assert len(seen) == 3000
        source.confirm(second.position, final=True)
        # the answer to a store was lost with the connection: what is stored is not what this source knows of
        source._stored = None
        assert source.start() is False
        assert source.start() is True
        del seen[2000:]  # not acknowledged, and dropped by the relay
        while len(seen) < 5000 and read().records:
            pass
        assert len(seen) == 5000
        source.close()
