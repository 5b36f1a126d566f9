"""Large files in, their parts done one after another out, each of them once.

A part is a batch of a CSV file's rows, or one file of a folder. What a part does on its connection is committed
together with how far the job is; after a crash, a failed attempt or a deployment the job goes on behind the last part.
What a part does elsewhere can happen twice, as the part that it was in is done again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from pipeline.app import Pipeline
from pipeline.config import Settings
from pipeline.endpoints import postgres_dsn
from pipeline.errors import SourceError
from pipeline.event import Job
from pipeline.postgres.checkpoint import Checkpoint, connected
from pipeline.retry import Reject, RetryPolicy

if TYPE_CHECKING:
    from pipeline.context import Context

__all__ = ["PathJob", "process_csv", "process_folder"]

_POLICY = RetryPolicy(uncounted=(SourceError, psycopg.OperationalError))  # a database that is away


class PathJob(Protocol):
    """A job type with a field ``path``: ``class Load(Job, queue="files"): path: str``."""

    path: str


def process_csv(
    app: Pipeline,
    model: type[Job],
    *,
    batch: int = 1000,
    encoding: str = "utf-8",
    delimiter: str = ",",
    dsn: str | None = None,
    retry: RetryPolicy = _POLICY,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare what is done with the rows of a CSV file with a header: ``(rows, conn, job)``, rows as dicts.

    ``batch`` rows a part, blank lines passed over; no more than a part is in memory. ``dsn`` is the database's, by
    default PIPELINE_POSTGRES__DSN. Progress is told in bytes, the result is the number of rows. A file that is gone, or
    that changed since the job began, is dead.
    """

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @app.job(model, retry=retry)
        def load(job: Any, ctx: Context) -> None:
            path = Path(job.path)
            source, size = _source(path)
            with connected(dsn or postgres_dsn(Settings.load())) as conn:
                checkpoint = Checkpoint(conn, ctx.event_id)
                begun = _checked(checkpoint, source, {"bytes": 0, "rows": 0})
                at, count = int(begun["bytes"]), int(begun["rows"])
                for rows, at in _batches(path, at, batch, encoding, delimiter):  # noqa: B020 — where it goes on
                    ctx.raise_if_cancelled()
                    count += len(rows)
                    with checkpoint.part({"source": source, "bytes": at, "rows": count}):
                        function(rows, conn, job)
                    ctx.progress(at, size)
                ctx.progress(size, size)  # blank lines at the end are no part
            ctx.result({"rows": count})

        return function

    return declare


def process_folder(
    app: Pipeline,
    model: type[Job],
    *,
    pattern: str = "*",
    dsn: str | None = None,
    retry: RetryPolicy = _POLICY,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare what is done with each file of a folder (images, documents): ``(file, conn, job)``, by path.

    ``pattern`` picks files, as ``*.png`` or, in folders below too, ``**/*.png``. Progress is told in files, the result
    is their number. A file that comes while the job runs is done where its path is behind the last one that was.
    """

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @app.job(model, retry=retry)
        def load(job: Any, ctx: Context) -> None:
            folder = Path(job.path)
            if not folder.is_dir():
                raise Reject(f"{folder.name}: is not a folder")
            found = {file.relative_to(folder).as_posix(): file for file in folder.glob(pattern) if file.is_file()}
            with connected(dsn or postgres_dsn(Settings.load())) as conn:
                checkpoint = Checkpoint(conn, ctx.event_id)
                begun = checkpoint.value or {"last": "", "files": 0}
                last, count = str(begun["last"]), int(begun["files"])
                for name, file in sorted(found.items()):
                    if name <= last:
                        continue
                    ctx.raise_if_cancelled()
                    count += 1
                    with checkpoint.part({"last": name, "files": count}):
                        function(file, conn, job)
                    ctx.progress(count, max(count, len(found)))
            ctx.result({"files": count})

        return function

    return declare


def _source(path: Path) -> tuple[str, int]:
    """Return what tells a file from another one at its place, and its bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise Reject(f"{path.name}: {error.strerror}") from None
    return f"{found.st_size}-{found.st_mtime_ns}", found.st_size


def _checked(checkpoint: Checkpoint, source: str, begin: dict[str, Any]) -> dict[str, Any]:
    found = checkpoint.value or {**begin, "source": source}
    if found["source"] != source:
        raise Reject("the file changed since the job began with it")
    return found


def _batches(
    path: Path, start: int, batch: int, encoding: str, delimiter: str
) -> Iterator[tuple[list[dict[str, str]], int]]:
    """Give batches of rows from a byte position on, each with the position behind it."""
    with path.open("rb") as file:
        at = 0

        def lines() -> Iterator[str]:
            nonlocal at
            for line in file:
                at += len(line)
                yield line.decode(encoding)

        header = next(filter(None, csv.reader(lines(), delimiter=delimiter)), None)
        if header is None:
            return
        if start > at:
            file.seek(start)
            at = start
        reader = filter(None, csv.reader(lines(), delimiter=delimiter))  # a blank line is [], as for csv.DictReader
        while rows := [dict(zip(header, row, strict=False)) for row in islice(reader, batch)]:
            yield rows, at
