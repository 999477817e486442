-- The core tables. ${dimension} is the encoder's, filled in by ruvllm/database/migrate.py.
-- Ids are bigint inside, UUIDv7 outside. A table with a tenant has row-level security, forced.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE SCHEMA memory;
CREATE SCHEMA serving;
CREATE SCHEMA learning;
CREATE SCHEMA registry;

-- PostgreSQL 18 has uuidv7(); this is RFC 9562 section 5.7 for 15 to 17 as well.
CREATE FUNCTION memory.uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1), 'hex')::uuid
$$;

-- One row: whose vectors these are. Vectors of different encoders never meet.
CREATE TABLE memory.encoder (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id text NOT NULL,
    dimension int NOT NULL CHECK (dimension BETWEEN 8 AND 4000)
);

CREATE TABLE memory.nodes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE DEFAULT memory.uuid7(),
    tenant text NOT NULL CHECK (length(tenant) BETWEEN 1 AND 200),
    kind text NOT NULL CHECK (kind IN ('Query', 'Document', 'AgentStep', 'Fact', 'Concept')),
    domain text NOT NULL DEFAULT '',
    trust text NOT NULL CHECK (trust IN ('system', 'corroborated', 'untrusted')),
    -- here, not beside the text: uniqueness among live rows needs it in the table that knows what is live
    content_hash bytea NOT NULL CHECK (length(content_hash) = 32),
    embedding halfvec(${dimension}) NOT NULL CHECK (l2_norm(embedding) BETWEEN 0.98 AND 1.02),
    confidence real NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
    version int NOT NULL DEFAULT 1 CHECK (version >= 1),
    superseded_by bigint REFERENCES memory.nodes (id),
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (superseded_by IS NULL OR archived_at IS NOT NULL)
);
CREATE UNIQUE INDEX nodes_live_content ON memory.nodes (tenant, content_hash) WHERE archived_at IS NULL;
-- a text that was merged into another node is not written again
CREATE INDEX nodes_merged_content ON memory.nodes (tenant, content_hash) WHERE superseded_by IS NOT NULL;
CREATE INDEX nodes_embedding ON memory.nodes USING hnsw (embedding halfvec_ip_ops)
    WITH (m = 16, ef_construction = 100) WHERE archived_at IS NULL;

