"""Settings from the environment: what is read, what is refused, what is never printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Settings
from pipeline.endpoints import libpq_environment, postgres_dsn
from pipeline.errors import ConfigError


def test_levels_are_separated_by_two_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_POSTGRES__DSN", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("PIPELINE_TOPIC_PREFIX", "staging.")
    monkeypatch.setenv("PIPELINE_KAFKA__OPTIONS", '{"sasl.password": "hunter2"}')
    settings = Settings.load()
    assert settings.topic_prefix == "staging."
    assert postgres_dsn(settings).endswith("@h/d")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


@pytest.mark.parametrize("name", ["PIPELINE_POSTGRS__DSN", "PIPELINE_X", "PIPELINE_"])
def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=rf"unknown setting {name}[\s\S]*PIPELINE_POSTGRES"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIPELINE_POSTGRES__DNS", "postgresql://secret"),
        ("PIPELINE_TOPIC_PREFIX", "no-dot"),
        ("PIPELINE_KAFKA__REPLICATION_FACTOR", "secret"),
        ("PIPELINE_KAFKA", "secret, not JSON"),
    ],
)
def test_a_value_that_does_not_fit_is_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name.rpartition("__")[0] or name) as caught:
        Settings.load()
    assert "secret" not in str(caught.value)


def test_without_a_dsn_the_setting_to_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"PIPELINE_POSTGRES__DSN is not set[\s\S]*pipeline up"):
        postgres_dsn(Settings.load())


def test_a_dsn_becomes_libpqs_environment() -> None:
    found = libpq_environment("postgresql://u:p@h:5433/d?sslmode=require")
    assert found == {
        "PGHOST": "h", "PGPORT": "5433", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d", "PGSSLMODE": "require"
    }  # fmt: skip
