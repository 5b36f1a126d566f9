"""``snapshot.mode``: what Debezium 3.7 and the native relay publish of rows that are there already."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
from figures import Figure
from pairs import SIDES, Capture, Conn, content, published, slots_read
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
            side, prefix + re.sub("[_ ]|^", "-", mode), tmp_path, connect_url, cli_environment, database.name, changes
        )
        for mode, (changes, _, _, _) in MODES.items()
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
            wait(key, pairs)

        def wait(key: str, some: Iterable[tuple[str, str]]) -> None:
            def see(mode: str, side: str) -> None:
                _, _, before, behind = MODES[mode]
                last = rows[(before + behind if key > "b" else before)[-1]][-1]
                until(lambda: pairs[mode, side].has(bootstrap_servers, last), f"{mode}, {side}: {key}")

            list(pool.map(lambda pair: see(*pair), some))

        resting = [pair for pair in pairs if "b" not in MODES[pair[0]][2]]
        streaming = len(pairs) - len(resting)
        until(lambda: slots_read(conn, pairs.values()) == streaming, "all slots are read", 90)
        published("b")
        list(pool.map(Capture.stop, pairs.values()))
        rows["c"] = [insert(conn, "events", "k")]
        for (mode, _), pair in pairs.items():
            if MODES[mode][1]:
                conn.execute("SELECT pg_drop_replication_slot(%s)", (pair.slot,))
        list(pool.map(Capture.start, pairs.values()))
        until(lambda: slots_read(conn, pairs.values()) == streaming, "all slots are read again", 90)
        wait("c", resting)
        published("d")
        for mode, (_, _, before, behind) in MODES.items():
            found = {side: pairs[mode, side].records(bootstrap_servers) for side in SIDES}
            first = {side: list(dict.fromkeys(ids(messages))) for side, messages in found.items()}
            assert first["native"] == [row for key in before + behind for row in rows[key]], mode
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


OVERRIDES = "snapshot.select.statement.overrides"
READ: dict[str, str | None] = {
    "snapshot.mode": "initial", "table.include.list": "pipeline\\.outbox,public\\.(second|third)",
    "publication.name": "read", "snapshot.include.collection.list": "pipeline\\.outbox,public\\.second",
    OVERRIDES: "pipeline.outbox",
    f"{OVERRIDES}.pipeline.outbox": "SELECT * FROM pipeline.outbox WHERE aggregateid = current_setting('parity.key')",
    "database.initial.statements": "SET parity.key = 'in;;side';SET parity.other = 'x'",
    "snapshot.delay.ms": "4000", "snapshot.query.mode": "select_all", "snapshot.lock.timeout.ms": "60000",
    "snapshot.locking.mode": "shared",
}  # fmt: skip
MADE = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY(%s) AND confirmed_flush_lsn IS NOT NULL"
MOVED = (
    "WITH moved AS (DELETE FROM pipeline.outbox WHERE id = %s RETURNING *)"
    " INSERT INTO public.{} OVERRIDING SYSTEM VALUE SELECT * FROM moved"
)


def test_both_read_what_a_snapshot_is_told_to(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, conn: Conn,
    cli_environment: Mapping[str, str], topics: Topics, bootstrap_servers: str,
) -> None:  # fmt: skip
    """A delay, tables, an own SELECT with what statements have set; a row that is written meanwhile."""
    rows = [insert(conn, "events", key) for key in ("in;side", "outside", "in;side", "second", "third")]
    for number, table in ((3, "second"), (4, "third")):
        conn.execute(f"CREATE TABLE public.{table} (LIKE pipeline.outbox INCLUDING ALL)")
        conn.execute(MOVED.format(table), (rows[number],))
    conn.execute("CREATE PUBLICATION read FOR TABLE pipeline.outbox, public.second, public.third")
    pair = {side: Capture(side, prefix, tmp_path, connect_url, cli_environment, database.name, READ) for side in SIDES}
    topics.create(*(one.topic for one in pair.values()))
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        stack.callback(lambda: list(pool.map(Capture.end, pair.values())))
        began = time.monotonic()
        list(pool.map(Capture.start, pair.values()))
        slots = [one.slot for one in pair.values()]
        until(lambda: conn.execute(MADE, (slots,)).fetchone() == (2,), "both slots are made")
        rows.append(insert(conn, "events", "meanwhile"))  # which the SELECT would leave out: it comes by the stream
        found = published(bootstrap_servers, pair, rows[5])
        assert time.monotonic() - began > 4, "the delay"
    assert ids(found["native"]) == [rows[number] for number in (0, 2, 3, 5)]
    assert sorted(map(str, content(found["debezium"]))) == sorted(map(str, content(found["native"])))
