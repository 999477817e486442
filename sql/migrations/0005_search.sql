-- Search in text by Postgres alone, and the indexes that a narrow filter is answered from.
--
-- @@ is not leakproof, so under row-level security no index on words could be used: a search would read every text of
-- the tenant. Words therefore lie in a table of their own, whose owner reads all of it, and one function, run as the
-- owner, hands out the caller's tenant's ids and scores: no text, no other column, and filters stay the caller's.

CREATE TABLE memory.node_words (
    node bigint PRIMARY KEY,
    tenant text NOT NULL,
    words tsvector NOT NULL,
    tags text[] NOT NULL,
    FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE
);
SELECT memory.keep_tenants_apart('memory.node_words');
DO $$
BEGIN
    EXECUTE format('CREATE POLICY owner_reads ON memory.node_words FOR SELECT TO %I USING (true)', current_user);
END $$;

-- English, as the default encoder and the replica's words are: its stemmer leaves other languages' words as they are.
-- "simple" keeps every stop word, so each question would read the words of nearly every text.
CREATE FUNCTION memory.index_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.node_words AS w (node, tenant, words, tags)
    SELECT node, tenant, to_tsvector('pg_catalog.english', text), tags FROM changed ORDER BY node
    ON CONFLICT (node) DO UPDATE SET words = excluded.words, tags = excluded.tags
    WHERE w.words <> excluded.words OR w.tags <> excluded.tags;
    RETURN NULL;
END $$;
CREATE TRIGGER words_insert AFTER INSERT ON memory.node_texts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.index_words();
CREATE TRIGGER words_update AFTER UPDATE ON memory.node_texts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.index_words();

-- What is there already. Forced row-level security would show an owner who is no superuser no row of any tenant.
ALTER TABLE memory.node_texts NO FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.node_words NO FORCE ROW LEVEL SECURITY;
INSERT INTO memory.node_words (node, tenant, words, tags)
SELECT node, tenant, to_tsvector('pg_catalog.english', text), tags FROM memory.node_texts;
ALTER TABLE memory.node_texts FORCE ROW LEVEL SECURITY;
ALTER TABLE memory.node_words FORCE ROW LEVEL SECURITY;

CREATE INDEX node_words_words ON memory.node_words USING gin (words);
CREATE INDEX node_words_tags ON memory.node_words USING gin (tags);

-- Each of the question's words by itself, weighed by how rare it is: ts_rank alone does not know rare words from common
-- ones. ts_rank of one word saturates with its count, flag 1 divides by 1 + log(length): together nearly BM25.
CREATE FUNCTION memory.word_scores(question text) RETURNS TABLE (node bigint, score real)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off ROWS 1000 AS $$
    WITH word AS MATERIALIZED (
        SELECT place, ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS query
        FROM unnest(tsvector_to_array(to_tsvector('english', question))) WITH ORDINALITY AS l (lexeme, place)
    ), hit AS MATERIALIZED (
        SELECT word.place, w.node, ts_rank(w.words, word.query, 1) AS rank
        FROM word CROSS JOIN LATERAL (
            SELECT n.node, n.words FROM memory.node_words n
            WHERE n.words @@ word.query AND n.tenant = current_setting('app.tenant', true)
        ) AS w
    ), held AS (
        SELECT place, count(*) AS texts FROM hit GROUP BY place
    ), size AS (
        SELECT greatest(max(c.reltuples), sum(held.texts))::float8 AS texts
        FROM held, pg_class c WHERE c.oid = 'memory.node_words'::regclass
    )
    SELECT hit.node, sum(hit.rank * ln(1 + (size.texts - held.texts + 0.5) / (held.texts + 0.5)))::real
    FROM hit JOIN held USING (place) CROSS JOIN size GROUP BY hit.node
$$;

-- Nodes of the tenant that carry every one of `wanted`; @> is not leakproof either.
CREATE FUNCTION memory.tagged(wanted text[]) RETURNS SETOF bigint
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off ROWS 1000 AS $$
    SELECT node FROM memory.node_words WHERE tags @> wanted AND tenant = current_setting('app.tenant', true)
$$;

REVOKE ALL ON FUNCTION memory.word_scores, memory.tagged FROM PUBLIC;
GRANT EXECUTE ON FUNCTION memory.word_scores, memory.tagged TO ruvllm_app;

-- Where a filter leaves few nodes, they are found by it and sorted, instead of by walking the vectors' graph.
CREATE INDEX nodes_kind ON memory.nodes (tenant, kind, created_at) WHERE archived_at IS NULL;
CREATE INDEX nodes_domain ON memory.nodes (tenant, domain) WHERE archived_at IS NULL;
CREATE INDEX nodes_created ON memory.nodes (tenant, created_at) WHERE archived_at IS NULL;
