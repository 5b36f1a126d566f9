"""Settings and a connector file in, what its topics are missing out; published where that is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from pipeline import reconcile
from pipeline.config import Settings
from pipeline.connect.adjustment import original
from pipeline.connect.converters import AS_TEXT
from pipeline.connect.file import ConnectorFile, load
from pipeline.connect.router import Router
from pipeline.connect.routing import RouterOptions
from pipeline.connect.shards import expanded
from pipeline.connect.tracing import Tracing
from pipeline.connector import Connector
from pipeline.endpoints import kafka_options
from pipeline.errors import ConfigError
from pipeline.kafka.archive import TopicArchive
from pipeline.kafka.producer import RecordProducer
from pipeline.metrics import SilentMeter
from pipeline.postgres.declared import declared
from pipeline.postgres.errors import translated
from pipeline.postgres.liveness import alive
from pipeline.postgres.refused_rows import RefusedRows
from pipeline.postgres.retained import Range, Retained, Source
from pipeline.postgres.snapshot_only import stored_as
from pipeline.postgres.table import captured
from pipeline.relay.delivery import Delivery
from pipeline.runtime.capture import publishes_once
from pipeline.runtime.encoding import converting, encoding
from pipeline.runtime.relay import read_connector
from pipeline.topics import dead_letters

__all__ = ["Reconciliation", "open_reconciliation"]


class Reconciliation:
    """One comparison, and what follows from it. Every method raises PipelineError."""

    def __init__(self, file: ConnectorFile, settings: Settings, dsn: str, comparison: reconcile.Comparison) -> None:
        self._file = file
        self._settings = settings
        self._dsn = dsn
        self._kafka = {**kafka_options(settings), **file.producer}
        self._comparison = comparison

    def compare(self, *, wait_s: float, despite_retention: bool) -> list[reconcile.TopicCount]:
        """Return a count for each topic."""
        return self._comparison.run(wait_s=wait_s, despite_retention=despite_retention)

    def publish(self, step: Callable[[int], None]) -> tuple[int, int]:
        """Publish what is missing; return how many rows, and how many were pruned meanwhile."""
        health = _Reasons()
        missing = self._comparison.missing()
        delivery = Delivery(
            self._file.name,
            lambda: RecordProducer(self._kafka),
            keep=RefusedRows(self._dsn, self._file.name).keep,
            meter=SilentMeter(),
            health=health,
            clock=time.monotonic,
            now=time.time,
        )
        with closing(delivery), ExitStack() as ends:
            encoded = encoding(self._file, self._settings, health, ends)(missing)
            source = converting(self._file, health, ends)(encoded)
            reconcile.publish(source, missing.total, delivery, health.why, step=step)
        return missing.total - missing.pruned, missing.pruned


@contextmanager
def open_reconciliation(
    path: Path, settings: Settings, range_: Range, *, step: Callable[[str], None]
) -> Iterator[Reconciliation]:
    """Give what compares the tables of a connector file with its topics. ``step`` hears what is done."""
    shards = expanded(Connector(*load(path), str(path)))
    files = [read_connector(path, settings, shard=number) for number in range(len(shards))] if len(shards) > 1 else []
    file = files[0] if files else read_connector(path, settings)
    if file.messages is not None and file.tables_text == ".*":
        raise ConfigError(
            f"{path}: logical messages stand in no table: there is nothing to compare topics with",
            remedy="compare with what the writers know, or keep events in a table",
        )
    if not file.retains:
        raise ConfigError(
            f"{path}: pipeline.retain=none: no row stays that topics could be compared with",
            remedy="what is missing is known to the writers alone; let them retain rows from now on, and prune",
        )
    dsn = make_conninfo("", **file.database)
    kafka = {key: text for key, text in {**kafka_options(settings), **file.producer}.items() if _connects(key)}
    names = [stored_as(one.slot) if publishes_once(one) else one.slot for one in files or [file]]
    rows = Retained(dsn, names, _sources(file, dsn, range_), range_)
    with closing(rows), closing(TopicArchive(kafka)) as archive:
        letters = frozenset(dead_letters(one.name) for one in files or [file])
        comparison = reconcile.Comparison(rows, archive, letters, step=step)
        with closing(comparison):
            yield Reconciliation(file, settings, dsn, comparison)


def _connects(key: str) -> bool:
    """Tell whether a producer's setting is for a consumer too."""
    return key.startswith(("bootstrap.", "security.", "sasl.", "ssl.", "client."))


def _sources(file: ConnectorFile, dsn: str, range_: Range) -> list[Source]:
    """Bind the router to the tables that are there: as the relay does, and once more for ids and topics alone."""
    try:
        with psycopg.connect(alive(dsn, "pipeline-reconcile"), autocommit=True) as conn:
            relations = captured(conn, file.captures)
    except psycopg.Error as error:
        raise translated(error) from error
    if not relations:
        raise ConfigError(
            f"connector {file.name}: there is no table that table.include.list={file.tables_text} takes",
            remedy="correct table.include.list or database.dbname",
        )
    made = []
    for relation in relations:
        table = f"{relation.schema}.{relation.table}"
        router = file.router_of(table)
        _check(file, router, range_)
        names_only = replace(
            router, placements=(), payload=router.route_by, event_key=router.route_by, key=AS_TEXT, value=AS_TEXT,
            expansion=None, tombstone_on_empty=False, tracing=Tracing(""), context=(),
        )  # fmt: skip
        own = partial(original, columns=[one.name for one in relation.columns], adjust=router.field_names)
        ordered = "seq" if any(column.name == "seq" for column in relation.columns) else own(router.timestamp)
        columns = [column for column in relation.columns if file.sees(table, column.name)]
        described = partial(declared, dsn, relation.schema, relation.table)
        made.append(
            Source(
                relation,
                Router(names_only, clock=lambda: 0.0).bind(table, columns),
                Router(router).bind(table, columns, described),
                own(router.event_id),
                own(router.timestamp),
                ordered,
            )
        )
    return made


def _check(file: ConnectorFile, router: RouterOptions, range_: Range) -> None:
    """Raise ConfigError where a table's rows cannot be looked up on their topics, or by their time."""
    if (range_.since or range_.until) and not router.timestamp:
        raise ConfigError(
            f"connector {file.name}: --since and --until need a time",
            remedy=f"name a timestamp column by {router.prefix}table.field.event.timestamp, or leave them out",
        )
    if router.header.kind not in {"string", "simple"}:
        raise ConfigError(
            f"connector {file.name}: header.converter does not write ids as their text, by which rows are looked up",
            remedy="use org.apache.kafka.connect.storage.StringConverter",
        )


class _Reasons:
    """Why nothing goes on, as whoever publishes says it."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def ready(self, part: str, *, role: str | None = None) -> None:  # noqa: ARG002 — as Health has it
        self._reasons.pop(part, None)

    def not_ready(self, part: str, why: str) -> None:
        self._reasons[part] = why

    def why(self) -> str:
        return "; ".join(self._reasons.values())
