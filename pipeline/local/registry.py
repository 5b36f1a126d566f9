"""The pinned archive in, Apicurio Registry with its storage in the local PostgreSQL out.

Clients use ``/apis/ccompat/v7`` (Confluent's API) with user and password; without them everything is refused.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import ClassVar

from pipeline.local.java import JavaServer, java_command
from pipeline.local.ports import LOOPBACK
from pipeline.local.postgres import SUPERUSER
from pipeline.local.process import Launch
from pipeline.local.server import NotReady, inherited_environment

__all__ = ["NATIVE_API", "USERNAME", "Registry"]

HEAP_BYTES = 256 * 2**20
PROBE_S = 3.0
API = "/apis/ccompat/v7"
NATIVE_API = "/apis/registry/v2"  # as Apicurio's own converter speaks it
USERNAME = "pipeline"
DATABASE = "registry"
SETTINGS = """\
quarkus.http.host={host}
quarkus.http.port={port}
quarkus.management.host={host}
quarkus.management.port={management}
quarkus.http.access-log.enabled=false
quarkus.log.level=WARN
quarkus.log.category."io.apicurio".level=WARN
apicurio.storage.kind=sql
apicurio.storage.sql.kind=postgresql
apicurio.datasource.url=jdbc:postgresql://{host}:{postgres}/{database}
apicurio.datasource.username={superuser}
apicurio.datasource.password={postgres_password}
apicurio.datasource.jdbc.initial-size=2
apicurio.datasource.jdbc.min-size=2
apicurio.datasource.jdbc.max-size=10
# Else the first requests after a restart of PostgreSQL fail.
quarkus.datasource.postgresql.jdbc.validate-on-borrow=true
quarkus.http.auth.basic=true
quarkus.security.users.embedded.plain-text=true
quarkus.security.users.embedded.users.{username}={password}
quarkus.http.auth.permission.all.paths=/*
quarkus.http.auth.permission.all.policy=authenticated
"""


class Registry(JavaServer):
    """The schema registry. Ready when it lists its subjects."""

    name: ClassVar[str] = "registry"
    port_names: ClassVar[tuple[str, ...]] = ("registry", "registry_management")

    def address(self) -> str:
        """Return the URL for Confluent's client."""
        return f"http://{LOOPBACK}:{self.home.port('registry')}{API}"

    def prepare(self) -> Launch:
        """Unpack the program once for all folders, and write the settings where Quarkus looks for them."""
        program = self._unpacked()
        config = self.folder / "config" / "application.properties"
        config.parent.mkdir(exist_ok=True)
        text = SETTINGS.format(
            host=LOOPBACK,
            port=self.home.port("registry"),
            management=self.home.port("registry_management"),
            postgres=self.home.port("postgres"),
            database=DATABASE,
            superuser=SUPERUSER,
            postgres_password=self.home.password("postgres"),
            username=USERNAME,
            password=self.home.password("registry"),
        )
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        command = java_command(self.folder, ["-jar", str(program / "quarkus-run.jar")], heap_bytes=HEAP_BYTES)
        return Launch(command, inherited_environment(), self.folder)

    def probe(self) -> None:
        """List the subjects."""
        token = base64.b64encode(f"{USERNAME}:{self.home.password('registry')}".encode()).decode()
        connection = http.client.HTTPConnection(LOOPBACK, self.home.port("registry"), timeout=PROBE_S)
        try:
            connection.request("GET", f"{API}/subjects", headers={"Authorization": f"Basic {token}"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"no answer from {self.address()}") from error
        finally:
            connection.close()
        if status != http.client.OK:
            raise NotReady(f"{self.address()}/subjects answered {status}")

    def needs_archive(self) -> bool:
        """Whether the archive must be there because it is not unpacked yet."""
        return not self._program().exists()

    def _program(self) -> Path:
        (archive,) = self._jars.jars("registry")
        return self._jars.repository.parent / "outbox-pipeline" / archive.name.removesuffix(".tar.gz")

    def _unpacked(self) -> Path:
        program = self._program()
        if program.exists():
            return program
        (archive,) = self._jars.jars("registry")
        self.progress.say(f"unpacking {archive.name}")
        program.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=program.parent, prefix="unpacking-"))
        try:
            with tarfile.open(archive) as tar:
                # As filter="data", but also on Python 3.11.0 to 3.11.3, which know no filters.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(place)  # noqa: S202  # the archive's checksum was verified
            try:
                place.rename(program)
            except OSError:
                if not program.exists():  # else another command was faster
                    raise
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return program
