"""``module:app`` on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.load import load_app

SHOP = """
from typing import Generic, TypeVar
from pipeline import Event, Job, Pipeline
T = TypeVar("T")
class Placed(Event, aggregate="order", key="k"):
    k: str
class Changed(Event, Generic[T], aggregate="order", key="k"):
    k: str
    to: T
ChangedInt = Changed[int]
app = Pipeline("shop", topic_prefix="")
other = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def test_messages_of_the_module_are_registered_without_open_generics(folder: Path) -> None:
    (folder / "loaded_shop.py").write_text(SHOP)
    assert [model.__name__ for model in load_app("loaded_shop:app").messages] == ["Changed[int]", "Placed"]


@pytest.mark.parametrize("path", ["", "shop", "shop:", ":app"])
def test_a_path_that_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="module:attribute, for example shop:app"):
        load_app(path)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "loaded_two.py").write_text(SHOP)
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        load_app("nowhere:app")
    with pytest.raises(ConfigError, match=r"'other' is not a Pipeline[\s\S]*Pipelines in loaded_two: app"):
        load_app("loaded_two:other")
    with pytest.raises(ConfigError, match=r"no module 'loaded_two\.sub'"):
        load_app("loaded_two.sub:app")


def test_errors_inside_the_module_come_through(folder: Path) -> None:
    (folder / "loaded_broken.py").write_text("import module_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
        load_app("loaded_broken:app")
    with pytest.raises(ConfigError):
        load_app("..:app")
