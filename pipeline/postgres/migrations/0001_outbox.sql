-- The outbox: Debezium's default columns, so that the native relay and Debezium read the same table.
CREATE TABLE pipeline.outbox (
    id            uuid      PRIMARY KEY,                       -- UUIDv7: time-ordered
    aggregatetype text      NOT NULL,                          -- aggregate of an event, queue of a job
    aggregateid   text      NOT NULL,                          -- key of the record
    type          text      NOT NULL,                          -- full name of the Avro record
    payload       bytea,                                       -- registry wire format; NULL: a tombstone
    topic         text      NOT NULL,                          -- where to: the router's route.by.field
    headers       jsonb,
    traceparent   text,
    created_at    timestamp NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    seq           bigint    GENERATED ALWAYS AS IDENTITY,
    xid           xid8      NOT NULL DEFAULT pg_current_xact_id()
) WITH (
    -- rows are written once and deleted once: vacuum by what was inserted and deleted, not by share of the table
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000
);
CREATE UNIQUE INDEX outbox_seq ON pipeline.outbox (seq);

-- Made here, so that the relay's role need not own the table.
CREATE PUBLICATION pipeline_outbox FOR TABLE pipeline.outbox WITH (publish = 'insert');

-- Schema ids for writers, who must not depend on the registry being up.
CREATE TABLE pipeline.schema_id (
    subject     text        NOT NULL,
    fingerprint bytea       NOT NULL,                          -- SHA-256 of the exact schema text
    schema_id   integer     NOT NULL,
    pushed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, fingerprint)
);

-- Where each relay is, and in which server's WAL: a recreated slot or another server must be noticed.
CREATE TABLE pipeline.relay_position (
    slot       text        PRIMARY KEY,
    system_id  text        NOT NULL,
    timeline   integer     NOT NULL,
    lsn        pg_lsn      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- What became of each dead letter. The letters themselves are on the DLQ topics.
CREATE TABLE pipeline.dead_letter (
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    "offset"    bigint      NOT NULL,
    event_id    text,
    type        text,
    fingerprint text        NOT NULL,                          -- of the error: class and place
    error       text        NOT NULL,                          -- class only: messages can quote payload
    died_at     timestamptz NOT NULL,
    state       text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'redriven', 'discarded')),
    changed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, "offset")
);
CREATE INDEX dead_letter_open ON pipeline.dead_letter (topic, died_at) WHERE state = 'open';
CREATE INDEX dead_letter_event ON pipeline.dead_letter (event_id);
