"""A connector file's changes in, the same connector on Kafka Connect with Debezium and on the native relay out."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Message
from relays import RelayProcess, connector_file, ids, read_topic, until

Conn = psycopg.Connection[tuple[object, ...]]
SIDES = ("debezium", "native")
TRACE = "0af7651916cd43dd8448eb211c80319c"
"""The id of a trace that ``normal`` leaves as it is."""
_READ = (  # a slot is active while it is created, too
    "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY(%s) AND active AND confirmed_flush_lsn IS NOT NULL"
)


def slots_read(conn: psycopg.Connection[Any], captures: Iterable[Capture]) -> int:
    """Return how many of their slots are read."""
    row = conn.execute(_READ, ([one.slot for one in captures],)).fetchone()
    return int(row[0]) if row else 0


class Capture:
    """One side. Started and stopped in good order as often as one likes; its position is kept.

    ``changes`` may have {name}, which is this side's, as how its topics begin.
    """

    def __init__(
        self, side: str, name: str, folder: Path, connect_url: str, environment: Mapping[str, str], database: str,
        changes: Mapping[str, str | None],
    ) -> None:  # fmt: skip
        self.name = f"{name}-{side}"
        self.slot = self.name.replace("-", "_")
        self.topic = f"{self.name}.events"
        placed = {
            "database.dbname": database, "topic.prefix": self.name,
            "transforms.outbox.route.topic.replacement": self.name + ".${routedByValue}",
        }  # fmt: skip
        if "publication.autocreate.mode" in changes:
            placed["publication.name"] = self.slot
        own = {key: value and value.replace("{name}", self.name) for key, value in changes.items()}
        self.file = connector_file(folder, self.name, **{**placed, **own})
        self._side = side
        self._url = connect_url
        self._environment = environment
        self._made = False
        self.relay: RelayProcess | None = None

    def start(self) -> None:
        """Start, or go on."""
        if self._side == "native":
            self.relay = RelayProcess(self.file, self._environment)
        elif self._made:
            self._rest("PUT", "/resume")
        else:
            self._rest("PUT", "/config", json.loads(self.file.read_text())["config"])
            self._made = True

    def change(self, **changes: str) -> None:
        """Give it other options: a native relay that is stopped, or a connector of Debezium's, which starts again."""
        loaded = json.loads(self.file.read_text())
        loaded["config"] |= changes
        self.file.write_text(json.dumps(loaded))
        if self._made:
            self._rest("PUT", "/config", loaded["config"])
            until(lambda: not self.failure(), f"{self.name} starts again", 60)

    def failure(self) -> str:
        """Why it has failed; empty while it has not."""
        if self.relay is not None:
            return self.relay.log if self.relay.process.poll() is not None else ""
        try:
            self.state()
        except AssertionError as error:
            return str(error)
        return ""

    def stop(self) -> None:
        """Stop in good order, and wait for it."""
        if self._side == "native":
            assert self.relay is not None
            assert self.relay.stop() == 0, self.relay.log
        else:
            until(lambda: self.state() == "RUNNING", f"{self.name} runs", 60)
            self._rest("PUT", "/stop")
            until(lambda: self.state() == "", f"{self.name} is stopped", 60)

    def halt(self) -> None:
        """Stop it, also where it has failed."""
        if not self.failure():
            self.stop()
        elif self._side == "debezium":
            self._rest("PUT", "/stop")
            until(lambda: not self._rest("GET", "/status")["tasks"], f"{self.name} is stopped", 60)

    def state(self) -> str:
        """What Connect says of the task; empty where there is none."""
        try:
            tasks = self._rest("GET", "/status")["tasks"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:  # not yet
                    return ""
                raise
        assert not (tasks and tasks[0]["state"] == "FAILED"), tasks[0]["trace"]
        return str(tasks[0]["state"]) if tasks else ""

    def lives(self) -> bool:
        """Raise AssertionError, with the reason, where it has failed."""
        if self.relay is not None:
            assert self.relay.process.poll() is None, self.relay.log
        elif self._made:
            self.state()
        return True

    def end(self) -> None:
        """Remove it, whatever its state."""
        if self.relay is not None:
            self.relay.__exit__(None, None, None)
        elif self._made:
            self._rest("DELETE", "")

    def records(self, bootstrap_servers: str, topic: str = "") -> list[Message]:
        """All that it published."""
        return read_topic(bootstrap_servers, topic or self.topic)

    def has(self, bootstrap_servers: str, row: str) -> bool:
        """Tell whether it published a row, also where JsonConverter wrote its id."""
        return any(one == row or f'"{row}"' in one for one in ids(self.records(bootstrap_servers)))

    def _rest(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self._url}/connectors/{self.name}{path}", method=method, headers={"Content-Type": "application/json"}
        )
        data = json.dumps(body).encode() if body is not None else None
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None


Start = Callable[..., dict[str, Capture]]


def go_on(conn: Conn, pair: Mapping[str, Capture]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Capture.start, pair.values()))
    until(
        lambda: all(one.lives() for one in pair.values()) and slots_read(conn, pair.values()) == 2,
        "both slots are read",
        90,
    )


def published(bootstrap_servers: str, pair: Mapping[str, Capture], last: str) -> dict[str, list[Message]]:
    """Return what both published, once both have a row."""
    for side, one in pair.items():
        until(lambda one=one: one.lives() and one.has(bootstrap_servers, last), f"{side}: the last row", 60)
    return {side: one.records(bootstrap_servers) for side, one in pair.items()}


def content(messages: list[Message]) -> list[object]:
    """Return what is compared of records."""
    return [(one.key(), one.value(), one.headers(), one.timestamp()) for one in messages]


def normal(side: str, message: Message) -> list[tuple[str, str]]:
    """Return headers without what is random: a run's id, a span's, and the id of a trace that began here."""
    made = []
    for name, value in message.headers() or []:
        text = bytes(value or b"").decode().replace(f"-{side}", "")
        if name == "traceparent":
            text = re.sub(rf"-(?!{TRACE})[0-9a-f]{{32}}-", "-new-", text)
            text = re.sub(r"-[0-9a-f]{16}-", "-span-", text)
            text = text.replace("-new-span-03", "-new-span-01")  # Python's SDK says that its id is random
        made.append((name, re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "uuid", text)))
    return made
