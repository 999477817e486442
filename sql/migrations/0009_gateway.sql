-- The gateway's own: keys, what judges said of answers, a reservoir of experiences, candidates on trial, the answer cache.

-- Keys as digests: who reads this table can open nothing. A key's tenant is the one whose rows it reaches.
CREATE TABLE serving.api_keys (
    id text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{16}$'),      -- the part that is shown and logged
    tenant text NOT NULL CHECK (length(tenant) BETWEEN 1 AND 200),
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),  -- sha256 of the whole key: 256 random bits, so no salt
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    scopes text[] NOT NULL CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['ask', 'feedback', 'memory', 'admin']),
    concurrency int CHECK (concurrency > 0),
    requests_per_minute int CHECK (requests_per_minute > 0),
    tokens_per_minute int CHECK (tokens_per_minute > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
SELECT memory.keep_tenants_apart('serving.api_keys');
-- The door looks a key up before it knows whose it is; it sees digests, and changes nothing.
CREATE POLICY door ON serving.api_keys FOR SELECT TO ruvllm_app
    USING (current_setting('app.door', true) = 'keys');

-- One row per answer that a judge is to score: first a lease, then what it said. An expired lease is anybody's.
CREATE TABLE serving.judgements (
    interaction bigint PRIMARY KEY REFERENCES serving.interactions (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    lease uuid NOT NULL,
    leased_until timestamptz NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    judge text,
    quality real CHECK (quality BETWEEN 0 AND 1),
    reason text NOT NULL DEFAULT '',                        -- why it gave none
    done_at timestamptz,
    CHECK (quality IS NULL OR (judge IS NOT NULL AND done_at IS NOT NULL))
);
CREATE INDEX judgements_open ON serving.judgements (leased_until) WHERE done_at IS NULL;
SELECT memory.keep_tenants_apart('serving.judgements');
CREATE INDEX interactions_unjudged ON serving.interactions (tenant, id) WHERE quality IS NULL AND gold IS NULL;

-- A uniform sample of answered requests whose quality is known: those with the lowest priority, a hash of the row's uuid.
-- Offered twice is offered once, and the order does not matter (Cohen and Kaplan 2007, bottom-k).
CREATE TABLE learning.experience (
    interaction bigint PRIMARY KEY REFERENCES serving.interactions (id) ON DELETE CASCADE,
    tenant text NOT NULL,
    priority bigint NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX experience_priority ON learning.experience (tenant, priority);
SELECT memory.keep_tenants_apart('learning.experience');

-- A candidate beside the champion: share 0 is shadow, above it canary. The newest that was not stopped is on trial.
CREATE TABLE serving.trials (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    version text NOT NULL,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    artifact_uri text NOT NULL,
    share real NOT NULL CHECK (share BETWEEN 0 AND 1),
    bounds jsonb NOT NULL,                                  -- how much worse it may be before it is stopped
    started_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    stop_reason text,
    CHECK ((stopped_at IS NULL) = (stop_reason IS NULL))
);
SELECT memory.keep_tenants_apart('serving.trials');

-- What a candidate would have decided; nobody was answered so.
CREATE TABLE serving.shadow_decisions (
    trial bigint NOT NULL,                                  -- of the gateway's own tenant; tenant is the asker's
    tenant text NOT NULL,
    request_id text NOT NULL,
    tier text NOT NULL,
    context_bin int NOT NULL,
    confidence real,
    propensity real NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trial, tenant, request_id)
);
SELECT memory.keep_tenants_apart('serving.shadow_decisions');

-- Up from which similarity an answer may be given again; the newest of an encoder counts.
CREATE TABLE serving.cache_calibrations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    encoder_id text NOT NULL,
    data_digest text NOT NULL CHECK (data_digest ~ '^[0-9a-f]{64}$'),
    target real NOT NULL CHECK (target > 0 AND target < 1),        -- false hits among hits
    confidence real NOT NULL CHECK (confidence > 0 AND confidence < 1),
    threshold real CHECK (threshold BETWEEN -1 AND 1),              -- NULL: no threshold holds the target
    questions int NOT NULL CHECK (questions > 0),
    hits int NOT NULL CHECK (hits >= 0),
    false_hits int NOT NULL CHECK (false_hits BETWEEN 0 AND hits),
    bound real NOT NULL CHECK (bound BETWEEN 0 AND 1),              -- upper limit of the false share
    calibrated_at timestamptz NOT NULL DEFAULT now()
);
SELECT memory.keep_tenants_apart('serving.cache_calibrations');
GRANT USAGE ON ALL SEQUENCES IN SCHEMA serving TO ruvllm_app;
