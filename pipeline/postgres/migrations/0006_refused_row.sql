-- Rows whose value neither their topic nor the DLQ takes: their bytes, byte for byte. Whoever mends them deletes them.
CREATE TABLE pipeline.refused_row (
    number     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connector  text        NOT NULL,
    event_id   text        NOT NULL,
    topic      text        NOT NULL,                           -- the one that was meant
    key        bytea,
    value      bytea       NOT NULL,
    headers    jsonb       NOT NULL,                           -- [name, base64 or null], in order; with the story, as of a letter
    at_ms      bigint      NOT NULL,                           -- the record's timestamp
    refused_at timestamptz NOT NULL DEFAULT now()
);
-- A relay that crashed comes by again with the same bytes.
CREATE UNIQUE INDEX refused_row_once ON pipeline.refused_row (connector, event_id, sha256(value));
