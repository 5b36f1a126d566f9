"""The small core publishes, and each extra works, in an environment that has nothing but what is declared."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from servers import Database

OPTIONAL = {
    "asyncpg", "celery", "click", "confluent_kafka", "django", "prometheus_client", "psutil", "psycopg2", "pytest",
    "sqlalchemy", "urllib3",
}  # fmt: skip
CLI = {"click", "urllib3"}
WORKER = CLI | {"confluent_kafka", "prometheus_client"}

# What a module may need beside the core, by the beginning of its name.
MAY_NEED = {
    "pipeline.cli": CLI | WORKER,
    "pipeline.connect.rest": CLI,
    "pipeline.django": {"django"},
    "pipeline.demo": WORKER | {"psutil"},
    "pipeline.jobs_library.celery": {"celery"},
    "pipeline.kafka": WORKER,
    "pipeline.local": {"psutil"},
    "pipeline.probes": WORKER,
    "pipeline.registry": WORKER,
    "pipeline.runtime": WORKER,
    "pipeline.testing.plugin": {"pytest"},
    "pipeline.writers.asyncpg": {"asyncpg"},
    "pipeline.writers.django": {"django"},
    "pipeline.writers.psycopg2": {"psycopg2"},
    "pipeline.writers.sqlalchemy": {"sqlalchemy"},
}

HEAD = """
    import sys, psycopg
    from pipeline import Event, Pipeline, PipelineError
    class Noted(Event, aggregate="order", key="k", format="json"):
        k: str
    app = Pipeline("shop", topic_prefix="")
    event, dsn = Noted(k="1"), sys.argv[1]
"""

BARE = """
    with psycopg.connect(dsn) as conn:
        app.publish(conn, event)
        app.publish_many(conn, [event] * 30)
    try:
        app.publish(object(), event)
    except PipelineError:
        print("refused")
    print(sorted({"click", "confluent_kafka", "sqlalchemy", "django", "opentelemetry"} & set(sys.modules)))
"""

SQLALCHEMY = """
    import sqlalchemy
    from sqlalchemy.orm import Session
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Session(engine) as session:
        app.publish_many(session, [event] * 31)
        session.commit()
    engine.dispose()
"""

DJANGO = """
    from django.conf import settings
    from psycopg.conninfo import conninfo_to_dict
    has = {name.upper(): value for name, value in conninfo_to_dict(dsn).items()}
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": has.pop("DBNAME"), **has}
    settings.configure(DATABASES={"default": database})
    from django.db import connection, transaction
    with transaction.atomic():
        app.publish_many(connection, [event] * 31)
    connection.close()
"""

ASYNCPG = """
    import asyncio, asyncpg
    async def run():
        conn = await asyncpg.connect(dsn)
        async with conn.transaction():
            await app.apublish_many(conn, [event] * 31)
        await conn.close()
    asyncio.run(run())
"""

OTEL = """
    from opentelemetry import trace
    span = trace.NonRecordingSpan(trace.SpanContext(10, 11, False, trace.TraceFlags(1)))
    with trace.use_span(span), psycopg.connect(dsn) as conn:
        app.publish_many(conn, [event] * 31)
        print(conn.execute("SELECT traceparent FROM pipeline.outbox LIMIT 1").fetchone()[0])
"""

WAYS = {"": BARE, "sqlalchemy": SQLALCHEMY, "django": DJANGO, "asyncpg": ASYNCPG, "otel": OTEL, "all": OTEL}
TRACEPARENT = "00-" + "a".rjust(32, "0") + "-" + "b".rjust(16, "0") + "-01\n"
PRINTED = {"": "refused\n[]\n", "otel": TRACEPARENT, "all": TRACEPARENT}
BRINGS = {
    "": set(), "sqlalchemy": {"sqlalchemy"}, "django": {"django"}, "asyncpg": {"asyncpg"}, "otel": set(),
    "cli": CLI, "worker": WORKER, "relay": WORKER, "local": WORKER | {"psutil"},
    "dev-server": WORKER | {"psutil"}, "all": OPTIONAL - {"celery", "psycopg2", "pytest"},
}  # fmt: skip

IMPORTS = """
    import importlib, pipeline, pkgutil
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline.", onerror=lambda name: None):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            print(found.name, error.name.partition(".")[0])
"""


def install(folder: Path, extra: str) -> Path:
    """Return the folder of the commands of a new environment with the project and one extra."""
    commands = folder / "venv" / "bin"
    uv = [sys.executable, "-m", "uv"]
    what = f".[{extra}]" if extra else "."
    for command in (
        [*uv, "venv", "-q", "--python", sys.executable, str(folder / "venv")],
        [*uv, "pip", "install", "-q", "--python", str(commands / "python"), "--constraint", "requirements.lock", what],
    ):
        done = subprocess.run(command, cwd=Path(__file__).parents[2], text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    return commands


@pytest.mark.parametrize("extra", BRINGS)
def test_an_extra_brings_what_its_modules_import_and_the_core_needs_none(
    database: Database, cli_environment: dict[str, str], tmp_path: Path, extra: str
) -> None:
    commands = install(tmp_path, extra)

    def run(name: str, *words: str) -> tuple[int, str, str]:
        command = [commands / name, *words]
        done = subprocess.run(command, cwd=tmp_path, env=cli_environment, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, found, said = run("python", "-W", "error", "-c", textwrap.dedent(IMPORTS))
    assert (code, said) == (0, "")
    missing = [line.split() for line in found.splitlines()]
    assert {package for _, package in missing} == OPTIONAL - BRINGS[extra]
    for module, package in missing:
        need = next((need for name, need in MAY_NEED.items() if f"{module}.".startswith(f"{name}.")), set())
        assert package in need, f"{module} needs {package}"
    # imported only where --reload is asked for
    assert (run("python", "-c", "import watchfiles")[0] == 0) == (extra in {"dev-server", "all"})
    if extra in WAYS:
        script = textwrap.dedent(HEAD) + textwrap.dedent(WAYS[extra])
        assert run("python", "-W", "error", "-c", script, database.dsn) == (0, PRINTED.get(extra, ""), "")
        with psycopg.connect(database.dsn) as conn:
            assert conn.execute("SELECT count(*) FROM pipeline.outbox").fetchone() == (31,)
    code, found, said = run("pipeline", "--help")
    if BRINGS[extra] >= CLI:
        assert (code, said) == (0, "")
        assert ("(Needs outbox-pipeline[worker].)" in found) == (extra == "cli")
    else:
        assert (code, found) == (1, "")
        assert "pip install 'outbox-pipeline[cli]'" in said
    if extra == "cli":
        prunes_and_says_what_other_commands_need(database, run)


def prunes_and_says_what_other_commands_need(database: Database, run: Callable[..., tuple[int, str, str]]) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.execute(
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic) VALUES "
            "(gen_random_uuid(), 'order', '1', 'Placed', '\\x0000000001', 'orders'), "
            "(gen_random_uuid(), 'order', '1', 'Noted', '{}', 'orders')"
        )
    code, found, said = run("pipeline", "outbox", "tail")
    assert (code, said) == (0, "")
    assert "the package confluent_kafka is missing: outbox-pipeline[worker]" in found
    assert "no relay has stored a position" in run("pipeline", "outbox", "prune")[2]
    code, _, said = run("pipeline", "consumer", "run", "shop:app", "--all")
    assert code == 1
    assert "pip install 'outbox-pipeline[worker]'" in said
