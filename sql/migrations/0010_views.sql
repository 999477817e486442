-- What analysts read beyond memory: decisions, quality, cost, regret, nights, gates, promotions. The views themselves
-- are in sql/views/, a file a subject; this lets them be read and be quick.

GRANT USAGE ON SCHEMA serving, learning, registry TO ruvllm_views;
SELECT memory.show_to_views(name::regclass)
FROM unnest(ARRAY['serving.interactions', 'serving.feedback', 'serving.outbox', 'learning.oracle_queries',
                  'learning.oracle_runs', 'learning.labels', 'learning.cycles', 'learning.steps']) AS name;
GRANT SELECT ON registry.ledger TO ruvllm_views;  -- of the whole installation: one champion serves every tenant

-- A day's figures from the index alone: a row of interactions is a kilobyte and more (features, texts).
DROP INDEX serving.interactions_day;
CREATE INDEX interactions_day ON serving.interactions (tenant, asked_at)
    INCLUDE (domain, tier, context_bin, decided_by, confidence, router_version, quality, cost, total_ms,
             completion_tokens);

-- Which decisions the oracle can judge. A hash: questions are longer than a B-tree's entry may be.
CREATE INDEX oracle_queries_question ON learning.oracle_queries USING hash (question);

-- The newest label of a question on a ladder.
CREATE INDEX labels_newest ON learning.labels (tenant, query, ladder, labelled_at DESC);
