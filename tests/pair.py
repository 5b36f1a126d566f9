"""A folder in, a primary and a standby of it out, with the server binaries of the local stack.

Replication is synchronous, so that what a writer was told is committed is on both. Slots made with ``failover`` are
copied to the standby, and nothing is decoded on the primary that the standby has not.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo
from relays import until

from pipeline.local import postgres
from pipeline.local.account import server_account
from pipeline.local.home import Home
from pipeline.local.postgres import BINARIES, DATABASE, SUPERUSER, Postgres
from pipeline.local.progress import silent
from pipeline.local.server import inherited_environment

__all__ = ["Pair", "pair"]

_STANDBY = "standby"  # its name, and that of its physical slot
_PRIMARY_SETTINGS = {"synchronized_standby_slots": _STANDBY, "synchronous_standby_names": _STANDBY}
_STANDBY_SETTINGS = """
sync_replication_slots = on
hot_standby_feedback = on
synchronized_standby_slots = ''
synchronous_standby_names = ''
"""


class Pair:
    """Both servers. ``dsn`` names both and is that of whichever is the primary."""

    def __init__(self, folder: Path) -> None:
        self.primary = _server(folder / "primary")
        self.standby = _server(folder / "standby", self.primary)
        hosts, ports = zip(*(one.address().split(":") for one in (self.primary, self.standby)), strict=True)
        self.dsn = make_conninfo(
            host=",".join(hosts), port=",".join(ports), user=SUPERUSER, dbname=DATABASE,
            password=self.primary.home.password("postgres"), target_session_attrs="primary",
        )  # fmt: skip

    def start(self) -> None:
        """Start the primary, copy it, and start the copy as its standby."""
        self.primary.start(threading.Event())
        with psycopg.connect(self.primary.dsn(), autocommit=True) as conn:
            conn.execute("SELECT pg_create_physical_replication_slot(%s)", (_STANDBY,))
        self._copy()
        self.standby.start(threading.Event())
        with psycopg.connect(self.primary.dsn(), autocommit=True) as conn:
            for name, value in _PRIMARY_SETTINGS.items():
                conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            conn.execute("SELECT pg_reload_conf()")
            state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"
            until(lambda: conn.execute(state, (_STANDBY,)).fetchone() == ("sync",), "the standby follows")

    def until_synced(self, slot: str) -> None:
        """Wait until the standby has a copy of a slot that outlives a promotion."""
        with (
            psycopg.connect(self.primary.dsn(), autocommit=True) as primary,
            psycopg.connect(self.standby.dsn(), autocommit=True) as standby,
        ):
            ready = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s"

            def copied() -> bool:
                primary.execute("SELECT pg_log_standby_snapshot()")  # the slot moves on at such a record only
                return standby.execute(ready, (slot,)).fetchone() == (True,)

            until(copied, f"a copy of slot {slot} on the standby", 60)

    def fail_over(self) -> None:
        """Kill the primary, as a machine that loses its power does, and promote the standby."""
        self.primary.process.kill()
        with psycopg.connect(self.standby.dsn(), autocommit=True) as conn:
            assert conn.execute("SELECT pg_promote()").fetchone() == (True,)

    def stop(self) -> None:
        """Stop both, and remove what is outside of the folder."""
        for server in (self.primary, self.standby):
            server.stop()
            server.delete_data()

    def _copy(self) -> None:
        account = server_account()
        self.standby.folder.mkdir(mode=0o700, parents=True)
        data = self.standby._place(account)
        postgres._give(data.parent, account)
        source = make_conninfo(self.primary.dsn(), application_name=_STANDBY)
        binaries = postgres._binaries_for(account)
        assert binaries.parts[-2:] == BINARIES.parts
        command = [str(binaries / "pg_basebackup"), "-D", str(data), "-d", source, "-R", "-S", _STANDBY]
        subprocess.run(
            [*command, "-X", "stream", "-c", "fast", "--no-sync"],
            env=inherited_environment(),
            cwd=data.parent,
            check=True,
            timeout=60,
            **postgres._popen_ids(account),
        )
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(_STANDBY_SETTINGS)


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """Give a pair that runs; end and remove it afterwards."""
    both = Pair(folder)
    try:
        both.start()
        yield both
    finally:
        both.stop()


def _server(data: Path, like: Postgres | None = None) -> Postgres:
    home = Home(data)
    with home.locked(silent):
        home.settle(["postgres"], silent)
        if like is not None:
            memory = home.memory()
            memory["passwords"] = like.home.memory()["passwords"]
            home.remember(memory)
    return Postgres(home, silent)
