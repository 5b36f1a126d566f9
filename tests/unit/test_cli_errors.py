"""What a person is shown when something goes wrong that nobody foresaw, or that must not be shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import PostgresSettings, Settings
from pipeline.endpoints import postgres_dsn
from pipeline.errors import ConfigError, LocalStackError
from pipeline.local import LocalStack


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("code", "said"), [("def broken(:\n", "SyntaxError"), ("raise KeyError('shop')\n", "KeyError")]
)
def test_an_error_in_the_users_module_shows_their_lines_only(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    done = run("topics", "plan", "broken:app", cwd=tmp_path)
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert said in done.stderr
    assert "click" not in done.stderr
    assert "load.py" not in done.stderr


def test_a_dsn_that_cannot_be_read_is_not_quoted() -> None:
    settings = Settings(postgres=PostgresSettings(dsn="postgresql://u:geheim@[bad"))
    with pytest.raises(ConfigError, match="PIPELINE_POSTGRES__DSN") as caught:
        postgres_dsn(settings)
    assert "geheim" not in str(caught.value)


def test_down_deletes_no_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(LocalStackError, match=r"thesis\.txt"):
        LocalStack(tmp_path).down(delete=True)
    assert (tmp_path / "thesis.txt").exists()
