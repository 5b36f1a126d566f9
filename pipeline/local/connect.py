"""Pinned jars in, Kafka Connect with Debezium's PostgreSQL connector and Apicurio's Avro converter out.

The reference for the native relay, and a way to try the production route. Connector files may use ``${env:…}``
(the environment of ``pipeline up``, libpq's ``PGHOST`` … for the local PostgreSQL, ``REGISTRY_URL``,
``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD`` for the local registry) and ``${file:…}``. OpenTelemetry is there, so
that Debezium's router traces rows that carry a trace; its spans go nowhere.
"""

from __future__ import annotations

import http.client
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pipeline.local.java import LOG4J, JavaServer, java_command
from pipeline.local.ports import LOOPBACK
from pipeline.local.postgres import DATABASE, SUPERUSER
from pipeline.local.process import Launch
from pipeline.local.registry import NATIVE_API, USERNAME
from pipeline.local.server import NotReady, inherited_environment

__all__ = ["Connect"]

HEAP_BYTES = 1024 * 2**20
PROBE_S = 5.0
CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"
CONVERTERS = "META-INF/services/org.apache.kafka.connect.storage.Converter"
TRACING = [
    "-Dotel.java.global-autoconfigure.enabled=true",
    *(f"-Dotel.{signal}.exporter=none" for signal in ("traces", "metrics", "logs")),
]
SETTINGS = """\
bootstrap.servers={kafka}
group.id=pipeline-connect
listeners=http://{host}:{port}
rest.advertised.host.name={host}
rest.advertised.port={port}
plugin.path={plugins}
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.converters.ByteArrayConverter
config.storage.topic=pipeline-connect.configs
config.storage.replication.factor=1
offset.storage.topic=pipeline-connect.offsets
offset.storage.replication.factor=1
offset.storage.partitions=1
offset.flush.interval.ms=2000
status.storage.topic=pipeline-connect.status
status.storage.replication.factor=1
status.storage.partitions=1
scheduled.rebalance.max.delay.ms=0
config.providers=env,file,directory
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
config.providers.directory.class=org.apache.kafka.common.config.provider.DirectoryConfigProvider
"""


class Connect(JavaServer):
    """The Connect worker. Ready when it lists its connectors."""

    name: ClassVar[str] = "connect"
    port_names: ClassVar[tuple[str, ...]] = ("connect",)

    def address(self) -> str:
        """Return the URL of the REST API."""
        return f"http://{LOOPBACK}:{self.home.port('connect')}"

    def prepare(self) -> Launch:
        """Fill the plugin folders, and write the settings."""
        self._plugin("debezium-postgres", self._jars.jars("debezium"))
        converter = self._plugin("apicurio-avro", self._jars.jars("converter"))
        with zipfile.ZipFile(converter / "services.jar", "w") as services:  # it does not name itself
            services.writestr(CONVERTERS, f"{CONVERTER}\n")
        log4j = self.folder / "log4j2.properties"
        log4j.write_text(LOG4J)
        settings = self.folder / "connect.properties"
        text = SETTINGS.format(
            kafka=f"{LOOPBACK}:{self.home.port('kafka')}",
            host=LOOPBACK,
            port=self.home.port("connect"),
            plugins=converter.parent,
        )
        settings.write_text(text)
        command = java_command(
            self.folder,
            [
                *TRACING,
                f"-Dlog4j2.configurationFile={log4j}",
                "org.apache.kafka.connect.cli.ConnectDistributed",
                str(settings),
            ],
            heap_bytes=HEAP_BYTES,
            jars=self._jars.jars("kafka"),
        )
        environment = inherited_environment() | {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.home.port("postgres")),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self.home.password("postgres"),
            "PGDATABASE": DATABASE,
            "REGISTRY_URL": f"http://{LOOPBACK}:{self.home.port('registry')}{NATIVE_API}",
            "REGISTRY_USERNAME": USERNAME,
            "REGISTRY_PASSWORD": self.home.password("registry"),
        }
        return Launch(command, environment, self.folder)

    def _plugin(self, name: str, jars: Sequence[Path]) -> Path:
        """Fill a plugin's folder, which has a class loader of its own."""
        folder = self.folder / "plugins" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for jar in jars:
            (folder / jar.name).symlink_to(jar)
        return folder

    def probe(self) -> None:
        """List the connectors."""
        connection = http.client.HTTPConnection(LOOPBACK, self.home.port("connect"), timeout=PROBE_S)
        try:
            connection.request("GET", "/connectors")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"no answer from {self.address()}") from error
        finally:
            connection.close()
        if response.status != http.client.OK or not isinstance(json.loads(body), list):
            raise NotReady(f"{self.address()}/connectors answered {response.status}")