CREATE TABLE memory.node_texts (
    node bigint PRIMARY KEY REFERENCES memory.nodes (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    text text NOT NULL CHECK (length(text) BETWEEN 1 AND 20000),
    source text NOT NULL,
    writer text NOT NULL DEFAULT '',
    tags text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX node_texts_source ON memory.node_texts (tenant, source);

-- Apart, so that counting a read never rewrites an indexed row.
CREATE TABLE memory.node_usage (
    node bigint PRIMARY KEY REFERENCES memory.nodes (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    uses bigint NOT NULL DEFAULT 0,
    last_used_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE memory.minhash_bands (
    node bigint NOT NULL REFERENCES memory.nodes (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    band smallint NOT NULL,
    hash bigint NOT NULL,
    PRIMARY KEY (node, band)
);
CREATE INDEX minhash_bands_lookup ON memory.minhash_bands (tenant, band, hash, node);

-- Up to which node duplicates have been looked for.
CREATE TABLE memory.maintained (
    tenant text PRIMARY KEY,
    last_node bigint NOT NULL
);

CREATE TABLE memory.edges (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE DEFAULT memory.uuid7(),
    tenant text NOT NULL,
    src bigint NOT NULL REFERENCES memory.nodes (id) ON DELETE CASCADE,
    dst bigint NOT NULL REFERENCES memory.nodes (id) ON DELETE CASCADE,
    rel text NOT NULL CHECK (rel IN ('Cites', 'Follows', 'SameTopic', 'AgentStep', 'Derived', 'Contains')),
    weight real NOT NULL DEFAULT 1 CHECK (weight BETWEEN 0 AND 1),
    confidence real NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    uses bigint NOT NULL DEFAULT 0,
    CHECK (src <> dst),
    UNIQUE (src, dst, rel)
);
CREATE INDEX edges_from ON memory.edges (src) INCLUDE (dst, rel, weight);
CREATE INDEX edges_to ON memory.edges (dst) INCLUDE (src, rel, weight);

CREATE TABLE serving.interactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid uuid NOT NULL UNIQUE DEFAULT memory.uuid7(),
    request_id text NOT NULL,
    tenant text NOT NULL,
    cycle_id text,                        -- of the day that a cycle simulated, else NULL
    asked_at timestamptz NOT NULL DEFAULT now(),
    session_id text,
    turn int NOT NULL DEFAULT 1 CHECK (turn >= 1),
    question text NOT NULL,
    history jsonb NOT NULL DEFAULT '[]',  -- earlier turns: [[question, answer], ...]
    answer text NOT NULL,
    gold text[],                          -- accepted answers, where they are known
    domain text NOT NULL DEFAULT '',
    tier text NOT NULL,
    context_bin int NOT NULL CHECK (context_bin IN (256, 512, 1024, 2048, 4096)),
    temperature real NOT NULL CHECK (temperature BETWEEN 0 AND 2),
    top_p real NOT NULL CHECK (top_p BETWEEN 0 AND 1),
    decided_by text NOT NULL,             -- champion | cold-start | explore | fallback | forced
    confidence real CHECK (confidence BETWEEN 0 AND 1),
    propensity real NOT NULL CHECK (propensity > 0 AND propensity <= 1),
    router_version text NOT NULL,         -- '' before the first promotion
    ladder text NOT NULL,
    layout_hash text NOT NULL,
    features real[] NOT NULL,
    retrieved bigint[] NOT NULL DEFAULT '{}',
    similarities real[] NOT NULL DEFAULT '{}',
    used bigint[] NOT NULL DEFAULT '{}',   -- the nodes that were in the prompt
    writer text NOT NULL DEFAULT '',
    prompt_tokens int NOT NULL,
    cached_tokens int NOT NULL DEFAULT 0,
    completion_tokens int NOT NULL,
    cost real NOT NULL,
    stage_ms jsonb NOT NULL,              -- {"embed": 4.1, "search": 1.2, ...}
    total_ms real NOT NULL,
    quality real CHECK (quality BETWEEN 0 AND 1),
    quality_source text CHECK (quality_source IN ('gold', 'feedback', 'judge')),
    degraded text[] NOT NULL DEFAULT '{}',
    UNIQUE (tenant, request_id),
    CHECK ((quality IS NULL) = (quality_source IS NULL))
);
CREATE INDEX interactions_day ON serving.interactions (tenant, asked_at);
CREATE INDEX interactions_cycle ON serving.interactions (cycle_id);

CREATE TABLE serving.feedback (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    interaction bigint NOT NULL REFERENCES serving.interactions (id) ON DELETE CASCADE,
    rating int CHECK (rating BETWEEN 1 AND 5),
    correction text CHECK (length(correction) BETWEEN 1 AND 20000),
    task_success boolean,
    writer text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(rating, correction, task_success) > 0)
);

-- Work that follows an answer; written in the transaction of the interaction, done once.
CREATE TABLE serving.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('score')),
    interaction bigint NOT NULL REFERENCES serving.interactions (id) ON DELETE CASCADE,
    idempotency_key text NOT NULL UNIQUE,
    outcome text CHECK (outcome IN ('written', 'merged', 'skipped', 'unscored')),
    node bigint REFERENCES memory.nodes (id),
    attempts int NOT NULL DEFAULT 0,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz
);
CREATE INDEX outbox_open ON serving.outbox (id) WHERE done_at IS NULL;

-- The questions whose every (tier, bin) is run, with what the router saw when they were.
CREATE TABLE learning.oracle_queries (
    key text PRIMARY KEY,                 -- digest of session and text
    tenant text NOT NULL,
    cycle_id text NOT NULL,               -- the night that took it up
    question text NOT NULL,
    gold text[] NOT NULL,
    kind text NOT NULL,
    domain text NOT NULL,
    split text NOT NULL CHECK (split IN ('train', 'test')),
    grouping text NOT NULL,               -- the country: no group is in both splits
    session_id text,
    turn int NOT NULL DEFAULT 1,
    history jsonb NOT NULL DEFAULT '[]',  -- earlier turns: [[question, answer], ...]
    layout_hash text NOT NULL,
    features real[] NOT NULL,
    embedding real[] NOT NULL,            -- of the question, for fitting the feature transforms
    retrieved bigint[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE learning.oracle_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    query text NOT NULL REFERENCES learning.oracle_queries (key) ON DELETE CASCADE,
    ladder text NOT NULL,
    tier text NOT NULL,
    model_sha256 text NOT NULL,
    prompt_version text NOT NULL,
    context_bin int NOT NULL,
    cycle_id text NOT NULL,
    answer text NOT NULL,
    quality real NOT NULL CHECK (quality BETWEEN 0 AND 1),
    latency_s real NOT NULL CHECK (latency_s >= 0),   -- cold prefill + decode, as a user would wait
    spent_s real NOT NULL CHECK (spent_s >= 0),       -- what it cost here, prefix shared with the smaller bins
    prompt_tokens int NOT NULL,
    completion_tokens int NOT NULL,
    cost real NOT NULL,
    ran_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (query, tier, context_bin, model_sha256, prompt_version)
);

CREATE TABLE learning.labels (
    query text NOT NULL REFERENCES learning.oracle_queries (key) ON DELETE CASCADE,
    tenant text NOT NULL,
    ladder text NOT NULL,
    latency_weight real NOT NULL,
    cost_weight real NOT NULL,
    tier text NOT NULL,
    context_bin int NOT NULL,
    temperature real NOT NULL,
    top_p real NOT NULL,
    utilities jsonb NOT NULL,             -- {"tier": {"256": 3.1, ...}}
    labelled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (query, ladder, latency_weight, cost_weight)
);

-- Reservoir (Vitter's algorithm R): slot s holds one of the `seen` experiences, each with equal probability.
CREATE TABLE learning.replay (
    tenant text NOT NULL,
    slot int NOT NULL CHECK (slot >= 0),
    query text NOT NULL REFERENCES learning.oracle_queries (key) ON DELETE CASCADE,
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, slot),
    UNIQUE (tenant, query)
);
CREATE TABLE learning.replay_counter (
    tenant text PRIMARY KEY,
    seen bigint NOT NULL CHECK (seen >= 0)
);

CREATE TABLE learning.ewc_state (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    router_version text NOT NULL,
    layout_hash text NOT NULL,
    state bytea NOT NULL,                 -- safetensors: fisher.<name>, anchor.<name>
    sha256 text NOT NULL,
    penalty real NOT NULL,                -- lambda
    decay real NOT NULL,                  -- gamma of online EWC
    samples int NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, router_version)
);

CREATE TABLE learning.snapshots (
    digest text NOT NULL,
    tenant text NOT NULL,
    cycle_id text NOT NULL,
    row_count int NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, digest)
);

