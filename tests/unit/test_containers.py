"""``--servers=containers``: what it does without Docker, and what it asks Docker for (which need not be there)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from containers import ROOT, Containers, NoContainers


def test_without_docker_a_test_that_needs_a_server_fails_and_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--servers=containers"]
    command += ["tests/integration/test_frameworks.py", "-k", "alembics_autogenerate", "-x"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "needs Docker with its compose plugin: use --servers=local" in run.stdout


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called docker that writes down what it is told, and fails when it is told to fail."""
    log = tmp_path / "asked"
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *"$FAIL"*) echo "no space left" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FAIL", "nothing")
    return log


def test_what_docker_says_is_told(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("FAIL", "up")
    containers = Containers(tmp_path)
    with pytest.raises(NoContainers, match="no space left"):
        containers.up()
    containers.down()
    up, down = docker.read_text().splitlines()
    settings = f"compose -f docker-compose.yml --env-file {tmp_path}/compose.env"
    assert up == f"{settings} up --wait postgres kafka registry"
    assert down == f"{settings} down --volumes"


def test_the_addresses_are_those_that_the_compose_file_publishes(docker: Path, tmp_path: Path) -> None:
    containers = Containers(tmp_path)
    with pytest.raises(NoContainers):
        containers.up(ready_s=0)  # nobody answers
    found = containers.endpoints()
    chosen = dict(line.split("=", 1) for line in (tmp_path / "compose.env").read_text().splitlines())
    text = re.sub(r"\$\{(\w+):[-?][^}]*\}", lambda part: chosen[part[1]], (ROOT / "docker-compose.yml").read_text())
    services = yaml.safe_load(text)["services"]
    published = {name: services[name]["ports"][0].rpartition(":")[0] for name in ("postgres", "kafka", "registry")}
    user, password = (services["postgres"]["environment"][f"POSTGRES_{part}"] for part in ("USER", "PASSWORD"))
    assert found.postgres_dsn == f"postgresql://{user}:{password}@{published['postgres']}/app"
    assert found.kafka == published["kafka"]
    assert f"HOST://{found.kafka}," in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert found.registry == f"http://{published['registry']}/apis/ccompat/v7"
