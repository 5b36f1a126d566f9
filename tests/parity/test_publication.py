"""``publication.autocreate.mode``: the publication that Debezium 3.7 makes and the one that the native relay makes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from captures import _rest
from psycopg import sql
from relays import CONNECTOR, RelayProcess, connector_file, read_topic, until
from servers import Database, Topics

Conn = psycopg.Connection[tuple[object, ...]]
SIDES = ("debezium", "native")
STATE = """
SELECT p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
       array(SELECT r.prrelid::regclass::text FROM pg_publication_rel r WHERE r.prpubid = p.oid ORDER BY 1)
FROM pg_publication p WHERE p.pubname = %s
"""
# case → publication.autocreate.mode, publish.via.partition.root, the publication that is there before
CASES = {
    "filtered": ("filtered", "false", ""),
    "filtered_root": ("filtered", "true", ""),
    "filtered_there": ("filtered", "false", "CREATE PUBLICATION {} FOR TABLE public.aside"),
    "all_tables": ("all_tables", "false", ""),
    "all_tables_there": ("all_tables", "false", "CREATE PUBLICATION {} FOR TABLE public.pub_a"),
    "no_tables": ("no_tables", "false", ""),
}


@pytest.fixture
def conn(database: Database) -> Iterator[Conn]:
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for table in ("pub_a", '"pub_B c"', "aside"):
            conn.execute(f"CREATE TABLE public.{table} (LIKE pipeline.outbox INCLUDING ALL)")
        yield conn


def file_of(folder: Path, name: str, database: Database, mode: str, root: str) -> Path:
    changes = {
        "database.dbname": database.name, "topic.prefix": name, "publication.name": name.replace("-", "_"),
        "table.include.list": "public\\.pub_.*", "publication.autocreate.mode": mode,
        "publish.via.partition.root": root,
    }  # fmt: skip
    return connector_file(folder, name, **changes)


def test_both_make_the_same_publication(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str], conn: Conn
) -> None:
    names = {(case, side): f"{prefix}-{case.replace('_', '-')}-{side}" for case in CASES for side in SIDES}
    with ExitStack() as stack:
        for (case, side), name in names.items():
            mode, root, before = CASES[case]
            publication = name.replace("-", "_")
            if before:
                conn.execute(sql.SQL(before).format(sql.Identifier(publication)))
            file = file_of(tmp_path, name, database, mode, root)
            if side == "native":
                stack.enter_context(RelayProcess(file, cli_environment))
            else:
                stack.callback(_rest, connect_url, "DELETE", f"/connectors/{name}")
                _rest(connect_url, "PUT", f"/connectors/{name}/config", json.loads(file.read_text())["config"])
        slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE %s"
        wanted = (len(names) - 1,)  # made behind the publication; the native relay wants a table in it
        until(lambda: conn.execute(slots, (f"{prefix}%",)).fetchone() == wanted, "slots", 60)

        def state(case: str, side: str) -> tuple[object, ...] | None:
            return conn.execute(STATE, (names[case, side].replace("-", "_"),)).fetchone()

        until(lambda: state("no_tables", "native"), "the publication without tables")
        for case in CASES:
            assert state(case, "native") == state(case, "debezium") is not None
        for case in ("filtered", "filtered_there"):
            assert (state(case, "native") or ())[-1] == ['"pub_B c"', "pub_a"]


def test_our_file_of_a_json_outbox_runs_on_the_native_relay(
    tmp_path: Path, prefix: str, database: Database, cli_environment: Mapping[str, str], conn: Conn,
    bootstrap_servers: str, topics: Topics,
) -> None:  # fmt: skip
    config = json.loads((CONNECTOR.parent / "outbox-json.json").read_text())["config"]
    topics.create(topic := f"{prefix}.order")
    config["transforms.outbox.route.topic.replacement"] = prefix + ".${routedByValue}"
    config |= {"slot.name": prefix, "publication.name": prefix}
    file = tmp_path / f"{prefix}.json"
    file.write_text(json.dumps({"name": prefix, "config": config}))
    conn.execute(
        "CREATE TABLE public.outbox (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text,"
        " payload jsonb)"
    )
    with RelayProcess(file, cli_environment) as relay:
        relay.reading()
        row = "INSERT INTO public.outbox VALUES (gen_random_uuid(), 'order', 'k', 'OrderPlaced', '{\"total\": 7}')"
        conn.execute(row)
        (record,) = until(lambda: read_topic(bootstrap_servers, topic), "the row")
        assert relay.stop() == 0
    assert (record.key(), record.value()) == (b"k", b'{"total":7}')


def test_what_stands_in_the_way_of_a_publication_is_told_with_its_remedy(
    tmp_path: Path, prefix: str, database: Database, cli_environment: Mapping[str, str], conn: Conn
) -> None:
    role, publication = f"{prefix}_role", f"{prefix}_every"
    conn.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'")
    conn.execute(f"CREATE PUBLICATION {publication} FOR ALL TABLES")
    login = {"database.user": role, "database.password": "x", "database.dbname": database.name}
    tries: dict[str, tuple[dict[str, str], str]] = {
        "plain": ({**login, "publication.autocreate.mode": "filtered"}, "own the tables"),
        "super": ({**login, "publication.autocreate.mode": "all_tables"}, "be a superuser"),
        "every": ({"publication.name": publication, "publication.autocreate.mode": "filtered"}, "is for all tables"),
        "none": ({"publication.autocreate.mode": "filtered", "table.include.list": "public.gone"}, "there is no table"),
        "empty": ({"publication.autocreate.mode": "no_tables"}, "ADD TABLE"),
    }
    try:
        with ExitStack() as stack:
            relays = {}
            for name, (changes, _) in tries.items():
                base = {"publication.name": f"{prefix}_{name}", "table.include.list": "public.pub_a"}
                file = connector_file(tmp_path, f"{prefix}-{name}", **base | changes)
                relays[name] = stack.enter_context(RelayProcess(file, cli_environment))
            for name, (_, told) in tries.items():
                assert relays[name].process.wait(60) == 1
                assert told in relays[name].log
        made = conn.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE %s", (f"{prefix}%",))
        assert made.fetchone() == (0,)  # none of them made a slot
    finally:
        conn.execute(f"DROP ROLE {role}")
