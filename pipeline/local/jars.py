"""The names of servers in, checked files of pinned versions out.

Every file is named with its size and SHA-256 in ``jars.lock``, and checked each time before it is used. The cache
is Maven's (``~/.m2``): a file appears there complete or not at all, so that a killed download or a second
command beside this one leaves nothing broken. Nothing is resolved at run time; with a full cache no network is used.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from pipeline.errors import LocalStackError
from pipeline.local.progress import Progress
from pipeline.local.server import Cancelled

__all__ = ["Jar", "JarCache", "locked"]

PARALLEL = 8
TRIES = 3
SPARE_BYTES = 300 * 2**20
PARTIAL = ".outbox-pipeline-partial"
ABANDONED_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Jar:
    """One file, pinned. ``use`` is who needs it: kafka (with Connect), debezium, converter (of Avro) or registry."""

    use: str
    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    size_bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is in a Maven repository."""
        return Path(*self.group.split("."), self.artifact, self.version, self.name)

    @property
    def name(self) -> str:
        """The file's name."""
        classifier = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{classifier}.{self.packaging}"


class Downloader(Protocol):
    """Who brings one file. Raises LocalStackError."""

    def __call__(self, jar: Jar, repository: Path, advance: Progress) -> Path:
        """Store the file in this (empty) repository and return its path."""


def locked() -> tuple[Jar, ...]:
    """Return all pinned files, from ``jars.lock``."""
    jars = []
    for line in (resources.files(__package__) / "jars.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            use, coordinate, size, sha256 = line.split()
            group, artifact, version, classifier, packaging = coordinate.split(":")
            jars.append(Jar(use, group, artifact, version, classifier, packaging, int(size), sha256))
    return tuple(jars)


class JarCache:
    """Maven's cache, of which only files with the right checksum are given out."""

    def __init__(
        self,
        repository: Path | None = None,
        *,
        download: Downloader | None = None,
        jars: Collection[Jar] | None = None,
        tries: int = TRIES,
    ) -> None:
        self._repository = repository
        self._download = download or _download_with_jgo
        self._jars = locked() if jars is None else jars
        self._tries = tries

    @functools.cached_property
    def repository(self) -> Path:
        """Maven's cache folder, as Maven and jgo find it (``M2_REPO``, else ``~/.m2/repository``)."""
        if self._repository is not None:
            return self._repository
        from jgo.maven import MavenContext  # slow to import, and needed only before a start

        return Path(MavenContext().repo_cache)

    def jars(self, use: str) -> list[Path]:
        """Return the paths of all files of one server, whether they are there or not."""
        return [self.repository / jar.path for jar in self._jars if jar.use == use]

    def fetch(self, uses: Collection[str], progress: Progress, cancelled: threading.Event) -> None:
        """Check all files of these servers and download what is missing or wrong."""
        wanted = [jar for jar in self._jars if jar.use in uses]
        with ThreadPoolExecutor(PARALLEL) as pool:
            missing = [jar for jar, good in zip(wanted, pool.map(self._is_good, wanted), strict=True) if not good]
        if not missing:
            return
        total_bytes = sum(jar.size_bytes for jar in missing)
        self._make_room(total_bytes)
        progress.say(f"downloading {len(missing)} files, {total_bytes / 1e6:.0f} MB, into {self.repository}")
        progress.expect(total_bytes)
        with self._partial() as partial, ThreadPoolExecutor(PARALLEL) as pool:
            watch = _Watch(progress, cancelled)
            work = [pool.submit(self._fetch, jar, partial, watch) for jar in missing]
            try:
                for done in as_completed(work):
                    done.result()
            except BaseException:
                watch.failed.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                progress.expect(0)

    def _fetch(self, jar: Jar, partial: Path, watch: _Watch) -> None:
        for attempt in range(1, self._tries + 1):
            place = Path(tempfile.mkdtemp(dir=partial))
            counter = _Counter(watch)
            try:
                file = self._download(jar, place, counter)
            except LocalStackError as error:
                if attempt == self._tries or not error.retryable:
                    raise
                counter.take_back()
                time.sleep(0.5 * attempt)
                continue
            watch.check()
            if _sha256(file) == jar.sha256:
                target = self.repository / jar.path
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
                return
            counter.take_back()
        raise LocalStackError(
            f"{jar.name}: what was downloaded does not have the pinned checksum {jar.sha256} "
            f"(size wanted {jar.size_bytes}), {self._tries} times",
            remedy="a proxy or mirror may change or cut files: try without it, or another network",
        )

    def _is_good(self, jar: Jar) -> bool:
        path = self.repository / jar.path
        try:
            return path.stat().st_size == jar.size_bytes and _sha256(path) == jar.sha256
        except FileNotFoundError:
            return False

    def _make_room(self, total_bytes: int) -> None:
        try:
            self.repository.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalStackError(
                f"{self.repository} cannot be made: {error.strerror}",
                remedy="set M2_REPO to a folder that you can write to",
            ) from error
        free = shutil.disk_usage(self.repository).free
        if free < total_bytes + SPARE_BYTES:
            raise LocalStackError(
                f"too little disk for the download: {free / 1e6:.0f} MB free at {self.repository}, "
                f"{(total_bytes + SPARE_BYTES) / 1e6:.0f} MB needed",
                remedy="free some space, or set M2_REPO to a folder on another disk",
            )

    @contextlib.contextmanager
    def _partial(self) -> Iterator[Path]:
        """Make a folder for unfinished downloads, and clear away what killed commands left of theirs."""
        root = self.repository / PARTIAL
        root.mkdir(exist_ok=True)
        for old in root.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=root) as name:
            yield Path(name)


