-- Jobs: what is asked of them, what waits for its time, what comes again and again, and what people command.

-- One row for each tracked job, written with its enqueue. UUIDv7 ids: the newest is the largest.
CREATE TABLE pipeline.job (
    id          uuid        PRIMARY KEY,
    queue       text        NOT NULL,                          -- full name: the queue's topic and group
    type        text        NOT NULL,
    state       text        NOT NULL CHECK (state IN
                  ('blocked', 'delayed', 'waiting', 'running', 'retrying', 'done', 'dead', 'cancelled')),
    priority    text        NOT NULL DEFAULT 'normal',
    tags        text[],
    attempts    integer     NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at      timestamptz,                                   -- of a delayed or retrying one
    started_at  timestamptz,
    finished_at timestamptz,
    seen_at     timestamptz,                                   -- last sign of life of its handler
    worker      text,
    progress    float8,
    total       float8,
    result      jsonb,
    error       text,                                          -- class only: messages can quote payload
    unique_key  text,
    parent      uuid,                                          -- of a flow's child
    place       integer     NOT NULL DEFAULT 0,                -- among its parent's children
    on_failure  text,                                          -- what its failure means to the parent
    told        boolean     NOT NULL DEFAULT false,            -- whether the parent has counted it
    children    integer     NOT NULL DEFAULT 0,                -- those that a blocked one still waits for
    cancel_at   timestamptz                                    -- when somebody asked for its end
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX job_state ON pipeline.job (queue, type, state, id);
CREATE INDEX job_tags ON pipeline.job USING gin (tags) WHERE tags IS NOT NULL;
CREATE INDEX job_parent ON pipeline.job (parent) WHERE parent IS NOT NULL;
CREATE INDEX job_cancel ON pipeline.job (queue)
    WHERE cancel_at IS NOT NULL AND state IN ('waiting', 'running', 'retrying');

-- How many there are, by state: changes are appended, so that no two transactions wait for each other, and folded.
CREATE TABLE pipeline.job_count (
    queue text NOT NULL, type text NOT NULL, state text NOT NULL, count bigint NOT NULL,
    PRIMARY KEY (queue, type, state)
);
CREATE TABLE pipeline.job_delta (queue text NOT NULL, type text NOT NULL, state text NOT NULL, count bigint NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION pipeline.count_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO pipeline.job_delta SELECT queue, type, state, count(*) FROM made GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO pipeline.job_delta SELECT queue, type, state, -count(*) FROM gone GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO pipeline.job_delta
        SELECT queue, type, state, sum(n) FROM (
            SELECT queue, type, state, count(*) AS n FROM made GROUP BY 1, 2, 3
            UNION ALL SELECT queue, type, state, -count(*) FROM gone GROUP BY 1, 2, 3) AS both_sides
        GROUP BY 1, 2, 3 HAVING sum(n) <> 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER count_made AFTER INSERT ON pipeline.job
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION pipeline.count_jobs();
CREATE TRIGGER count_changed AFTER UPDATE ON pipeline.job
    REFERENCING OLD TABLE AS gone NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION pipeline.count_jobs();
CREATE TRIGGER count_gone AFTER DELETE ON pipeline.job
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION pipeline.count_jobs();

-- Who holds a unique key. until NULL: while the job is unfinished.
CREATE TABLE pipeline.job_key (
    key    text        PRIMARY KEY,
    job_id uuid        NOT NULL,
    until  timestamptz
);
CREATE INDEX job_key_until ON pipeline.job_key (until) WHERE until IS NOT NULL;

-- Outbox rows, encoded, whose time has not come. 'infinity': waits for its children.
CREATE TABLE pipeline.due (
    id            uuid        PRIMARY KEY,
    due_at        timestamptz NOT NULL,
    aggregatetype text        NOT NULL,
    aggregateid   text        NOT NULL,
    type          text        NOT NULL,
    payload       bytea,
    topic         text        NOT NULL,
    headers       jsonb,
    traceparent   text
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
CREATE INDEX due_at ON pipeline.due (due_at);

-- Schedules as the newest process has declared them, and the ticks that were made of them.
CREATE TABLE pipeline.schedule (
    name       text        PRIMARY KEY,                        -- with prefix and application
    cron       text        NOT NULL,
    timezone   text        NOT NULL,
    missed     text        NOT NULL,
    overlap    text        NOT NULL,
    queue      text        NOT NULL,
    last_at    timestamptz NOT NULL,                           -- ticks up to here were decided about
    paused     boolean     NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE pipeline.tick (
    schedule text        NOT NULL,
    at       timestamptz NOT NULL,
    job_id   uuid,                                             -- NULL: left out, the one before was unfinished
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schedule, at)
);

-- What people command of a queue; every worker reads it each second.
CREATE TABLE pipeline.control (
    queue      text        PRIMARY KEY,
    paused     boolean     NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- What is left of a queue's rate, shared by all workers.
CREATE TABLE pipeline.rate (
    queue  text        PRIMARY KEY,
    tokens float8      NOT NULL,
    at     timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Take reports of jobs; release keys of those that finished, and tell their parents. One report: id, state, attempts,
-- worker, started_at, due_at, error, result, progress, total; what is NULL stays as it was. What is done stays done.
CREATE FUNCTION pipeline.settle_jobs(reports json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    keys     text[];
    finished uuid[];
BEGIN
    PERFORM 1 FROM pipeline.job WHERE id IN (SELECT (r->>'id')::uuid FROM json_array_elements(reports) AS r)
        AND (parent IS NOT NULL OR unique_key IS NOT NULL) ORDER BY id FOR UPDATE;
    WITH changed AS (
        UPDATE pipeline.job AS j SET
            state = r.state,
            attempts = greatest(j.attempts, coalesce(r.attempts, 0)),
            worker = coalesce(r.worker, j.worker),
            started_at = coalesce(r.started_at, j.started_at),
            seen_at = clock_timestamp(),
            finished_at = CASE WHEN r.state IN ('done', 'dead', 'cancelled') THEN clock_timestamp() END,
            due_at = r.due_at,
            error = coalesce(r.error, j.error),
            result = coalesce(r.result, j.result),
            progress = coalesce(r.progress, j.progress),
            total = coalesce(r.total, j.total)
        FROM json_to_recordset(reports) AS r(id uuid, state text, attempts integer, worker text,
            started_at timestamptz, due_at timestamptz, error text, result jsonb, progress float8, total float8)
        WHERE j.id = r.id AND j.state NOT IN ('done', 'cancelled')
        RETURNING j.id, j.parent, j.unique_key, j.told, j.finished_at
    )
    SELECT array_agg(unique_key) FILTER (WHERE unique_key IS NOT NULL),
           array_agg(id) FILTER (WHERE parent IS NOT NULL AND NOT told OR unique_key IS NOT NULL)
    INTO keys, finished FROM changed WHERE finished_at IS NOT NULL;
    IF keys IS NOT NULL THEN
        DELETE FROM pipeline.job_key
        WHERE key = ANY (keys) AND until IS NULL AND job_id = ANY (finished);
    END IF;
    IF finished IS NOT NULL THEN
        PERFORM pipeline.tell_parents(finished);
    END IF;
END $$;

-- Count finished children off. A parent without any left, or whose rule says so, goes on; one whose rule is to fail
-- is dead, and its own parent is told.
CREATE FUNCTION pipeline.tell_parents(finished uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    broken   uuid[];
    released uuid[];
BEGIN
    WHILE finished IS NOT NULL LOOP
        PERFORM 1 FROM pipeline.job WHERE id IN (SELECT parent FROM pipeline.job WHERE id = ANY (finished))
            ORDER BY id FOR UPDATE;
        WITH news AS (
            UPDATE pipeline.job SET told = true
            WHERE id = ANY (finished) AND parent IS NOT NULL AND NOT told
            RETURNING parent, on_failure, state
        ), sums AS (
            SELECT parent, count(*) AS n,
                   bool_or(state <> 'done' AND on_failure = 'fail') AS breaks,
                   bool_or(state <> 'done' AND on_failure = 'continue') AS goes_on
            FROM news GROUP BY parent
        ), parents AS (
            UPDATE pipeline.job AS p SET
                children = p.children - s.n,
                state = CASE WHEN p.state <> 'blocked' THEN p.state
                             WHEN s.breaks THEN 'dead'
                             WHEN s.goes_on OR p.children <= s.n THEN 'delayed' ELSE p.state END,
                finished_at = CASE WHEN p.state = 'blocked' AND s.breaks THEN clock_timestamp() ELSE p.finished_at END,
                error = CASE WHEN p.state = 'blocked' AND s.breaks THEN 'ChildFailed' ELSE p.error END,
                due_at = CASE WHEN p.state = 'blocked' THEN clock_timestamp() ELSE p.due_at END
            FROM sums AS s WHERE p.id = s.parent
            RETURNING p.id, p.state
        )
        SELECT array_agg(id) FILTER (WHERE state = 'dead'), array_agg(id) FILTER (WHERE state = 'delayed')
        INTO broken, released FROM parents;
        IF released IS NOT NULL THEN
            UPDATE pipeline.due SET due_at = clock_timestamp() WHERE id = ANY (released) AND due_at = 'infinity';
        END IF;
        IF broken IS NOT NULL THEN
            DELETE FROM pipeline.due WHERE id = ANY (broken);
            DELETE FROM pipeline.job_key WHERE until IS NULL AND job_id = ANY (broken)
                AND key IN (SELECT unique_key FROM pipeline.job WHERE id = ANY (broken));
        END IF;
        finished := broken;
    END LOOP;
END $$;

-- Ask for the end of jobs: what has not left for Kafka is cancelled at once, a worker does it to the others.
CREATE FUNCTION pipeline.cancel_jobs(wanted uuid[]) RETURNS TABLE (id uuid, state text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    finished uuid[];
BEGIN
    WITH gone AS (
        DELETE FROM pipeline.due WHERE id = ANY (wanted) RETURNING id
    ), changed AS (
        UPDATE pipeline.job AS j SET
            cancel_at = coalesce(j.cancel_at, clock_timestamp()),
            state = CASE WHEN g.id IS NOT NULL THEN 'cancelled' ELSE j.state END,
            finished_at = CASE WHEN g.id IS NOT NULL THEN clock_timestamp() ELSE j.finished_at END
        FROM unnest(wanted) AS w(id) LEFT JOIN gone AS g ON g.id = w.id
        WHERE j.id = w.id AND j.state NOT IN ('done', 'dead', 'cancelled')
        RETURNING j.id, j.state
    )
    SELECT array_agg(id) FILTER (WHERE state = 'cancelled') INTO finished FROM changed;
    IF finished IS NOT NULL THEN
        DELETE FROM pipeline.job_key WHERE until IS NULL AND job_id = ANY (finished)
            AND key IN (SELECT j.unique_key FROM pipeline.job AS j WHERE j.id = ANY (finished));
        PERFORM pipeline.tell_parents(finished);
    END IF;
    RETURN QUERY SELECT j.id, j.state FROM pipeline.job AS j WHERE j.id = ANY (wanted) AND j.cancel_at IS NOT NULL;
END $$;
