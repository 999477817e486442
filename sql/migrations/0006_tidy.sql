-- Tidying that can be taken back: its runs, who was superseded by whom and why, what each run changed, row by row, and
-- the questions whose recall guards it.

CREATE TABLE memory.runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('dedup', 'compaction', 'archive', 'decay')),
    dry_run boolean NOT NULL,
    -- failed: an error or a kill ended it early; what its batches did is whole, was checked and can be undone
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'done', 'failed', 'rolled_back', 'undone')),
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cap int NOT NULL CHECK (cap >= 0),    -- rows that it might change
    counts jsonb NOT NULL DEFAULT '{}',
    canary_before real CHECK (canary_before BETWEEN 0 AND 1),
    canary_after real CHECK (canary_after BETWEEN 0 AND 1),
    reason text NOT NULL DEFAULT '',
    forgotten_at timestamptz,             -- when its journal was dropped: from then on it cannot be undone
    UNIQUE (tenant, id),
    CHECK ((status = 'running') = (finished_at IS NULL))
);
CREATE UNIQUE INDEX runs_one_at_a_time ON memory.runs (tenant) WHERE status = 'running';
CREATE INDEX runs_of_kind ON memory.runs (tenant, kind, id);

-- A node that was taken in by another: by whom, why, when, in which run (NULL: outside of one, as by a write).
CREATE TABLE memory.supersessions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    node bigint NOT NULL,
    heir bigint NOT NULL,                 -- no reference: an undo can delete the Concept that it made
    by text NOT NULL,
    why text NOT NULL,
    run bigint,
    at timestamptz NOT NULL DEFAULT now(),
    undone_at timestamptz,
    UNIQUE (tenant, id),
    CHECK (node <> heir),
    FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant, run) REFERENCES memory.runs (tenant, id)
);
CREATE INDEX supersessions_node ON memory.supersessions (node, heir);
CREATE INDEX supersessions_run ON memory.supersessions (run);

-- Rows as they were and as they became, without vectors and texts, which tidying never changes.
CREATE TABLE memory.journal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    run bigint,
    supersession bigint,
    node bigint,                          -- NULL for 'weights', which is many edges' weights in one row
    relation text NOT NULL
        CHECK (relation IN ('nodes', 'node_texts', 'node_usage', 'minhash_bands', 'edges', 'weights')),
    key bigint NOT NULL,                  -- of an edge its id, of a band its number, else the node
    before jsonb,                         -- NULL: it was not there
    after jsonb,                          -- NULL: it is not there any more
    CHECK (num_nonnulls(run, supersession) > 0),
    CHECK ((node IS NULL) = (relation = 'weights')),
    -- a hard delete takes along what is remembered of a node
    FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant, run) REFERENCES memory.runs (tenant, id),
    FOREIGN KEY (tenant, supersession) REFERENCES memory.supersessions (tenant, id) ON DELETE CASCADE
);
CREATE INDEX journal_run ON memory.journal (run, id) WHERE run IS NOT NULL;
CREATE INDEX journal_supersession ON memory.journal (supersession, id) WHERE supersession IS NOT NULL;
CREATE INDEX journal_node ON memory.journal (node, id) WHERE node IS NOT NULL;

-- A question and the node that it has to find among the 10 nearest, or an answer that one of them has to hold.
CREATE TABLE memory.canary_queries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    question text NOT NULL CHECK (length(question) BETWEEN 1 AND 20000),
    embedding halfvec(${dimension}) NOT NULL CHECK (l2_norm(embedding) BETWEEN 0.98 AND 1.02),
    expected bigint NOT NULL,
    answer text CHECK (length(answer) BETWEEN 1 AND 20000),
    reader text NOT NULL DEFAULT '',      -- who asks: untrusted nodes are seen by their writer alone
    origin text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, question, reader),
    FOREIGN KEY (tenant, expected) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE
);
CREATE INDEX canary_queries_expected ON memory.canary_queries (expected);

-- Until when the time of an edge that is not used was taken off its weight.
ALTER TABLE memory.edges ADD COLUMN decayed_at timestamptz;

SELECT memory.keep_tenants_apart('memory.runs');
SELECT memory.keep_tenants_apart('memory.supersessions');
SELECT memory.keep_tenants_apart('memory.journal');
SELECT memory.keep_tenants_apart('memory.canary_queries');
GRANT USAGE ON ALL SEQUENCES IN SCHEMA memory TO ruvllm_app;

-- A transaction that names its run or supersession has every row journalled that it touches, whichever code touches it;
-- any other pays for one comparison a row.
CREATE FUNCTION memory.journal_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    apart CONSTANT text[] := ARRAY['embedding', 'content_hash', 'text'];
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - apart END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - apart END;
    image jsonb := coalesce(before, after);
BEGIN
    INSERT INTO memory.journal (tenant, run, supersession, node, relation, key, before, after)
    VALUES (image ->> 'tenant', nullif(current_setting('app.run', true), '')::bigint,
            nullif(current_setting('app.supersession', true), '')::bigint,
            (image -> TG_ARGV[0])::bigint, TG_TABLE_NAME, (image -> TG_ARGV[1])::bigint, before, after);
    RETURN NULL;
END $$;

DO $$
DECLARE t record;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('nodes', 'INSERT OR UPDATE', 'id', 'id'),
        ('node_texts', 'UPDATE', 'node', 'node'),              -- inserted with its node, and goes with it
        ('node_usage', 'INSERT OR UPDATE', 'node', 'node'),
        ('minhash_bands', 'DELETE', 'node', 'band'),
        ('edges', 'INSERT OR UPDATE OR DELETE', 'src', 'id')
    ) AS t (name, events, node, key)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER journal AFTER %s ON memory.%I FOR EACH ROW '
            'WHEN (current_setting(''app.run'', true) <> '''' OR current_setting(''app.supersession'', true) <> '''') '
            'EXECUTE FUNCTION memory.journal_row(%L, %L)', t.events, t.name, t.node, t.key);
    END LOOP;
END $$;

-- What a run or a supersession did to each row of a relation, from its first state to its last.
CREATE FUNCTION memory.journalled(of_run bigint, of_supersession bigint, of_relation text)
RETURNS TABLE (node bigint, key bigint, before jsonb, after jsonb) LANGUAGE sql STABLE AS $$
    SELECT min(node), key, (array_agg(before ORDER BY id))[1], (array_agg(after ORDER BY id DESC))[1]
    FROM memory.journal
    WHERE (run = of_run OR supersession = of_supersession) AND relation = of_relation
    GROUP BY key, CASE WHEN relation = 'minhash_bands' THEN node END  -- elsewhere the key alone is the row's
$$;