class _Watch:
    """Ends all downloads when one failed or somebody cancelled."""

    def __init__(self, progress: Progress, cancelled: threading.Event) -> None:
        self.progress = progress
        self.cancelled = cancelled
        self.failed = threading.Event()

    def check(self) -> None:
        if self.cancelled.is_set() or self.failed.is_set():
            raise Cancelled


class _Counter:
    """The progress of one file, which can be taken back."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._done_bytes = 0

    def say(self, text: str) -> None:
        self._watch.progress.say(text)

    def expect(self, total_bytes: int) -> None:
        self._watch.progress.expect(total_bytes)

    def advance(self, done_bytes: int) -> None:
        self._watch.check()
        self._done_bytes += done_bytes
        self._watch.progress.advance(done_bytes)

    def take_back(self) -> None:
        self._watch.progress.advance(-self._done_bytes)
        self._done_bytes = 0


def _download_with_jgo(jar: Jar, repository: Path, advance: Progress) -> Path:
    import requests  # jgo's HTTP client
    from jgo.maven import MavenContext, PythonResolver  # slow to import

    @contextlib.contextmanager
    def counted(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield advance.advance

    context = MavenContext(resolver=PythonResolver(progress_callback=counted), repo_cache=repository, timeout=30)
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    try:
        return Path(component.artifact(jar.classifier, jar.packaging).resolve())
    except requests.RequestException as error:
        raise LocalStackError(
            f"{jar.name} could not be downloaded: {_reason(error)}",
            remedy="check the network (and HTTPS_PROXY); what is already there is kept, so just run it again",
            retryable=True,
        ) from error
    except RuntimeError as error:
        raise LocalStackError(
            f"{jar.name} was not found by the Maven resolver",
            remedy="a proxy or mirror may refuse it; what is already there is kept, so just run it again",
            retryable=True,
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise LocalStackError(
            f"the disk became full while downloading {jar.name}",
            remedy="free some space and run it again: what is already there is kept",
        ) from error


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line, without the address of the server."""
    while (inner := getattr(error, "reason", None) or (error.args[0] if error.args else None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
