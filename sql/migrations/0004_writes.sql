-- Writes: each once by its key, bursts before they are nodes, who signed a MinHash band, the outbox's patience.

-- What became of a write, so that one that is sent again is told so. A row without a key is there for its session.
CREATE TABLE memory.writes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    key text CHECK (length(key) BETWEEN 1 AND 200),
    node bigint,
    outcome text NOT NULL CHECK (outcome IN ('written', 'merged', 'skipped', 'unscored')),
    reason text NOT NULL DEFAULT '',
    session text CHECK (length(session) BETWEEN 1 AND 200),
    turn int CHECK (turn >= 1),
    written_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, key),
    FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE SET NULL (node),
    CHECK (num_nonnulls(key, session) > 0),
    CHECK ((session IS NULL) = (turn IS NULL))
);
CREATE INDEX writes_node ON memory.writes (tenant, node) WHERE node IS NOT NULL;
CREATE INDEX writes_session ON memory.writes (tenant, session, turn) WHERE session IS NOT NULL;
CREATE INDEX writes_old ON memory.writes (tenant, written_at);
SELECT memory.keep_tenants_apart('memory.writes');

-- Where a burst waits: no HNSW index, so that a row costs a copy and no search. It is found once it is merged.
CREATE TABLE memory.ingest (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('Query', 'Document', 'AgentStep', 'Fact', 'Concept')),
    domain text NOT NULL DEFAULT '',
    trust text NOT NULL CHECK (trust IN ('system', 'corroborated', 'untrusted')),
    content_hash bytea NOT NULL CHECK (length(content_hash) = 32),
    embedding halfvec(${dimension}) CHECK (l2_norm(embedding) BETWEEN 0.98 AND 1.02),  -- NULL: not embedded yet
    confidence real NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
    text text NOT NULL CHECK (length(text) BETWEEN 1 AND 20000),
    source text NOT NULL,
    writer text NOT NULL DEFAULT '',
    tags text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    came_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ingest_next ON memory.ingest (tenant, id);
SELECT memory.keep_tenants_apart('memory.ingest');

-- Bands are comparable only among those of one signer; 1 is rensa's, which made what is there (ruvllm/memory/likeness/minhash.py).
ALTER TABLE memory.minhash_bands ADD COLUMN scheme smallint NOT NULL DEFAULT 1;
DROP INDEX memory.minhash_bands_lookup;
CREATE INDEX minhash_bands_lookup ON memory.minhash_bands (tenant, band, hash, node) INCLUDE (scheme);

-- What was archived for want of use and not merged away: content that comes again is looked up here, and lives again.
CREATE INDEX nodes_asleep_content ON memory.nodes (tenant, content_hash)
    WHERE archived_at IS NOT NULL AND superseded_by IS NULL;

-- A row that fails is tried again later and in the end given up, and never holds up the others.
ALTER TABLE serving.outbox ADD COLUMN retry_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE serving.outbox DROP CONSTRAINT outbox_outcome_check;
ALTER TABLE serving.outbox ADD CONSTRAINT outbox_outcome_check
    CHECK (outcome IN ('written', 'merged', 'skipped', 'unscored', 'failed'));
DROP INDEX serving.outbox_open;
CREATE INDEX outbox_open ON serving.outbox (tenant, id) WHERE done_at IS NULL;
CREATE INDEX outbox_failed ON serving.outbox (tenant, id) WHERE outcome = 'failed';
CREATE INDEX outbox_node ON serving.outbox (tenant, node) WHERE node IS NOT NULL;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA memory TO ruvllm_app;
