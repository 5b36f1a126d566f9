from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import textwrap
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


HOST = """
    import importlib, logging, pkgutil, sys

    def state():
        root = logging.getLogger()
        loggers = [logging.getLogger(name) for name in root.manager.loggerDict if name.startswith("pipeline")]
        touched = {one.name for one in loggers if one.handlers or one.level or not one.propagate}
        factory = logging.getLogRecordFactory()
        return root.handlers, root.level, root.filters, root.manager.disable, factory, sys.excepthook, touched

    before = state()
    import pipeline
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(found.name)
    from pipeline import Context, Event, Pipeline
    from pipeline.testing import Harness

    class Placed(Event, aggregate="order", key="order_id", format="json"):
        order_id: str

    app = Pipeline("shop", topic_prefix="")

    @app.consumer(Placed, group="billing")
    def bill(event: Placed, ctx: Context) -> None:
        raise RuntimeError(event.order_id)

    harness = Harness(app)
    harness.publish(Placed(order_id="1"))
    harness.run_until_idle()
    assert len(harness.dead_letters) == 1
    assert state() == before, state()
    said = []
    host = logging.Handler()
    host.emit = said.append
    logging.getLogger().addHandler(host)
    harness.publish(Placed(order_id="2"))
    harness.run_until_idle()
    print(sorted({record.name.partition(".")[0] for record in said}))
"""


def test_the_hosts_logging_is_left_alone_and_hears_us() -> None:
    """Whoever imports every module and runs workers within his own process."""
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(HOST)], text=True, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "['pipeline']\n", "dead letter\n")