-- A night and its steps: what is done is not done again.
CREATE TABLE learning.cycles (
    id text PRIMARY KEY,
    tenant text NOT NULL,
    night int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    UNIQUE (tenant, night)
);
CREATE TABLE learning.steps (
    cycle_id text NOT NULL REFERENCES learning.cycles (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    step text NOT NULL,
    result jsonb NOT NULL,
    seconds real NOT NULL,
    done_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cycle_id, step)
);

-- The truth of what is promoted; the MLflow alias is its projection. Append-only.
CREATE TABLE registry.ledger (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action text NOT NULL CHECK (action IN ('promote', 'rollback')),
    version text NOT NULL,                -- the MLflow model version
    previous text,
    sha256 text NOT NULL,                 -- of the bundle's manifest, which holds the files' own
    artifact_uri text NOT NULL,
    approved_by text NOT NULL,
    reason text NOT NULL DEFAULT '',
    gates jsonb NOT NULL,
    cycle_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION registry.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'registry.ledger is append-only: roll back by adding a row (ruvllm registry rollback)';
END $$;
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE ON registry.ledger
    FOR EACH ROW EXECUTE FUNCTION registry.refuse_change();

DO $$
DECLARE t record;
BEGIN
    FOR t IN SELECT table_schema AS s, table_name AS n FROM information_schema.columns
             WHERE column_name = 'tenant' AND table_schema IN ('memory', 'serving', 'learning')
    LOOP
        EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY', t.s, t.n);
        EXECUTE format('ALTER TABLE %I.%I FORCE ROW LEVEL SECURITY', t.s, t.n);
        EXECUTE format('CREATE POLICY tenant ON %I.%I USING (tenant = current_setting(''app.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''app.tenant'', true))', t.s, t.n);
    END LOOP;
END $$;
