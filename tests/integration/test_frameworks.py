"""Alembic and Django leave the schema ``pipeline`` alone."""

from __future__ import annotations

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
