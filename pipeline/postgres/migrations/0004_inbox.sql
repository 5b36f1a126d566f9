-- What a group's handlers have done: inserted in the transaction of their effects, so that these happen once.
CREATE TABLE pipeline.inbox (
    event_id   text        NOT NULL,                           -- time-ordered where it is ours: inserts stay together
    group_name text        NOT NULL,
    handler    text        NOT NULL,
    generation integer     NOT NULL DEFAULT 0,                 -- of replays that are meant to repeat effects
    handled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, group_name, handler, generation)
);
CREATE INDEX inbox_handled_at ON pipeline.inbox USING brin (handled_at);
