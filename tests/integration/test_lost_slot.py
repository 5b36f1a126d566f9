"""A slot that the server gave up, for real: on servers of its own, with a small max_slot_wal_keep_size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
from relays import RelayProcess, connector_file, ids, insert, read_topic, until
from servers import Database, Topics

from pipeline.local import Endpoints


def test_a_slot_that_lost_its_wal_ends_the_relay_which_says_how_to_go_on(
    tmp_path: Path, prefix: str, private_endpoints: Endpoints, private_database: Database,
    private_cli_environment: Mapping[str, str],
) -> None:  # fmt: skip
    bootstrap_servers = private_endpoints.kafka
    Topics(bootstrap_servers).create(topic := f"{prefix}.events")
    file = connector_file(tmp_path, prefix)
    Topics(bootstrap_servers).create(aside := f"{prefix}.aside")
    changes = {"snapshot.mode": "when_needed", "transforms.outbox.route.topic.replacement": aside}
    needed = connector_file(tmp_path, f"{prefix}-needed", **changes)
    with psycopg.connect(private_database.dsn, autocommit=True) as conn:
        with RelayProcess(file, private_cli_environment) as relay:
            relay.reading()
            first = insert(conn, topic, "k")
            until(lambda: ids(read_topic(bootstrap_servers, topic)) == [first], "the first row")
            assert relay.stop() == 0
        with RelayProcess(needed, private_cli_environment) as relay:
            until(lambda: ids(read_topic(bootstrap_servers, aside)) == [first], "the first row by a snapshot")
            assert relay.stop() == 0
        missed = insert(conn, topic, "k")
        conn.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        conn.execute("SELECT pg_reload_conf()")
        state = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"

        def lost() -> bool:
            conn.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000))")
            conn.execute("SELECT pg_switch_wal()")
            conn.execute("CHECKPOINT")
            return all(conn.execute(state, (slot,)).fetchone() == ("lost",) for slot in (prefix, f"{prefix}_needed"))

        until(lost, "the server gives the slot up")
        with RelayProcess(file, private_cli_environment) as relay:
            assert relay.process.wait(60) == 1
        assert f"slot {prefix} is lost" in (relay_said := relay.log)
        assert "max_slot_wal_keep_size" in relay.log
        assert f"pg_drop_replication_slot('{prefix}')" in relay.log
        found = subprocess.run(
            [sys.executable, "-m", "pipeline", "doctor", str(file), "-o", "json"],
            env=private_cli_environment, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        (told,) = [one for one in json.loads(found.stdout) if one["check"] == f"slot {prefix}"]
        assert (found.returncode, told["level"]) == (2, "problem")
        assert told["found"].startswith("was invalidated (")
        assert told["found"].endswith("): its WAL is gone")
        drop, _, then = told["fix"].partition("; then ")
        assert then == f"pipeline connector reconcile {file}"
        conn.execute(drop.encode())
        conn.execute("DELETE FROM pipeline.relay_position WHERE slot = %s", (prefix,))
        with RelayProcess(file, private_cli_environment) as relay:
            relay.reading()
            last = insert(conn, topic, "k")
            until(lambda: last in ids(read_topic(bootstrap_servers, topic)), "a row by the new slot")
            assert ids(read_topic(bootstrap_servers, topic)) == [first, last]
            assert f"pipeline connector reconcile {file} --execute" in " ".join(relay_said.split())
            run = [sys.executable, "-m", "pipeline", "connector", "reconcile", str(file), "--execute"]
            with subprocess.Popen(run, env=private_cli_environment) as reconcile:
                # rows all the time: an idle relay stores its position each minute only
                until(lambda: insert(conn, topic, "later") and reconcile.poll() is not None, "it has compared", 60)
            assert reconcile.returncode == 0
            assert ids(read_topic(bootstrap_servers, topic)).count(missed) == 1
            assert ids(read_topic(bootstrap_servers, topic)).count(first) == 1
            assert relay.stop() == 0
        with RelayProcess(needed, private_cli_environment) as relay:
            until(lambda: missed in ids(read_topic(bootstrap_servers, aside)), "all rows, by a snapshot")
            assert f"slot {prefix}_needed is lost: a snapshot is needed" in relay.log
            newest = insert(conn, topic, "k")
            until(lambda: newest in ids(read_topic(bootstrap_servers, aside)), "a row by its new slot")
            assert relay.stop() == 0
        found = ids(read_topic(bootstrap_servers, aside))
        assert [name for name in found if name in (first, missed, last, newest)] == [first, first, missed, last, newest]
