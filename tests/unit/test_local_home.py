from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LocalStackError
from pipeline.local import LocalStack, machine
from pipeline.local.account import Account, enterable
from pipeline.local.home import Home
from pipeline.local.machine import check_disk, check_memory
from pipeline.local.ports import HIGHEST, LOOPBACK, LOWEST, free_port, is_free
from pipeline.local.progress import silent


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def expect(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None: ...


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "data")
    with made.locked(silent):
        made.settle(["postgres", "kafka"], silent)
    return made


@pytest.fixture
def listener(home: Home) -> Iterator[int]:
    with socket.socket() as server:
        server.bind((LOOPBACK, home.port("kafka")))
        server.listen()
        yield home.port("kafka")


def test_ports_are_chosen_once_and_remembered(home: Home) -> None:
    before = home.memory()["ports"]
    said = Said()
    home.settle(["postgres", "kafka", "registry"], said)
    after = home.memory()["ports"]
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 3
    assert all(LOWEST <= port <= HIGHEST for port in after.values())
    assert said.lines == []


def test_a_port_that_a_stranger_took_is_chosen_again_and_said(home: Home, listener: int) -> None:
    said = Said()
    home.settle(["postgres", "kafka"], said)
    now = home.port("kafka")
    assert now != listener
    assert said.lines == [f"port {listener} of kafka is in use by another program; now {now}"]


def test_the_port_of_a_running_server_is_not_touched(home: Home, listener: int) -> None:
    home.settle(["postgres"], silent)
    assert home.port("kafka") == listener


def test_passwords_are_random_stay_and_are_for_the_owner_only(home: Home, tmp_path: Path) -> None:
    passwords = home.memory()["passwords"]
    home.settle(["postgres"], silent)
    assert home.memory()["passwords"] == passwords
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert home.data.stat().st_mode & 0o066 == 0
    other = Home(tmp_path / "other")
    with other.locked(silent):
        other.settle(["postgres"], silent)
    assert set(passwords.values()).isdisjoint(other.memory()["passwords"].values())


@pytest.mark.parametrize("text", ["", "{", json.dumps({"version": 99})])
def test_an_unreadable_memory_is_an_error_with_a_remedy(home: Home, text: str) -> None:
    home.file.write_text(text)
    with pytest.raises(LocalStackError, match=r"stack\.json cannot be read") as error:
        home.memory()
    assert "down --delete" in error.value.remedy
    LocalStack(home.data).down(delete=True)
    assert not home.data.exists()


def test_a_second_command_on_the_same_folder_waits(home: Home) -> None:
    said, order = Said(), []

    def second() -> None:
        with home.locked(said):
            order.append("second")

    with home.locked(silent):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert "waiting" in said.lines[0]


def test_a_file_where_the_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalStackError, match="cannot be used as data folder") as error:
        LocalStack(tmp_path / "file").up()
    assert "--data" in error.value.remedy


def test_a_stack_that_was_never_started_has_no_endpoints_and_down_makes_nothing(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "never")
    assert stack.endpoints() is None
    assert stack.status() == []
    stack.down(delete=True)
    assert not (tmp_path / "never").exists()


def test_no_free_port_is_an_error() -> None:
    with pytest.raises(LocalStackError, match="no free port"):
        free_port(range(LOWEST, HIGHEST + 1), random.Random(1))


def test_a_port_is_free_again_when_its_listener_ended() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_enterable_looks_at_every_folder_on_the_way(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    mine = Account("me", os.getuid(), os.getgid())
    stranger = Account("stranger", 64_000, 64_000)
    for folder in (home, home / "project"):
        folder.chmod(0o711)
    reachable = all(parent.stat().st_mode & 0o001 for parent in tmp_path.parents) and tmp_path.stat().st_mode & 0o001
    assert enterable(home / "project", stranger) == bool(reachable)
    home.chmod(0o700)
    assert not enterable(home / "project", stranger)
    assert enterable(home / "project", mine)
    assert not enterable(home / "nowhere", mine)


def test_too_little_disk_or_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_BYTES", 2**60)
    with pytest.raises(LocalStackError, match="too little disk"):
        check_disk(tmp_path)
    monkeypatch.setitem(machine.MEMORY_BYTES, "kafka", 2**60)
    with pytest.raises(LocalStackError, match=r"too little memory.*for postgres, kafka"):
        check_memory(["postgres", "kafka"])


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "900\n",
        "memory.stat": "anon 400\ninactive_file 300\nactive_file 200\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert machine._container_available(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_available(tmp_path) > 2**60
