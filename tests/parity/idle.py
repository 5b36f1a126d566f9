"""Keys that change no record, with other values than their defaults where Debezium knows one."""

from __future__ import annotations

__all__ = ["IDLE"]

IDLE = {
    "lsn.flush.mode": "connector_and_driver", "flush.lsn.source": "true", "read.only": "true",
    "errors.tolerance": "all", "slot.failover": "true", "slot.stream.params": "origin=none",
    "status.update.interval.ms": "200", "snapshot.locking.mode": "shared", "snapshot.lock.timeout.ms": "5000",
    "snapshot.query.mode": "select_all", "exactly.once.support": "requested", "poll.interval.ms": "50",
    "max.batch.size": "2", "max.queue.size": "3", "max.queue.size.in.bytes": "100000",
    "topic.delimiter": "_", "heartbeat.topics.prefix": "elsewhere", "field.name.adjustment.mode": "avro",
    # without meaning in the native relay
    "tasks.max": "1", "tasks.max.enforce": "false", "query.fetch.size": "2", "custom.sanitize.pattern": ".*",
    "slot.max.retries": "60", "slot.retry.delay.ms": "500", "errors.log.enable": "true", "errors.retry.timeout": "1000",
    "errors.retry.delay.max.ms": "500", "errors.log.include.messages": "true", "errors.max.retries": "3",
    "retriable.restart.connector.wait.ms": "500", "lsn.flush.timeout.ms": "20000", "lsn.flush.timeout.action": "warn",
    "xmin.fetch.interval.ms": "100", "transaction.boundary": "interval", "transaction.boundary.interval.ms": "500",
    "message.key.columns": "pipeline.outbox:type", "skip.messages.without.change": "true",
    "event.processing.failure.handling.mode": "warn", "event.converting.failure.handling.mode": "skip",
    "unavailable.value.placeholder": "gone", "replica.identity.autoset.values": "pipeline.outbox:DEFAULT",
    "table.ignore.builtin": "false", "guardrail.collections.max": "5", "guardrail.collections.limit.action": "fail",
    "incremental.snapshot.chunk.size": "7", "include.schema.comments": "true",
    "include.unknown.datatypes": "true", "interval.handling.mode": "string", "hstore.handling.mode": "map",
    "schema.refresh.mode": "columns_diff_exclude_unchanged_toast", "snapshot.fetch.size": "2",
    "snapshot.isolation.mode": "read_committed", "snapshot.max.threads": "2", "snapshot.max.threads.multiplier": "2",
    "snapshot.tables.order.by.row.count": "descending", "database.tcpKeepAlive": "false",
    "database.query.timeout.ms": "50000", "connection.validation.timeout.ms": "5000", "custom.metric.tags": "k=v",
    "statistics.metrics.enabled": "false", "executor.shutdown.timeout.ms": "3000", "topic.cache.size": "7",
    "topic.transaction": "aside", "config.action.reload": "none", "tombstones.on.delete": "true",
    "sourceinfo.struct.maker": "io.debezium.connector.postgresql.PostgresSourceInfoStructMaker",
    "topic.naming.strategy": "io.debezium.schema.SchemaTopicNamingStrategy",
    "connector.plugin.version": "3.7.0.Final", "poll.dispatch.interval.ms": "5", "pipeline.label": "parity",
    "memory.management.schemas.class": "io.debezium.relational.ConcurrentMapTableMappingStorage",
    "internal.advanced.metrics.enable": "true", "money.fraction.digits": "3", "legacy.snapshot.max.threads": "true",
    "transaction.metadata.factory": "io.debezium.pipeline.txmetadata.DefaultTransactionMetadataFactory",
    "custom.retriable.exception": ".*never.*", "include.schema.changes": "false", "queue.provider.type": "memory",
    "offsets.storage.topic": "{name}.offsets", "snapshot.mode.configuration.based.snapshot.schema": "true",
    "snapshot.mode.configuration.based.snapshot.on.schema.error": "true",
}  # fmt: skip
