"""``snapshot.mode``: what Debezium 3.7 and the native relay publish of rows that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
from figures import Figure
from pairs import SIDES, Capture, slots_read
from relays import ids, insert, until
from servers import Database, Topics
from sources import MODES


def test_both_publish_the_same_rows_in_each_mode(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str],
    topics: Topics, bootstrap_servers: str, figure: Figure,
) -> None:  # fmt: skip
    """Rows a are there before; b and d come while it runs; c while it is stopped."""
    pairs = {
        (mode, side): Capture(
            side, f"{prefix}-{mode.replace('_', '-')}", tmp_path, connect_url, cli_environment, database.name, changes
        )
        for mode, (changes, _, _) in MODES.items()
        for side in SIDES
    }
    topics.create(*(pair.topic for pair in pairs.values()))
    with psycopg.connect(database.dsn, autocommit=True) as conn, ExitStack() as stack:
        rows: dict[str, list[str]] = {"a": [insert(conn, "events", f"k{n}", b"x%d" % n) for n in range(5)]}
        conn.execute("UPDATE pipeline.outbox SET created_at = created_at - interval '1 hour', headers = '{\"h\": 1}'")
        pool = stack.enter_context(ThreadPoolExecutor(len(pairs)))
        stack.callback(lambda: list(pool.map(Capture.end, pairs.values())))
        list(pool.map(Capture.start, pairs.values()))

        def published(key: str) -> None:
            rows[key] = [insert(conn, "events", "k")]

            def wait(mode: str, side: str) -> None:
                last = rows[max(one for one in MODES[mode][2] if one <= key)][-1]
                until(lambda: pairs[mode, side].has(bootstrap_servers, last), f"{mode}, {side}: {key}", 90)

            list(pool.map(lambda pair: wait(*pair), pairs))

        streaming = len(pairs) - len(SIDES)
        until(lambda: slots_read(conn, pairs.values()) == streaming, "all slots are read", 90)
        published("b")
        list(pool.map(Capture.stop, pairs.values()))
        rows["c"] = [insert(conn, "events", "k")]
        for (mode, _), pair in pairs.items():
            if MODES[mode][1]:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (pair.slot,))
        list(pool.map(Capture.start, pairs.values()))
        until(lambda: slots_read(conn, pairs.values()) == streaming, "all slots are read again", 90)
        published("d")
        for mode, (_, _, wanted) in MODES.items():
            found = {side: pairs[mode, side].records(bootstrap_servers) for side in SIDES}
            first = {side: list(dict.fromkeys(ids(messages))) for side, messages in found.items()}
            assert first["native"] == [row for key in wanted for row in rows[key]], mode
            assert set(first["debezium"]) == set(first["native"]), mode
            contents = {
                side: {
                    dict(message.headers())["id"]: (  # type: ignore[call-overload]
                        message.key(), message.value(), message.headers(), message.timestamp()
                    )
                    for message in messages
                }
                for side, messages in found.items()
            }  # fmt: skip
            assert contents["native"] == contents["debezium"], mode
            figure(f"{mode}: { ({side: len(messages) for side, messages in found.items()}) } records")
