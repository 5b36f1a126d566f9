"""A connector file in, the source that reads what it names out, and the change from one way of capture to the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from psycopg.conninfo import make_conninfo

from pipeline.capture import Routed
from pipeline.connect.file import ConnectorFile
from pipeline.connect.messages import Messages
from pipeline.connect.router import Router
from pipeline.connect.routing import RouterOptions
from pipeline.errors import SourceError
from pipeline.postgres.changes import Binding
from pipeline.postgres.declared import declared
from pipeline.postgres.layout import insert_parser
from pipeline.postgres.move import ToPolling, ToWal, settle
from pipeline.postgres.pgoutput import Relation
from pipeline.postgres.poll_position import Elsewhere
from pipeline.postgres.polling import PollingSource, PollSettings, Prepare
from pipeline.postgres.publication import Mode
from pipeline.postgres.snapshot import SnapshotSettings
from pipeline.postgres.snapshot_only import SnapshotOnly
from pipeline.postgres.wal import WalSettings, WalSource
from pipeline.relay import Relay, Source, Stop

__all__ = ["binding", "publishes_once", "run_captured", "wal_settings"]

log = logging.getLogger(__name__)


def run_captured(
    dsn: str, file: ConnectorFile, relay: Callable[[Source], Relay], until: threading.Event, at_once: Stop | None
) -> None:
    """Run the relay; where the table was captured in the other way until now, move it first."""
    move: ToPolling | ToWal | None = None
    while not until.is_set():
        try:
            if move is None:
                relay(_source(dsn, file)).run(until, at_once=at_once)
            else:
                relay(move).run(_Moved(until, move), at_once=at_once)
                if not move.finish() and until.is_set():
                    move.abandon()
                move = None
        except Elsewhere as error:
            log.info(error.what, extra={"action": "move.needed", "connector": file.name})
            move = _move(dsn, file) if move is None else None
        except SourceError as error:  # of the move: what is under way begins again
            if move is None or not error.retryable:
                raise
            move = None


class _Moved:
    """Tells a relay that moves to stop: because it is to, or because it is done."""

    def __init__(self, until: Stop, move: ToPolling | ToWal) -> None:
        self._until = until
        self._move = move

    def is_set(self) -> bool:
        """Tell whether to stop."""
        return self._until.is_set() or self._move.done


def _move(dsn: str, file: ConnectorFile) -> ToPolling | ToWal:
    if file.polls:
        return ToPolling(dsn, file.slot, WalSource(dsn, wal_settings(file), binding(file)))
    return ToWal(dsn, file.slot, partial(_polling, dsn, file), failover=file.failover)


def wal_settings(file: ConnectorFile) -> WalSettings:
    """Return what the source has to know of a connector file."""
    return WalSettings(
        slot=file.slot,
        publication=file.publication,
        wanted=file.captures,
        wanted_text=file.tables_text,
        creates=cast(Mode, file.creates),
        by_root=file.by_root,
        failover=file.failover,
        trust_slot=file.trust_slot,
        snapshot=_snapshot(file),
        drops=file.drops,
        stream=file.stream,
        status_every_s=file.status_every_s,
    )


def _source(dsn: str, file: ConnectorFile) -> Source:
    if file.polls:
        return _polling(dsn, file, partial(settle, dsn, file.slot))
    bind, snapshot = binding(file), _snapshot(file)
    if snapshot is not None and publishes_once(file):
        return SnapshotOnly(dsn, file.slot, snapshot, bind)
    messages = Messages(file.messages) if file.messages else None
    return WalSource(dsn, wal_settings(file), bind, messages=messages)


def publishes_once(file: ConnectorFile) -> bool:
    """Tell whether a connector publishes what is there, once, and reads no slot."""
    return not file.polls and file.snapshot is not None and not file.snapshot.streams


def _polling(dsn: str, file: ConnectorFile, prepare: Prepare) -> PollingSource:
    def bind(found: Relation) -> tuple[Sequence[str], Callable[..., Routed]]:
        table = f"{found.schema}.{found.table}"
        columns = [column for column in found.columns if file.sees(table, column.name)]
        return Router(file.router_of(table)).bind(table, columns, partial(declared, dsn, found.schema, found.table))

    settings = PollSettings(
        slot=file.slot,
        wanted=file.captures,
        wanted_text=file.tables_text,
        payload=file.routers[0].payload,
        seq=file.polling.seq,
        xid=file.polling.xid,
        every_s=file.polling.every_s,
        adjust=file.routers[0].field_names,
    )
    return PollingSource(dsn, settings, bind, prepare=prepare)


def _snapshot(file: ConnectorFile) -> SnapshotSettings | None:
    options = file.snapshot
    if options is None:
        return None

    def wanted(schema: str, table: str) -> bool:
        return file.captures(schema, table) and options.included(f"{schema}.{table}")

    return SnapshotSettings(
        when=options.when,
        repairs=options.repairs,
        wanted=wanted,
        wanted_text=options.included_text,
        selects=options.selects,
        stamp_now=options.stamp_now,
        delay_s=options.delay_s,
        lock_timeout_s=options.lock_timeout_s,
        may_be_empty=file.messages is not None,
        statements=file.statements,
    )


def binding(file: ConnectorFile) -> Binding:
    """Return what makes records of a table's rows."""
    dsn = make_conninfo("", **file.database)

    def on_update(router: RouterOptions) -> None:
        if router.on_update == "skip":
            return
        if router.on_update == "fatal":
            raise SourceError(
                f"connector {file.name}: a row of the outbox was updated",
                remedy=f"set {router.prefix}table.op.invalid.behavior=warn, and let nobody update rows",
            )
        level = logging.ERROR if router.on_update == "error" else logging.WARNING
        log.log(level, "an update was ignored", extra={"action": "relay.update", "connector": file.name})

    def bind(relation: Relation) -> tuple[Callable[[bytes, int], Routed], Callable[[], None]] | None:
        if not file.captures(relation.schema, relation.table):
            return None
        table = f"{relation.schema}.{relation.table}"
        columns = [column for column in relation.columns if file.sees(table, column.name)]
        router = file.router_of(table)
        names, route = Router(router).bind(table, columns, partial(declared, dsn, relation.schema, relation.table))
        return insert_parser(relation, names, route), partial(on_update, router)

    return bind
