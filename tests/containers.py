"""The servers of docker-compose.yml in; the same in containers of one test run, on ports of their own, out.

Needs Docker with its compose plugin. Several test processes share one set: the caller lets one after the other in.
"""

from __future__ import annotations

import secrets
import shutil
import time
import urllib.request
from pathlib import Path
from subprocess import CalledProcessError

from pipeline.local import Endpoints
from pipeline.local.ports import free_port

__all__ = ["Containers", "NoContainers"]

ROOT = Path(__file__).parents[1]
SERVERS = ["postgres", "kafka", "registry"]
READY_S = 120.0


class NoContainers(Exception):
    """Docker is not there, or a container does not come up."""


class Containers:
    """The containers of one run. What they were started with stands in ``folder``."""

    def __init__(self, folder: Path) -> None:
        if not any(map(shutil.which, ("docker", "podman"))):
            raise NoContainers("--servers=containers needs Docker with its compose plugin: use --servers=local instead")
        from testcontainers.compose import DockerCompose  # a second to import, which other runs need not spend

        self._settings = folder / "compose.env"
        self._compose = DockerCompose(ROOT, "docker-compose.yml", env_file=str(self._settings), services=SERVERS)

    def up(self, ready_s: float = READY_S) -> Endpoints:
        """Start what does not run yet, and wait until all of it answers. Raises NoContainers."""
        if not self._settings.exists():
            ports: list[int] = []
            for _ in SERVERS:
                ports.append(free_port(ports))
            postgres, kafka, registry = ports
            self._settings.write_text(
                f"COMPOSE_PROJECT_NAME=pipeline-{secrets.token_hex(4)}\nPOSTGRES_PASSWORD={secrets.token_hex(12)}\n"
                f"POSTGRES_PORT={postgres}\nKAFKA_PORT={kafka}\nREGISTRY_PORT={registry}\n"
            )
            try:
                self._compose.start()
            except CalledProcessError as error:
                raise NoContainers(f"docker compose up: {error.stderr.decode(errors='replace')[-2000:]}") from None
        found = self.endpoints()
        _wait_for(f"{found.registry}/subjects", ready_s)
        return found

    def endpoints(self) -> Endpoints:
        """Return where they are."""
        has = dict(line.split("=", 1) for line in self._settings.read_text().splitlines())
        return Endpoints(
            postgres_dsn=f"postgresql://app:{has['POSTGRES_PASSWORD']}@127.0.0.1:{has['POSTGRES_PORT']}/app",
            kafka=f"127.0.0.1:{has['KAFKA_PORT']}",
            registry=f"http://127.0.0.1:{has['REGISTRY_PORT']}/apis/ccompat/v7",
            registry_username=None,
            registry_password=None,
            connect=None,
        )

    def down(self) -> None:
        """Remove them with all their data; nothing where none was started."""
        if self._settings.exists():
            self._compose.services = None  # all, and their network
            self._compose.stop()


def _wait_for(url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise NoContainers(f"{url} does not answer: {error}") from error
            time.sleep(0.2)
        else:
            return
