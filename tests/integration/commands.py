"""The command line as a user calls it, in this process: quick enough for many calls."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import Logger
from pathlib import Path

import pytest

from pipeline.cli.main import main

__all__ = ["CommandLine", "Result", "runner"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left: its exit code, what it printed."""

    code: int
    stdout: str
    stderr: str


CommandLine = Callable[..., Result]


def runner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> CommandLine:
    """Return ``pipeline(*words, **environment)``. Modules of the working directory are imported anew by each call."""

    def run(*words: str, **more: str) -> Result:
        importlib.invalidate_caches()
        with monkeypatch.context() as patch, own_process():
            patch.setattr(sys, "argv", ["pipeline", *words])
            patch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
            patch.setattr(sys, "dont_write_bytecode", True)
            for name, value in {**environment, **more, "COLUMNS": "200"}.items():
                if name.startswith("PIPELINE_") or name == "COLUMNS":
                    patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        for name in [name for name, module in sys.modules.items() if _is_here(module)]:
            del sys.modules[name]
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return run


@contextmanager
def own_process() -> Iterator[None]:
    """Undo what a command does that owns its process: it sets logging up, and takes signals."""
    root, known = logging.getLogger(), logging.root.manager.loggerDict.values()
    levels = [(one, one.level) for one in (root, *known) if isinstance(one, Logger)]
    handlers = root.handlers[:]
    signals = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in levels:
            logger.setLevel(level)
        for number, handler in signals:
            signal.signal(number, handler)


def _is_here(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == Path.cwd()
