from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pipeline
from pipeline.log import JsonFormatter, Repeats


def record(message: str, name: str = "pipeline.kafka.consumer", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "x.py", 1, message, (), None)
    vars(made).update(extra)
    return made


def test_what_the_client_repeats_is_said_every_ten_seconds_with_its_count() -> None:
    now = [0.0]
    repeats = Repeats(clock=lambda: now[0])
    said = [repeats.filter(record(f"connect failed after {ms} ms")) for ms in (1, 2, 3)]
    assert said == [True, False, False]
    now[0] = 11.0
    again = record("connect failed after 4 ms")
    assert repeats.filter(again)
    assert json.loads(JsonFormatter().format(again))["repeated"] == 2


def test_what_stages_say_is_never_held_back() -> None:
    repeats = Repeats(clock=lambda: 0.0)
    assert all(repeats.filter(record("dead letter", "pipeline.worker", action="worker.dead")) for _ in range(3))


def test_no_field_has_a_name_that_logging_refuses() -> None:
    """It raises KeyError, where something is to be told."""
    taken = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    wrong = [
        f"{path}:{key.lineno}: {key.value}"
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and key.value in taken
    ]
    assert not wrong
