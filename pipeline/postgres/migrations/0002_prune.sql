-- What pruning remembers: once a relay is at or past lsn, every row with an xid below horizon was published.
CREATE TABLE pipeline.prune_point (
    id       bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    horizon  xid8        NOT NULL,                             -- xmin of a snapshot taken before lsn was read
    lsn      pg_lsn      NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
