"""The same rows in, the records that Debezium 3.7 and the native relay each make of them out.

One Debezium connector with one router per group, kept apart by predicates, and another one for text values; one
native relay per group, as it runs a file with one router.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from cases import CASES, CONVERTERS, RESTART, SHIPPED, Group, Writer
from confluent_kafka import Message
from crew import Crew
from relays import CONNECTOR, RelayProcess, connector_file, read_topic, until
from servers import Database, Topics

Record = tuple[str, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...], int]
"""Topic without its side's prefix, partition, key, value, headers, timestamp.

Not compared, as each client chooses: the partition of a record without key (-1), the time of the processing (0).
"""

_ROUTER = "transforms.outbox."
_SIDES = ("debezium", "native")
_TIMESTAMP = "table.field.event.timestamp"
UNTIMED = "outbox.event.order"  # the time of the processing


@dataclass(frozen=True, slots=True)
class Parity:
    """``written``: case → ids. ``records``: side → id → its record, in the order of the partitions."""

    written: Mapping[str, list[str]]
    records: Mapping[str, Mapping[str, Record]]


@contextmanager
def published(
    groups: list[Group], connect_url: str, bootstrap_servers: str, environment: Mapping[str, str],
    database: Database, prefix: str, folder: Path,
) -> Iterator[Parity]:  # fmt: skip
    """Run both captures, write all cases' rows, wait for the records of both."""
    topics = Topics(bootstrap_servers)
    names = [f"{prefix}.{side}.{name}" for side in _SIDES for name in _topics(groups)]
    topics.create(*names, partitions=4)
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        for group in groups:
            group.create(conn)
        tables = ", ".join(table for group in groups for table in group.tables)
        conn.execute(f"CREATE PUBLICATION parity FOR TABLE {tables} WITH (publish_via_partition_root = true)")
        with ExitStack() as stack:
            connectors = [
                _debezium(prefix, database.name, groups, value) for value in dict.fromkeys(one.value for one in groups)
            ]
            for name, config in connectors:
                stack.callback(_rest, connect_url, "DELETE", f"/connectors/{name}")
                _rest(connect_url, "PUT", f"/connectors/{name}/config", config)
            files = {group.name: _native(folder, prefix, database.name, group) for group in groups}
            shipped = files.pop(SHIPPED.name, None)
            relays = [stack.enter_context(Crew(list(files.values()), environment))]
            if shipped:
                relays.append(stack.enter_context(RelayProcess(shipped, environment)))
            for relay in relays:
                relay.reading()
            active = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active"
            slots = len(groups) + len(connectors)
            until(lambda: conn.execute(active).fetchone() == (slots,), "all slots are read", 60)
            written = {
                case: write(Writer(conn, database.dsn, group))
                for case, (group, write) in CASES.items()
                if group in groups
            }
            if shipped:
                written[RESTART] = _restarted(
                    stack, database.dsn, connect_url, connectors[0][0], relays, shipped, environment
                )
            wanted = {name for ids in written.values() for name in ids}

            def both_run() -> None:
                for name, _ in connectors:
                    _running(connect_url, name)
                assert all(relay.process.poll() is None for relay in relays), [relay.log for relay in relays]

            found = {side: _all(bootstrap_servers, prefix, side, _topics(groups), wanted, both_run) for side in _SIDES}
            for relay in relays:
                relay.process.terminate()
        untimed = {UNTIMED, *(one.name for one in groups if one.options.get(_TIMESTAMP, "") is None)}
        yield Parity(written, _compared(found, prefix, untimed))
    topics.delete([*names, *topics.names(f"{prefix}-")])


def _topics(groups: list[Group]) -> list[str]:
    named = [group.name for group in groups if group.options.get("route.by.field", "topic") in {"topic", "place"}]
    return [*named, "shop-order-events", "crm-customer_1-events", UNTIMED]


def _restarted(
    stack: ExitStack, dsn: str, connect_url: str, connector: str, relays: list[RelayProcess], shipped: Path,
    environment: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Write rows all the time, while Debezium's task is restarted and the native relay killed and started again."""
    made: list[str] = []
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            writer = Writer(own, dsn, SHIPPED)
            while not enough.wait(0.01):
                made.append(writer.row(aggregateid=f"r{len(made) % 7}", payload=str(len(made)).encode()))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(made) > 10, "rows before")
        _rest(connect_url, "POST", f"/connectors/{connector}/restart?includeTasks=true")
        relays[1].kill()
        relays[1] = stack.enter_context(RelayProcess(shipped, environment)).reading()
        before = len(made)
        until(lambda: len(made) > before + 10, "rows after")
    finally:
        enough.set()
        writer.join()
    return made


