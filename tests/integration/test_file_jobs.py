"""Large files as jobs: streamed, shown, and gone on with after a ``kill -9`` without repeating what was done."""

from __future__ import annotations

import csv
import itertools
import struct
import subprocess
import sys
import zlib
from io import DEFAULT_BUFFER_SIZE
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobbing import OpenDesk
from servers import Database
from working import wait_until

from pipeline import Job, Pipeline, RetryPolicy
from pipeline.jobs_library import files
from pipeline.jobs_library.files import _batches, process_csv, process_folder

MODULE = """
import os
import struct
import time
from pathlib import Path

from pipeline import Job, Pipeline
from pipeline.jobs_library.files import process_csv, process_folder

app = Pipeline("PREFIX", topic_prefix="", partitions=1)


class Load(Job, queue="files", name="FileLoad", format="json"):
    path: str


@process_csv(app, Load, batch=100)
def load(rows, conn, job):
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO loaded VALUES (%(id)s, %(name)s)", rows)
    with open("parts.log", "a") as parts:
        parts.write(rows[0]["id"] + "\\n")
    time.sleep(0.05)


class Measure(Job, queue="files", name="FolderMeasure", format="json"):
    path: str


@process_folder(app, Measure, pattern="**/*.png")
def measure(file, conn, job):
    width, height = struct.unpack(">II", file.read_bytes()[16:24])
    conn.execute("INSERT INTO loaded VALUES (%s, %s)", (file.stem, f"{width} × {height}"))
    with open("parts.log", "a") as parts:
        parts.write(file.stem + "\\n")
    time.sleep(0.02)
"""


class Load(Job, queue="files", name="FileLoad", format="json"):
    path: str


class Measure(Job, queue="files", name="FolderMeasure", format="json"):
    path: str


@pytest.fixture
def app(prefix: str) -> Pipeline:
    return Pipeline(prefix, topic_prefix="", partitions=1)


@pytest.fixture
def open_desk(open_desk: OpenDesk, conn: psycopg.Connection[Any]) -> OpenDesk:
    conn.execute("CREATE TABLE loaded (id text, name text)")
    return open_desk


class Opened(type(Path())):  # type: ignore[misc] — the class of this system's paths
    """A path that keeps the file that was opened by it."""

    files: ClassVar[list[Any]] = []

    def open(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        self.files.append(super().open(*args, **options))
        return self.files[-1]


def write(path: Path, rows: int, padding: str = "") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name"])
        writer.writerows([n, f'näme, "{n}"\nof two lines{padding}'] for n in range(rows))
    return path


def write_images(folder: Path, count: int) -> Path:
    """Write PNG files of one column and as many rows as their number says, in folders of ten."""
    for n in range(count):
        head = struct.pack(">IIBBBBB", 1, n + 1, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0\0" * (n + 1))), (b"IEND", b"")]
        path = folder / f"{n // 10:03}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in chunks
            )
        )
    return folder


def loaded(database: Database) -> list[str]:
    with psycopg.connect(database.dsn) as conn:
        return [row[0] for row in conn.execute("SELECT id FROM loaded ORDER BY id::int")]


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_a_killed_worker_goes_on_behind_the_last_part_and_shows_how_far_it_is(
    kind: str, app: Pipeline, open_desk: OpenDesk, database: Database, cli_environment: dict[str, str],
    prefix: str, tmp_path: Path,
) -> None:  # fmt: skip
    process_csv(app, Load, dsn=database.dsn)(lambda rows, conn, job: None)
    process_folder(app, Measure, dsn=database.dsn)(lambda file, conn, job: None)
    desk = open_desk(app)
    (tmp_path / "filejobs.py").write_text(MODULE.replace("PREFIX", prefix))
    if kind == "rows":
        count, some, result = 3000, 500, {"rows": 3000}
        job_id = desk.put(Load(path=str(write(tmp_path / "big.csv", count))))
        total = (tmp_path / "big.csv").stat().st_size
    else:
        count, some, result, total = 150, 30, {"files": 150}, 150
        job_id = desk.put(Measure(path=str(write_images(tmp_path / "images", count))))
    desk.carry()
    command = [sys.executable, "-m", "pipeline", "consumer", "run", "filejobs:app"]
    options = ["-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=500"]
    for kill in (True, False):
        seen = len(loaded(database))
        with (tmp_path / f"worker-{kill}.log").open("wb") as log:
            worker = subprocess.Popen([*command, *options], cwd=tmp_path, env=cli_environment, stdout=log, stderr=log)
        try:
            if kill:
                wait_until(lambda: len(loaded(database)) >= some, why="some parts")
                wait_until(lambda: 0 < (desk.job(job_id)["progress"] or 0) < desk.job(job_id)["total"], why="progress")
                worker.kill()
            else:
                assert some <= seen < count
                assert desk.until(job_id, "done")["result"] == result
                worker.terminate()
        finally:
            if kill or sys.exc_info()[0]:
                worker.kill()
            worker.wait(30)
    assert loaded(database) == [str(n) for n in range(count)]  # each row, each image once
    parts = (tmp_path / "parts.log").read_text().split()
    assert len(parts) - len(set(parts)) <= 1  # at most the part that was cut off
    job = desk.job(job_id)
    assert (job["progress"], job["total"]) == (total, total)
    if kind == "images":
        sizes = desk.conn.execute("SELECT name FROM loaded ORDER BY id::int").fetchall()
        assert [row["name"] for row in sizes] == [f"1 × {n + 1}" for n in range(count)]


