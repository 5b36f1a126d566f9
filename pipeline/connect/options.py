"""What is known of each key of a connector file: honoured, without meaning in the native relay, or not honoured yet.

Taken from Debezium 3.7's PostgreSQL connector, its Event Router, and Kafka Connect's source connectors.
"""

from __future__ import annotations

from pipeline.connect.converters import CLASSES, OF_HEADERS, SIMPLE

__all__ = ["DECODER", "HONOURED", "NOT_YET", "PREDICATES", "PRODUCER", "ROUTER", "WITHOUT_MEANING"]


# key → values that are honoured (empty: any), and what its absence means
HONOURED: dict[str, tuple[tuple[str, ...], str]] = {
    "name": ((), ""),
    "connector.class": (("io.debezium.connector.postgresql.PostgresConnector",), ""),
    "database.hostname": ((), ""),
    "database.port": ((), "5432"),
    "database.user": ((), ""),
    "database.password": ((), ""),
    "database.dbname": ((), ""),
    "database.sslmode": (("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), "prefer"),
    "database.sslcert": ((), ""),
    "database.sslkey": ((), ""),
    "database.sslpassword": ((), ""),
    "database.sslrootcert": ((), ""),
    "database.initial.statements": ((), ""),
    "plugin.name": (("pgoutput",), "decoderbufs"),
    "slot.name": ((), "debezium"),
    "slot.failover": (("true", "false"), "false"),
    "slot.drop.on.stop": (("true", "false"), "false"),
    "slot.stream.params": ((), ""),
    "message.prefix.include.list": ((), ""),
    "message.prefix.exclude.list": ((), ""),
    "status.update.interval.ms": ((), "10000"),
    "publication.name": ((), "dbz_publication"),
    "publication.autocreate.mode": (("disabled", "filtered", "all_tables", "no_tables"), "all_tables"),
    "publish.via.partition.root": (("true", "false"), "false"),
    "table.include.list": ((), ""),
    "table.exclude.list": ((), ""),
    "schema.include.list": ((), ""),
    "schema.exclude.list": ((), ""),
    "column.include.list": ((), ""),
    "column.exclude.list": ((), ""),
    "snapshot.mode": (
        ("initial", "no_data", "when_needed", "always", "initial_only", "configuration_based"),
        "initial",
    ),
    "snapshot.mode.configuration.based.snapshot.data": (("true", "false"), "false"),
    "snapshot.mode.configuration.based.snapshot.on.data.error": (("true", "false"), "false"),
    "snapshot.mode.configuration.based.start.stream": (("true", "false"), "false"),
    "snapshot.include.collection.list": ((), ""),
    "snapshot.select.statement.overrides": ((), ""),
    "snapshot.query.mode": (("select_all",), "select_all"),
    "snapshot.locking.mode": (("none", "shared"), "none"),
    "snapshot.lock.timeout.ms": ((), "10000"),
    "snapshot.delay.ms": ((), "0"),
    "pipeline.snapshot.timestamp": (("row", "now"), "row"),  # ours
    "offset.mismatch.strategy": (
        ("no_validation", "trust_offset", "trust_slot", "trust_greater_lsn"),
        "no_validation",
    ),
    "lsn.flush.mode": (("connector", "connector_and_driver"), "connector"),
    "flush.lsn.source": (("true",), "true"),
    "read.only": (("true", "false"), "false"),  # only signals are read in another way
    "exactly.once.support": (("requested",), "requested"),
    "heartbeat.interval.ms": ((), "0"),
    "heartbeat.action.query": ((), ""),
    "topic.heartbeat.prefix": ((), "__debezium-heartbeat"),
    "topic.heartbeat.name": ((), ""),
    "binary.handling.mode": (("bytes", "base64", "base64-url-safe", "hex"), "bytes"),
    "decimal.handling.mode": (("precise", "double", "string"), "precise"),
    "time.precision.mode": (
        ("adaptive", "adaptive_time_microseconds", "microseconds", "nanoseconds", "connect", "isostring"),
        "adaptive",
    ),
    "schema.name.adjustment.mode": (("none", "avro", "avro_unicode"), "none"),
    "field.name.adjustment.mode": (("none", "avro", "avro_unicode"), "none"),
    "skipped.operations": ((), "t"),
    "extended.headers.enabled": (("true", "false"), "true"),
    "key.converter": (CLASSES, ""),
    "value.converter": (CLASSES, ""),
    "header.converter": (OF_HEADERS, SIMPLE),
    "transforms": ((), ""),
    "predicates": ((), ""),
    "topic.creation.groups": ((), ""),
    "topic.prefix": ((), ""),
    "topic.delimiter": ((), "."),
    "poll.interval.ms": ((), "500"),
    # ours: Kafka Connect passes over them
    "pipeline.payload.encode": (("none", "avro"), "none"),
    "pipeline.capture": (("wal", "polling"), "wal"),
    "pipeline.retain": (("pruned", "none"), "pruned"),
    "pipeline.polling.seq": ((), "seq"),
    "pipeline.polling.xid": ((), "xid"),
}

# of any transform
_TRANSFORM: dict[str, tuple[tuple[str, ...], str]] = {
    "predicate": ((), ""),
    "negate": (("true", "false"), "false"),
    "plugin.version": ((), ""),
}

# of a transform io.debezium.transforms.outbox.EventRouter
ROUTER: dict[str, tuple[tuple[str, ...], str]] = {
    "type": (("io.debezium.transforms.outbox.EventRouter",), ""),
    "table.field.event.id": ((), "id"),
    "table.field.event.key": ((), "aggregateid"),
    "table.field.event.type": ((), "type"),
    "table.field.event.payload": ((), "payload"),
    "table.field.event.timestamp": ((), ""),
    "table.field.event.schema.version": ((), ""),
    "table.fields.additional.placement": ((), ""),
    "table.field.additional.missing": (("error", "ignore"), "error"),
    "table.op.invalid.behavior": (("warn", "error", "fatal"), "warn"),
    "table.expand.json.payload": (("true", "false"), "false"),
    "field.name.adjustment.mode": (("none", "avro", "avro_unicode"), "none"),  # of the expanded payload
    "table.json.payload.null.behavior": (("ignore", "optional_bytes"), "ignore"),
    "table.json.payload.empty.array.behavior": (("ignore", "optional_string"), "ignore"),
    "route.by.field": ((), "aggregatetype"),
    "route.topic.regex": ((), "(?<routedByValue>.*)"),
    "route.topic.replacement": ((), "outbox.event.${routedByValue}"),
    "route.tombstone.on.empty.payload": (("true", "false"), "false"),
    "tracing.span.context.field": ((), "tracingspancontext"),
    "tracing.operation.name": ((), "debezium-read"),
    "tracing.with.context.field.only": (("true", "false"), "true"),  # to the router, where it is not given
    **_TRANSFORM,
}

# of io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent, before it
DECODER: dict[str, tuple[tuple[str, ...], str]] = {
    "type": ((), ""),
    "fields.null.include": (("true", "false"), "false"),
    **_TRANSFORM,
}

# class of a predicate → its one option
PREDICATES: dict[str, str] = {
    "org.apache.kafka.connect.transforms.predicates.TopicNameMatches": "pattern",
    "org.apache.kafka.connect.transforms.predicates.HasHeaderKey": "name",
    "org.apache.kafka.connect.transforms.predicates.RecordIsTombstone": "",
}

# key or prefix (with a dot at its end) → why it does nothing here
WITHOUT_MEANING: dict[str, str] = {
    "pipeline.label": "it says which connectors --prune may delete",
    "tasks.max": "one slot is read by one process",
    "tasks.max.enforce": "one slot is read by one process",
    "connector.plugin.version": "this is no plugin",
    "tombstones.on.delete": "the router drops what deletes make",
    "poll.dispatch.interval.ms": "the relay has no queue to poll",
    "query.fetch.size": "rows come one by one",
    "queue.provider.": "what is in flight is bounded by bytes",
    "memory.management.": "layouts are kept in memory",
    "custom.retriable.exception": "errors of the server are told apart by their SQLSTATE",
    "custom.sanitize.pattern": "secrets are not logged",
    "internal.": "it is Debezium's own",
    "max.batch.size": "batches are bounded by bytes",
    "max.queue.size": "what is in flight is bounded by bytes",
    "max.queue.size.in.bytes": "what is in flight is bounded by bytes",
    "slot.max.retries": "the relay stands by until the slot is free",
    "slot.retry.delay.ms": "the relay looks each second whether the slot is free",
    "errors.": "rows that cannot be routed go to <connector>.dlq",
    "retriable.restart.connector.wait.ms": "the relay reconnects by itself",
    "lsn.flush.": "positions are confirmed once they are acknowledged",
    "xmin.fetch.interval.ms": "offsets are LSNs",
    "offsets.storage.topic": "positions are in pipeline.relay_position",
    "transaction.boundary": "positions are confirmed transaction by transaction",
    "transaction.boundary.interval.ms": "positions are confirmed transaction by transaction",
    "transaction.metadata.factory": "the router drops it",
    "message.key.columns": "the router makes the key",
    "skip.messages.without.change": "updates are not published",
    "event.": "a row that is wrong goes to <connector>.dlq",
    "unavailable.value.placeholder": "an insert has all of its values",
    "replica.identity.autoset.values": "inserts need no replica identity, and none is changed",
    "table.ignore.builtin": "no publication has tables of the system",
    "guardrail.": "layouts come with the stream, of the tables that are read only",
    "incremental.snapshot.": "there are no signals: pipeline connector reconcile publishes what is missing",
    "include.schema.changes": "the router makes outbox events only",
    "include.schema.comments": "the router makes outbox events only",
    "provide.transaction.metadata": "no records of transactions are published",
    "include.unknown.datatypes": "only columns that the router uses are read",
    "interval.handling.mode": "intervals are not used by the router",
    "hstore.handling.mode": "hstore is not used by the router",
    "money.fraction.digits": "money is not used by the router",
    "schema.refresh.mode": "layouts come with the stream",
    "snapshot.fetch.size": "a snapshot is one COPY of each table, bounded by bytes",
    "snapshot.isolation.mode": "a snapshot is one transaction of REPEATABLE READ, READ ONLY",
    "snapshot.max.threads": "a snapshot has one thread, so that rows keep their order",
    "snapshot.max.threads.multiplier": "a snapshot has one thread",
    "legacy.snapshot.max.threads": "a snapshot has one thread",
    "snapshot.tables.order.by.row.count": "tables are read by name, one after the other",
    "snapshot.mode.configuration.based.snapshot.schema": "layouts come with the rows",
    "snapshot.mode.configuration.based.snapshot.on.schema.error": "layouts come with the rows",
    "database.tcpKeepAlive": "keepalives are on",
    "database.query.timeout.ms": "no query is long",
    "connection.": "the relay has time limits of its own",
    "custom.metric.tags": "metrics are named by connector",
    "statistics.metrics.enabled": "metrics are always on",
    "executor.shutdown.timeout.ms": "the relay drains on SIGTERM",
    "sourceinfo.struct.maker": "the router drops it",
    "heartbeat.topics.prefix": "Debezium 3 reads topic.heartbeat.prefix instead",
    "topic.naming.strategy": "the router names the topics",
    "topic.cache.size": "the router names the topics",
    "topic.transaction": "no records of transactions are published",
    "config.action.reload": "the file is read at start",
}

# keys or prefixes that mean something, and that the relay refuses for now
NOT_YET: tuple[str, ...] = (
    "heartbeat.",
    "column.",
    "datatype.propagate.source.type",
    "converters",
    "signal.",
    "snapshot.",
    "post.processors",
    "database.sslfactory",
    "database.",
    "driver.",
    "notification.",
    "openlineage.",
    "initial.statements",
    "streaming.delay.ms",
)

# Java's producer settings, behind producer.override. → librdkafka's; None: librdkafka needs no such setting
PRODUCER: dict[str, str | None] = {
    "bootstrap.servers": "bootstrap.servers",
    "client.id": "client.id",
    "compression.type": "compression.type",
    "linger.ms": "linger.ms",
    "batch.size": "batch.size",
    "max.request.size": "message.max.bytes",
    "request.timeout.ms": "request.timeout.ms",
    "max.in.flight.requests.per.connection": "max.in.flight.requests.per.connection",
    "retry.backoff.ms": "retry.backoff.ms",
    "reconnect.backoff.ms": "reconnect.backoff.ms",
    "reconnect.backoff.max.ms": "reconnect.backoff.max.ms",
    "send.buffer.bytes": "socket.send.buffer.bytes",
    "receive.buffer.bytes": "socket.receive.buffer.bytes",
    "metadata.max.age.ms": "metadata.max.age.ms",
    "security.protocol": "security.protocol",
    "sasl.mechanism": "sasl.mechanism",
    "sasl.kerberos.service.name": "sasl.kerberos.service.name",
    "ssl.key.password": "ssl.key.password",
    "ssl.endpoint.identification.algorithm": "ssl.endpoint.identification.algorithm",
    "buffer.memory": None,
    "max.block.ms": None,
    "delivery.timeout.ms": None,
    "acks": None,
    "enable.idempotence": None,
    "retries": None,
}