def _debezium(prefix: str, database: str, all_groups: list[Group], value: str) -> tuple[str, dict[str, str]]:
    """Return the connector that has a router for each group, under a predicate on the tables that it serves."""
    groups = [group for group in all_groups if group.value == value]
    name = f"{prefix}-debezium-{value}"
    base = json.loads(CONNECTOR.read_text())["config"]
    config = {key: value for key, value in base.items() if not key.startswith(_ROUTER)}
    config |= _connector(database, name, [table for group in groups for table in group.tables], value)
    config |= {"transforms": ",".join(group.name for group in groups)}
    config |= {"predicates": config["transforms"]}
    for group in groups:
        tables = "|".join(table.replace(".", "\\.") for table in group.tables)
        config |= {
            f"predicates.{group.name}.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
            f"predicates.{group.name}.pattern": f"{name}\\.({tables})",
            f"transforms.{group.name}.predicate": group.name,
        }
        router = _router(base, f"{prefix}.debezium.", group)
        config |= {f"transforms.{group.name}.{key}": value for key, value in router.items() if value is not None}
    return name, config


def _native(folder: Path, prefix: str, database: str, group: Group) -> Path:
    base = json.loads(CONNECTOR.read_text())["config"]
    router = _router(base, f"{prefix}.native.", group)
    changes = _connector(database, f"{prefix}-{group.name}", list(group.tables), group.value)
    changes["topic.prefix"] = f"{prefix}-debezium-{group.value}"  # it is part of the names of schemas
    return connector_file(
        folder, f"{prefix}-{group.name}", **changes, **{_ROUTER + key: value for key, value in router.items()}
    )


def _connector(database: str, name: str, tables: list[str], value: str) -> dict[str, str]:
    config = {
        "database.dbname": database, "topic.prefix": name, "slot.name": name.replace("-", "_"),
        "publication.name": "parity", "table.include.list": ",".join(table.replace(".", "\\.") for table in tables),
        "producer.override.max.request.size": "2000000",
    }  # fmt: skip
    config |= CONVERTERS[value]
    return config


def _router(base: dict[str, str], topics: str, group: Group) -> dict[str, str | None]:
    """Return our file's router with a group's changes; its topics begin with the name of the side."""
    ours = {key.removeprefix(_ROUTER): value for key, value in base.items() if key.startswith(_ROUTER)}
    made = ours | group.options
    made["route.topic.replacement"] = f"{topics}{made['route.topic.replacement']}"
    return made


def _all(
    bootstrap_servers: str, prefix: str, side: str, names: list[str], wanted: set[str], both_run: Callable[[], None]
) -> list[Message]:
    """Read all topics of a side once they have all rows."""

    def complete() -> list[Message]:
        both_run()
        read = pool.map(lambda name: read_topic(bootstrap_servers, f"{prefix}.{side}.{name}"), names)
        messages = [message for found in read for message in found]
        return messages if wanted <= {_id(message) for message in messages} else []

    with ThreadPoolExecutor(8) as pool:
        return until(complete, f"all rows, by {side}", 60)


def _compared(found: Mapping[str, list[Message]], prefix: str, untimed: set[str]) -> dict[str, dict[str, Record]]:
    """Take the first of each row's records, as both may publish some again after a restart."""
    records: dict[str, dict[str, Record]] = {}
    for side, messages in found.items():
        first: dict[str, Record] = {}
        for message in messages:
            topic = (message.topic() or "").removeprefix(f"{prefix}.{side}.")
            time = 0 if topic in untimed else message.timestamp()[1]
            headers: Any = message.headers() or []
            partition = -1 if message.key() is None else message.partition() or 0
            record = (topic, partition, message.key(), message.value(), tuple(headers), time)
            first.setdefault(_id(message), record)
        records[side] = first
    return records


def _id(message: Message) -> str:
    headers: Any = message.headers() or []
    text = bytes(dict(headers)["id"]).decode()
    if text[0] not in '{"':
        return text
    found = json.loads(text)  # by JsonConverter
    return str(found["payload"] if isinstance(found, dict) else found)


def _running(url: str, connector: str) -> None:
    with urllib.request.urlopen(f"{url}/connectors/{connector}/status", timeout=60) as answer:
        tasks = json.load(answer)["tasks"]
    failed = [task["trace"] for task in tasks if task["state"] == "FAILED"]
    assert not failed, f"{connector}: {[line for line in failed[0].splitlines() if 'Exception' in line]}"


def _rest(url: str, method: str, path: str, body: Mapping[str, str] | None = None) -> None:
    request = urllib.request.Request(url + path, method=method, headers={"Content-Type": "application/json"})
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(request, data, timeout=60):
        pass
