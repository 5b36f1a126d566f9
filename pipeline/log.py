"""Log records in, one JSON object a line out, on stderr.

Each carries a stable ``action`` (``extra={"action": "slot.waiting", …}``). Never a payload, never a secret.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["JsonFormatter", "Repeats", "configure"]

_REPEAT_S = 10.0

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line of JSON per log record; what stands in ``extra`` becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, default=str)


class Repeats(logging.Filter):
    """Lets what Kafka's client says again and again through every ten seconds only, with how often it was said."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log the record."""
        if not record.name.startswith("pipeline.kafka") and getattr(record, "action", "") != "kafka.error":
            return True
        about = re.sub(r"\d+", "#", f"{record.name} {record.getMessage()}")
        until, held = self._said.get(about, (float("-inf"), 0))
        now = self._clock()
        if now < until:
            self._said[about] = (until, held + 1)
            return False
        self._said[about] = (now + _REPEAT_S, 0)
        if held:
            record.repeated = held
        return True


def configure(level: str = "info") -> None:
    """Log JSON to stderr. Called by commands that own their process, never by the library."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "httpx2", "httpcore", "httpcore2"):  # a line for each request to the registry
        logging.getLogger(name).setLevel(logging.WARNING)
