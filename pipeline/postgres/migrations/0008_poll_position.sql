-- Where each relay is that polls. All rows of transactions that snapshot "taken" sees are acknowledged, and of the
-- further ones that "target" sees those up to "seq".
CREATE TABLE pipeline.poll_position (
    slot       text        PRIMARY KEY,                        -- slot.name of the connector file
    system_id  text        NOT NULL,
    timeline   integer     NOT NULL,
    taken      pg_snapshot NOT NULL,
    target     pg_snapshot,
    seq        bigint,
    updated_at timestamptz NOT NULL DEFAULT now()
);
