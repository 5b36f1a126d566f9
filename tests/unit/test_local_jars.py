from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LocalStackError
from pipeline.local import relock
from pipeline.local.jars import Jar, JarCache, locked
from pipeline.local.progress import Progress, silent
from pipeline.local.server import Cancelled

CONTENT = b"a jar"
NEVER = threading.Event()


def jar(name: str = "thing", content: bytes = CONTENT) -> Jar:
    return Jar("kafka", "org.example", name, "1.0", "", "jar", len(content), hashlib.sha256(content).hexdigest())


def bringing(*contents: bytes) -> tuple[Callable[[Jar, Path, Progress], Path], list[str]]:
    """Return a downloader that brings one content after the other, and the list of what it was asked for."""
    asked: list[str] = []

    def download(wanted: Jar, repository: Path, advance: Progress) -> Path:
        content = contents[min(len(asked), len(contents) - 1)]
        asked.append(wanted.name)
        path = repository / wanted.name
        path.write_bytes(content)
        advance.advance(len(content))
        return path

    return download, asked


class Counted:
    def __init__(self) -> None:
        self.done_bytes = 0

    def say(self, text: str) -> None: ...

    def expect(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None:
        self.done_bytes += done_bytes


def test_a_missing_file_is_downloaded_once_and_then_no_more(tmp_path: Path) -> None:
    download, asked = bringing(CONTENT)
    cache = JarCache(tmp_path, download=download, jars=[jar()])
    cache.fetch({"kafka"}, silent, NEVER)
    cache.fetch({"kafka"}, silent, NEVER)
    assert asked == ["thing-1.0.jar"]
    assert [path.read_bytes() for path in cache.jars("kafka")] == [CONTENT]
    assert list((tmp_path / ".outbox-pipeline-partial").iterdir()) == []


@pytest.mark.parametrize("broken", [b"", b"a j", b"a jur"])
def test_a_file_with_a_wrong_checksum_is_fetched_again(tmp_path: Path, broken: bytes) -> None:
    download, asked = bringing(CONTENT)
    path = tmp_path / jar().path
    path.parent.mkdir(parents=True)
    path.write_bytes(broken)
    JarCache(tmp_path, download=download, jars=[jar()]).fetch({"kafka"}, silent, NEVER)
    assert path.read_bytes() == CONTENT
    assert len(asked) == 1


def test_a_download_that_stays_wrong_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    download, asked = bringing(b"a login page")
    counted = Counted()
    cache = JarCache(tmp_path, download=download, jars=[jar()], tries=2)
    with pytest.raises(LocalStackError, match=r"thing-1\.0\.jar.*checksum.*2 times") as error:
        cache.fetch({"kafka"}, counted, NEVER)
    assert error.value.remedy
    assert len(asked) == 2
    assert not (tmp_path / jar().path).exists()
    assert counted.done_bytes == 0


def test_a_download_that_is_right_the_second_time_is_taken(tmp_path: Path) -> None:
    download, _ = bringing(b"half a j", CONTENT)
    counted = Counted()
    JarCache(tmp_path, download=download, jars=[jar()]).fetch({"kafka"}, counted, NEVER)
    assert (tmp_path / jar().path).read_bytes() == CONTENT
    assert counted.done_bytes == len(CONTENT)


def test_no_network_is_an_error_that_says_so_after_more_than_one_try(tmp_path: Path) -> None:
    tries = []

    def download(wanted: Jar, repository: Path, advance: Progress) -> Path:
        tries.append(wanted)
        raise LocalStackError("no network", remedy="check it", retryable=True)

    with pytest.raises(LocalStackError, match="no network"):
        JarCache(tmp_path, download=download, jars=[jar()], tries=2).fetch({"kafka"}, silent, NEVER)
    assert len(tries) == 2


def test_a_cancelled_download_ends(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    download, _ = bringing(CONTENT)
    with pytest.raises(Cancelled):
        JarCache(tmp_path, download=download, jars=[jar()]).fetch({"kafka"}, silent, cancelled)
    assert not (tmp_path / jar().path).exists()


def test_too_little_disk_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    download, asked = bringing(CONTENT)
    huge = Jar("kafka", "org.example", "thing", "1.0", "", "jar", 2**60, "0")
    with pytest.raises(LocalStackError, match="too little disk"):
        JarCache(tmp_path, download=download, jars=[huge]).fetch({"kafka"}, silent, NEVER)
    assert asked == []


def test_only_the_files_of_the_wanted_servers_are_fetched(tmp_path: Path) -> None:
    download, asked = bringing(CONTENT)
    JarCache(tmp_path, download=download, jars=[jar()]).fetch({"registry"}, silent, NEVER)
    assert asked == []


def test_the_lock_file_holds_the_versions_that_the_command_pins() -> None:
    found = {jar.artifact: jar.version for jar in locked()}
    assert found["kafka_2.13"] == found["connect-runtime"] == found["kafka-clients"] == relock.KAFKA
    assert found["debezium-connector-postgres"] == relock.DEBEZIUM
    assert found["apicurio-registry-app"] == relock.APICURIO
    assert found["log4j-slf4j-impl"] == relock.LOG4J
    assert found["opentelemetry-sdk"] == relock.OPENTELEMETRY
    assert found["apicurio-registry-utils-converter"] == relock.AVRO_CONVERTER
    assert {jar.use for jar in locked()} == {"kafka", "debezium", "converter", "registry"}
    assert all(len(jar.sha256) == 64 for jar in locked())


def test_the_plugin_brings_nothing_that_connect_gives_it() -> None:
    assert not {jar.artifact for jar in locked() if jar.use in {"debezium", "converter"}} & relock.CONNECT_GIVES