def test_a_failed_attempt_is_gone_on_with_and_files_that_are_gone_or_changed_are_dead(
    app: Pipeline, open_desk: OpenDesk, database: Database, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(files, "Path", Opened)
    failures, parts, read = iter([0, 0, 1]), [], []

    @process_csv(app, Load, batch=10, dsn=database.dsn, retry=RetryPolicy(attempts=5, first_s=0.1))
    def load(rows: list[dict[str, str]], conn: Any, job: Load) -> None:
        parts.append(rows[0]["id"])
        read.append(Opened.files[-1].raw.tell())
        conn.cursor().executemany("INSERT INTO loaded VALUES (%(id)s, %(name)s)", rows)
        if next(failures, 0):
            raise TimeoutError
        if rows[0]["id"] == "10" and "changing" in job.path:
            Path(job.path).write_text("other")
            raise TimeoutError

    desk = open_desk(app)
    good = desk.put(Load(path=str(write(tmp_path / "good.csv", 45, "x" * 4000))))
    empty = desk.put(Load(path=str(write(tmp_path / "empty.csv", 0))))
    with write(tmp_path / "blank.csv", 0).open("a") as file:
        file.write("\n\n\n")
    blank = desk.put(Load(path=str(tmp_path / "blank.csv")))
    desk.carry()
    with desk.working(concurrency=1):
        assert desk.until(good, "done")["result"] == {"rows": 45}
        assert parts == ["0", "10", "20", "20", "30", "40"]
        assert len(loaded(database)) == 45
        for first, at in zip(parts, read, strict=True):  # streamed: a part and what a buffer reads ahead
            assert at <= (int(first) + 10) * 4100 + DEFAULT_BUFFER_SIZE
        assert desk.until(empty, "done")["result"] == {"rows": 0}
        job = desk.until(blank, "done")
        assert job["progress"] == job["total"] == (tmp_path / "blank.csv").stat().st_size
        gone = desk.put(Load(path=str(tmp_path / "nowhere.csv")))
        changing = desk.put(Load(path=str(write(tmp_path / "changing.csv", 20))))
        desk.carry()
        assert desk.until(gone, "dead")["error"] == "pipeline.retry.Reject"
        assert desk.until(changing, "dead")["error"] == "pipeline.retry.Reject"


def test_the_files_of_a_folder_are_done_one_by_one(
    app: Pipeline, open_desk: OpenDesk, database: Database, tmp_path: Path
) -> None:
    failing, sizes = [True], {}

    @process_folder(app, Load, pattern="**/*.png", dsn=database.dsn, retry=RetryPolicy(attempts=5, first_s=0.1))
    def measure(file: Path, conn: Any, job: Load) -> None:
        name = file.relative_to(images).as_posix()
        if name == "b/3.png" and failing and failing.pop():
            raise TimeoutError
        assert name not in sizes
        sizes[name] = len(file.read_bytes())

    images = tmp_path / "images"
    wanted = ["9.png", "a/9.png", "b/1.png", "b/3.png", "b-c/2.png", "c/0.png"]  # names go up and down
    for size, name in enumerate(wanted):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"x" * size)
    (images / "notes.txt").write_text("no image")
    desk = open_desk(app)
    done, wrong = desk.put(Load(path=str(images))), desk.put(Load(path=str(images / "notes.txt")))
    desk.carry()
    with desk.working():
        job = desk.until(done, "done")
        desk.until(wrong, "dead")
    assert (job["result"], job["progress"], job["total"]) == ({"files": 6}, 6, 6)
    assert sizes == {name: size for size, name in enumerate(wanted)}


@given(
    rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=2, max_size=2)),
    batch=st.integers(1, 5),
)
def test_wherever_it_goes_on_the_rows_are_those_that_are_left(
    rows: list[list[str]], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["a", "b"])
        writer.writerows(rows)
    whole = list(_batches(path, 0, batch, "utf-8", ","))
    assert [[row["a"], row["b"]] for part, _ in whole for row in part] == rows
    for (_, at), number in zip(whole, itertools.count(1), strict=False):
        assert list(_batches(path, at, batch, "utf-8", ",")) == whole[number:]


def test_blank_lines_are_passed_over_as_by_the_dict_reader(tmp_path: Path) -> None:
    path = tmp_path / "blank.csv"
    path.write_bytes(b"\r\nid,name\r\n\r\n1,a\r\n\n\n2,\r\n3\n\n")
    whole = list(_batches(path, 0, 1, "utf-8", ","))
    assert [row for rows, _ in whole for row in rows] == [
        {"id": "1", "name": "a"},
        {"id": "2", "name": ""},
        {"id": "3"},
    ]
    for number, (_, at) in enumerate(whole, 1):
        assert list(_batches(path, at, 1, "utf-8", ",")) == whole[number:]
