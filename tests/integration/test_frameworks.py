"""Alembic and Django leave the schema ``pipeline`` alone; handlers are at home in Django."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import conninfo
from servers import Database

from pipeline.alembic import include_name, include_object


def engine(database: Database) -> sa.Engine:
    parts = conninfo.conninfo_to_dict(database.dsn)
    # the default schema is public: a user who is called pipeline would have ours
    options = {"options": "-c search_path=public"}
    address = sa.URL.create(
        "postgresql+psycopg", parts["user"], parts["password"], parts["host"], int(parts["port"]), parts["dbname"]
    )
    return sa.create_engine(address, connect_args=options, poolclass=sa.pool.NullPool)


def differences(database: Database, **options: Any) -> list[Any]:
    with engine(database).connect() as conn:
        context = MigrationContext.configure(conn, opts={"include_schemas": True, **options})
        return compare_metadata(context, sa.MetaData())


@pytest.mark.filterwarnings("ignore:Did not recognize type")  # xid8, where ours is reflected all the same
@pytest.mark.parametrize("option", [{"include_name": include_name}, {"include_object": include_object}])
def test_alembics_autogenerate_leaves_the_schema_alone(
    database: Database, option: dict[str, Callable[..., bool]]
) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.execute("CREATE TABLE public.business (id int PRIMARY KEY)")
    found = differences(database, **option)
    assert [(change[0], change[1].name) for change in found] == [("remove_table", "business")]
    assert len(differences(database)) > 5  # without it, ours would be dropped


def test_alembics_commands_make_and_undo_the_applications_tables_and_leave_ours(
    database: Database, tmp_path: Path
) -> None:
    def alembic(*words: str) -> str:
        command = [sys.executable, "-m", "alembic", *words]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tables() -> list[str]:
        with psycopg.connect(database.dsn) as conn:
            found = conn.execute("SELECT schemaname || '.' || tablename FROM pg_tables ORDER BY 1").fetchall()
        return [name for (name,) in found if name.startswith(("public.", "pipeline."))]

    alembic("init", "migrations")
    (tmp_path / "shop.py").write_text(
        "import sqlalchemy as sa\nmetadata = sa.MetaData()\n"
        "sa.Table('business', metadata, sa.Column('id', sa.Integer, primary_key=True))\n"
    )
    address = engine(database).url.update_query_dict({"options": "-csearch_path=public"})
    config, env = tmp_path / "alembic.ini", tmp_path / "migrations" / "env.py"
    url = address.render_as_string(hide_password=False).replace("%", "%%")
    config.write_text(re.sub("(?m)^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {url}", config.read_text()))
    ours = "target_metadata=target_metadata, include_schemas=True, include_name=include_name"
    env.write_text(
        env.read_text()
        .replace("target_metadata = None", "from shop import metadata as target_metadata")
        .replace("target_metadata=target_metadata", ours)
        .replace(
            "from alembic import context", "from alembic import context\nfrom pipeline.alembic import include_name"
        )
    )
    before = tables()
    alembic("revision", "--autogenerate", "-m", "business")
    [revision] = (tmp_path / "migrations" / "versions").glob("*.py")
    assert re.findall(r"op\.\w+\('(\w+)'", revision.read_text()) == ["business", "business"]
    alembic("upgrade", "head")
    assert tables() == sorted([*before, "public.alembic_version", "public.business"])
    assert "No new upgrade operations" in alembic("check")
    alembic("downgrade", "base")
    assert tables() == sorted([*before, "public.alembic_version"])
    alembic("upgrade", "head")
    env.write_text(env.read_text().replace(", include_name=include_name", ""))  # without it, ours would be dropped
    alembic("revision", "--autogenerate", "-m", "all")
    assert any("op.drop_table('outbox'" in file.read_text() for file in revision.parent.glob("*.py"))


def test_django_neither_sees_nor_changes_the_schema(database: Database, tmp_path: Path) -> None:
    parts = conninfo.conninfo_to_dict(database.dsn)
    settings = {
        "ENGINE": "django.db.backends.postgresql", "OPTIONS": {"options": "-c search_path=public"},
        "NAME": parts["dbname"], "USER": parts["user"], "PASSWORD": parts["password"],
        "HOST": parts["host"], "PORT": parts["port"],
    }  # fmt: skip
    app = tmp_path / "store"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "models.py").write_text(
        "from django.db import models\nclass Order(models.Model):\n    name = models.TextField()\n"
    )
    script = f"""
        import django
        from django.conf import settings
        from django.core.management import call_command
        settings.configure(DATABASES={{"default": {settings!r}}}, INSTALLED_APPS=["store"], USE_TZ=True,
                           DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
        django.setup()
        call_command("makemigrations", "store")
        call_command("migrate")
        call_command("makemigrations", "store", "--check")
        call_command("inspectdb")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "StoreOrder" in run.stdout
    assert "aggregateid" not in run.stdout
    with psycopg.connect(database.dsn) as conn:
        found = conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'pipeline'").fetchone()
    assert found is not None
    assert found[0] > 5


CLERK = """
    from asgiref.sync import sync_to_async
    from pipeline import Context, Event, Pipeline
    from pipeline.django import afresh_connections, install

    app = Pipeline("clerk", topic_prefix="")
    if INSTALLED:
        install(app)
    from django.contrib.contenttypes.models import ContentType  # a model: its app must be loaded by now
    from django.db import connection

    class Placed(Event, aggregate="order", key="order_id", format="json"):
        order_id: str

    def pid():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    pids = {"function": [], "coroutine": []}

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        pids["function"].append((ctx.attempt, pid()))

    @app.consumer(Placed, group="mail")
    @(afresh_connections() if INSTALLED else lambda function: function)
    async def mail(event: Placed, ctx: Context) -> None:
        pids["coroutine"].append((ctx.attempt, await sync_to_async(pid)()))
"""


@pytest.mark.parametrize("installed", [True, False])
def test_a_handler_does_not_meet_a_connection_of_django_that_the_server_has_ended(
    database: Database, tmp_path: Path, installed: bool
) -> None:
    parts = conninfo.conninfo_to_dict(database.dsn)
    options = {
        "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
        "PASSWORD": parts["password"], "HOST": parts["host"], "PORT": parts["port"],
        "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True,
    }  # fmt: skip
    (tmp_path / "settings.py").write_text(
        f"DATABASES = {{'default': {options!r}}}\nINSTALLED_APPS = ['django.contrib.contenttypes']\nUSE_TZ = True\n"
    )
    setup = "" if installed else "import django; django.setup()\n"
    (tmp_path / "clerk.py").write_text(setup + textwrap.dedent(CLERK).replace("INSTALLED", str(installed)))
    script = f"""
        import psycopg
        from clerk import Placed, app, pids
        from pipeline.testing import Harness
        harness = Harness(app)
        for n in range(3):
            harness.publish(Placed(order_id=str(n)))
            harness.run_until_idle()
            assert not harness.dead_letters, harness.dead_letters
            if n == 1:
                with psycopg.connect({database.dsn!r}, autocommit=True) as conn:
                    for _, pid in {{seen[-1] for seen in pids.values()}}:
                        conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        for what, seen in pids.items():
            print(what, [attempt for attempt, _ in seen], seen[0][1] == seen[1][1], seen[1][1] == seen[2][1])
    """
    if installed:
        command = [sys.executable, "-c", "import clerk"]
        unset = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        run = subprocess.run(command, cwd=tmp_path, env=unset, text=True, capture_output=True, check=False)
        assert "→ export DJANGO_SETTINGS_MODULE" in run.stderr
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    if installed:
        assert (run.returncode, run.stdout) == (0, "function [1, 1, 1] True False\ncoroutine [1, 1, 1] True False\n"), (
            run
        )
    else:  # no attempt of that thread works ever again
        assert "attempts=5, error='django.db.utils.OperationalError', text='the connection is closed'" in run.stderr
